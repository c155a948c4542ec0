"""`timm-lc train`: timm's stock train.py."""

import argparse
import functools
import sys
from collections.abc import Callable

from timm_lc.commands._arguments import check_model
from timm_lc.commands._scripts import find_train_script, run_script, script_path

__all__ = ['EXAMPLE', 'HELP', 'add_arguments', 'run']

HELP = "run timm's stock train.py, downloaded once if need be; all other arguments are train.py's"
EXAMPLE = 'timm-lc train -c train_configs/rsb_a2.yaml --model lc_resnet50 --data-dir /imagenet'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc train`; what it does not know it passes on."""
    parser.usage = "%(prog)s [-h] [--script PATH] [train.py's arguments]"
    parser.add_argument(
        '--script',
        type=script_path,
        metavar='PATH',
        help='train.py (default: $TIMM_SCRIPTS/train.py, ./train.py, a cached copy, or a download)',
    )
    parser.set_defaults(arguments=[])


def run(args: argparse.Namespace) -> Callable[[], None]:
    """Check what train.py would not, and return what runs it."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument('--model', default='')
    options.add_argument('--opt', default='')
    known, _ = options.parse_known_args(args.arguments)
    if known.model.startswith('lc_'):
        check_model(known.model)
    _check_optimizer(known.opt)
    args.script = args.script or find_train_script()
    print(f'timm-lc train: running {args.script}', file=sys.stderr)
    return functools.partial(run_script, args.script, args.arguments)


def _check_optimizer(name: str) -> None:
    """Refuse the underscore that timm splits at: it would use the last part and forget the rest."""
    rest = name.removeprefix('lookahead_')
    if '_' in rest:
        meant = name.removesuffix(rest) + rest.replace('_', '')
        raise ValueError(f'`--opt {name}`: timm would use {rest.split("_")[-1]!r} alone; did you mean {meant}?')
