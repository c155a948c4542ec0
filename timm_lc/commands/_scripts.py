"""timm's stock scripts, unmodified: run any of them with the lc_ names registered, and find train.py.

Importing this package has registered the names, so a script only has to run in the same process.
"""

import argparse
import hashlib
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

__all__ = ['find_train_script', 'run_script', 'script_path']

# SHA-256 of train.py at the release tags of timm's repository.
CHECKSUMS = {
    '1.0.24': 'cadc151dfcd3b0c89a6a85683e098d5e8ea56942bbbb9e5122919a86163f3770',
    '1.0.25': '4dbf00cb971ac246ead5fd37ae4dfb3b9183864962cc2c819f7c2706582ec1f7',
    '1.0.26': '4dbf00cb971ac246ead5fd37ae4dfb3b9183864962cc2c819f7c2706582ec1f7',
    '1.0.27': '1fb02d26fe16536bc7de2c987980644353117c2b2b8046532261464093cd1ac6',
    '1.0.28': '1fb02d26fe16536bc7de2c987980644353117c2b2b8046532261464093cd1ac6',
}
SOURCE = 'https://raw.githubusercontent.com/huggingface/pytorch-image-models/v{version}/train.py'


def script_path(text: str) -> Path:
    """Return the path of a script given on the command line, which must be a file."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(
            f"must be a Python file, got {text!r}, which does not exist; timm's are in a clone of "
            'https://github.com/huggingface/pytorch-image-models'
        )
    return path


def run_script(script: Path, arguments: Sequence[str]) -> None:
    """Run a Python file in this process as `python SCRIPT ARGUMENTS...` would.

    `sys.argv`, `sys.path[0]` and `__main__` are the script's; what it raises, its exit status included, passes through.

    Args:
        script: The file.
        arguments: Its command line.
    """
    sys.argv[:] = [str(script), *arguments]
    if not getattr(sys.flags, 'safe_path', False):  # `python -P` puts no folder of a script there
        sys.path[0] = str(script.resolve().parent)
    runpy.run_path(str(script), run_name='__main__')


def find_train_script() -> Path:
    """Return timm's train.py: in the folder TIMM_SCRIPTS, the working directory, the cache, or downloaded.

    The download is that of the newest release of timm that is not newer than the installed one and whose checksum is
    pinned here; it is kept in the folder of `torch.hub`, and verified each time.

    Raises:
        FileNotFoundError: If there is none in any of these places, or the download fails or has another checksum.
    """
    looked = []
    folder = os.environ.get('TIMM_SCRIPTS')
    for name, path in (('TIMM_SCRIPTS', folder and Path(folder, 'train.py')), ('working directory', Path('train.py'))):
        if path and path.is_file():
            return path
        looked.append(f'{name}: {f"no file {path}" if path else "not set"}')
    version = _newest_known()
    cached = _cache(version)
    if not cached.is_file():
        looked.append(f'cache: no file {cached}')
    elif _checksum(cached) == CHECKSUMS[version]:
        return cached
    else:
        looked.append(f'cache: {cached} has another checksum than train.py of timm {version}')
    url = SOURCE.format(version=version)
    try:
        _download(url, cached, CHECKSUMS[version])
    except (URLError, OSError, RuntimeError) as error:
        looked.append(f'download: {url}: {error}')
        raise FileNotFoundError(
            '\n  '.join(["no train.py of timm's found:", *looked, f'to fix it: curl -fO {url}'])
        ) from error
    return cached


def _newest_known() -> str:
    """Return the newest release with a pinned checksum that is not newer than the installed timm."""
    import timm
    from packaging.version import Version

    known = [version for version in CHECKSUMS if Version(version) <= Version(timm.__version__)]
    if not known:
        raise FileNotFoundError(
            f'no train.py is pinned for timm {timm.__version__}, older than {min(CHECKSUMS, key=Version)}: '
            'give `--script PATH`'
        )
    return max(known, key=Version)


def _cache(version: str) -> Path:
    from torch import hub

    return Path(hub.get_dir(), 'timm_lc', f'v{version}', 'train.py')


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _download(url: str, path: Path, checksum: str) -> None:
    """Fetch `url` to `path` with a progress bar; the file appears there only when whole and verified."""
    from torch import hub

    path.parent.mkdir(parents=True, exist_ok=True)
    hub.download_url_to_file(url, str(path), hash_prefix=checksum)
