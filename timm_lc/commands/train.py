"""`timm-lc train`: timm's stock train.py."""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timm_lc.commands._arguments import check_model
from timm_lc.commands._recipes import find_recipe
from timm_lc.commands._scripts import find_script, run_script, script_path

__all__ = ['EXAMPLE', 'HELP', 'add_arguments', 'run']

HELP = "run timm's stock train.py, downloaded once if need be; all other arguments are train.py's"
EXAMPLE = (
    'timm-lc train -c rsb_a2 --model lc_resnet50 --data-dir /imagenet --grad-accum-steps 8 --aug-repeats 0\n'
    "  timm-lc run train.py --help  # train.py's own arguments"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc train`; what it does not know it passes on."""
    parser.usage = "%(prog)s [-h] [--script PATH] [-c RECIPE] [train.py's arguments]"
    parser.add_argument(
        '--script',
        metavar='PATH',
        help='train.py (default: $TIMM_SCRIPTS/train.py, ./train.py, a cached copy, or a download)',
    )
    parser.add_argument(
        '-c', '--config', metavar='RECIPE', help='a name that `timm-lc recipes` lists, or the path of a YAML file'
    )
    parser.set_defaults(arguments=[])


def run(args: argparse.Namespace) -> Callable[[], None]:
    """Check what train.py would not, and return what runs it."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument('--model', default='')
    options.add_argument('--opt')
    options.add_argument('--opt-kwargs', nargs='*')
    known, _ = options.parse_known_args(args.arguments)
    recipe = find_recipe(args.config) if args.config else None
    if known.model.startswith('lc_'):
        check_model(known.model)
    _check_optimizer(known.opt, known.opt_kwargs, _read(recipe) if recipe else {})
    script = script_path(args.script) if args.script else find_script('train.py')
    print(f'timm-lc train: running {script}', file=sys.stderr)
    chosen = ['-c', str(recipe)] if recipe else []
    return functools.partial(run_script, script, [*chosen, *args.arguments])


def _read(recipe: Path) -> dict[str, Any]:
    """Return the arguments in a YAML file."""
    import yaml

    try:
        found = yaml.safe_load(recipe.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'cannot read the recipe {recipe}: {" ".join(str(error).split())}') from error
    if not isinstance(found, dict):
        raise ValueError(f"the recipe {recipe} must hold train.py's arguments, got {type(found).__name__}")
    return found


def _check_optimizer(opt: str | None, opt_kwargs: list[str] | None, recipe: dict[str, Any]) -> None:
    """Refuse a penalty that timm would not see, or that has no factor.

    timm splits a name at underscores, uses the last part and forgets the rest.
    """
    name = opt or recipe.get('opt') or ''
    rest = name.removeprefix('lookahead_')
    if '_' in rest:
        meant = name.removesuffix(rest) + rest.replace('_', '')
        raise ValueError(f'`--opt {name}`: timm would use {rest.split("_")[-1]!r} alone; did you mean {meant}?')
    given = recipe.get('opt_kwargs') or {} if opt_kwargs is None else [text.partition('=')[0] for text in opt_kwargs]
    if rest.startswith('l1') and not {'l1', 'keep_zeros'} & set(given):
        raise ValueError(f'`--opt {name}` needs the factor of its penalty: `--opt-kwargs l1=5e-5`')
