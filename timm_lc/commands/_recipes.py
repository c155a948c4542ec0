"""The recipes of train_configs/: a bare name is one of ours, a path stays a path."""

from pathlib import Path

import timm_lc

__all__ = ['find_recipe', 'purpose', 'recipes']


def recipes() -> dict[str, Path]:
    """Return the file of each recipe by its name: beside the code where it is installed, else of the repository."""
    package = Path(timm_lc.__file__).parent
    folders = (package / 'train_configs', package.parent / 'train_configs')
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob('*.yaml'))}


def find_recipe(text: str) -> Path:
    """Return the file that `-c` names.

    Raises:
        FileNotFoundError: If it is neither a file nor the name of a recipe.
    """
    known, path = recipes(), Path(text)
    if text in known:
        return known[text]
    if path.is_file():
        return path
    ours = f'the recipes of this package go by their names: {", ".join(known)}'
    hint = f' (`-c {path.stem}`)' if path.stem in known else ''
    raise FileNotFoundError(f'no recipe or file {text!r}; {ours}{hint}')


def purpose(path: Path) -> str:
    """Return the first line of a recipe, which says what it is for."""
    return path.read_text(encoding='utf-8').partition('\n')[0].removeprefix('# ')
