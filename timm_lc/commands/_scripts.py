"""timm's stock scripts, unmodified: run any of them with the lc_ names registered, and find or download them.

Importing this package has registered the names, so a script only has to run in the same process.
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

__all__ = ['find_script', 'run_script', 'script_path']

RELEASES = ('1.0.24', '1.0.25', '1.0.26', '1.0.27', '1.0.28')
# SHA-256 of timm's scripts from a release on, until another is named.
CHECKSUMS = {
    'train.py': {
        '1.0.24': 'cadc151dfcd3b0c89a6a85683e098d5e8ea56942bbbb9e5122919a86163f3770',
        '1.0.25': '4dbf00cb971ac246ead5fd37ae4dfb3b9183864962cc2c819f7c2706582ec1f7',
        '1.0.27': '1fb02d26fe16536bc7de2c987980644353117c2b2b8046532261464093cd1ac6',
    },
    'validate.py': {
        '1.0.24': 'ac3f1c64480bee4f1dba28fc2dd8dcd205c38fcd1002b26e0e3013cdb5ae0b0f',
        '1.0.28': '1ff87867c808997ce443eb8ff8b2c7324519cdd0ec9dafbc3d5e666f89436749',
    },
    'inference.py': {
        '1.0.24': '4e8b3451168e0e283b13f08fdff791ce4c6bbec88e8f2280c8229a9bbe6adca2',
        '1.0.28': 'fc36c81ae3372b60fb7dc3a2b8676fd3de84afb79152134073109ac0333c95d4',
    },
    'avg_checkpoints.py': {
        '1.0.24': '62be549b8f3f21a3a8d50227adf092ac5a9d75d35f36749f8a788551d1dcd551',
        '1.0.26': '97b7e3240dab64cabeef658ee468ab80bd246e5a268944b372f4cb1b90c27b50',
    },
    'benchmark.py': {'1.0.24': 'c2257b70ef9cd6e1dbc19a86cc5d0daea0505649a82352add58013d0382ed1ba'},
    'bulk_runner.py': {'1.0.24': '20e15219f3cb158604cdf99c6c9e5a5021590a47930df98b5c7d39a2497fd1bf'},
    'clean_checkpoint.py': {'1.0.24': '9e8765c82ff3926d7fdac1727b936f58e645e2acd743bdcb42f56cbfe1faec14'},
    'onnx_export.py': {'1.0.24': 'f685366d0f814c3764445b3d2edb2966f0e3194b19511a280d9e3cbb72c82418'},
    'onnx_validate.py': {'1.0.24': 'e4e631022e3720ecfac175ab5db5ee3d6eed25495c4f37f9b9c2499103fc5405'},
}
SOURCE = 'https://raw.githubusercontent.com/huggingface/pytorch-image-models/v{version}/{script}'


def script_path(text: str) -> Path:
    """Return the script that a command line names: a file, or one of timm's by its bare name.

    Raises:
        FileNotFoundError: If it is neither, or timm's cannot be had.
    """
    path = Path(text)
    if path.is_file():
        return path
    if text in CHECKSUMS:
        return find_script(text)
    raise FileNotFoundError(
        f"SCRIPT must be a Python file or one of timm's ({', '.join(CHECKSUMS)}), got {text!r}, which does not exist"
    )


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
    import runpy

    runpy.run_path(str(script), run_name='__main__')


def find_script(name: str) -> Path:
    """Return a script of timm's: in the folder TIMM_SCRIPTS, the working directory, the cache, or downloaded.

    The download is that of the newest release of timm that is not newer than the installed one and whose checksum is
    pinned here; it is kept in the folder of `torch.hub`, and verified each time.

    Args:
        name: A key of `CHECKSUMS`.

    Raises:
        FileNotFoundError: If there is none in any of these places, or the download fails or has another checksum.
    """
    looked = []
    folder = os.environ.get('TIMM_SCRIPTS')
    for place, path in (('TIMM_SCRIPTS', folder and Path(folder, name)), ('working directory', Path(name))):
        if path and path.is_file():
            return path
        looked.append(f'{place}: {f"no file {path}" if path else "not set"}')
    version = _newest_known(name)
    cached, checksum = _cache(version, name), _pinned(name, version)
    if not cached.is_file():
        looked.append(f'cache: no file {cached}')
    elif _checksum(cached) == checksum:
        return cached
    else:
        looked.append(f'cache: {cached} has another checksum than {name} of timm {version}')
    url = SOURCE.format(version=version, script=name)
    try:
        _download(url, cached, checksum)
    except (URLError, OSError, RuntimeError) as error:
        looked.append(f'download: {url}: {error}')
        raise FileNotFoundError(
            '\n  '.join([f"no {name} of timm's found:", *looked, f'to fix it: curl -fO {url}'])
        ) from error
    return cached


def _newest_known(name: str) -> str:
    """Return the newest release with a pinned checksum that is not newer than the installed timm."""
    import timm
    from packaging.version import Version

    known = [version for version in RELEASES if Version(version) <= Version(timm.__version__)]
    if not known:
        raise FileNotFoundError(
            f'no {name} is pinned for timm {timm.__version__}, older than {RELEASES[0]}: give the path of one'
        )
    return known[-1]


def _pinned(name: str, version: str) -> str:
    """Return the checksum of a script at a release."""
    last = RELEASES.index(version)
    return next(CHECKSUMS[name][release] for release in RELEASES[last::-1] if release in CHECKSUMS[name])


def _cache(version: str, name: str) -> Path:
    from torch import hub

    return Path(hub.get_dir(), 'timm_lc', f'v{version}', name)


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _download(url: str, path: Path, checksum: str) -> None:
    """Fetch `url` to `path` with a progress bar; the file appears there only when whole and verified."""
    from torch import hub

    path.parent.mkdir(parents=True, exist_ok=True)
    hub.download_url_to_file(url, str(path), hash_prefix=checksum)
