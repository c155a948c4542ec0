"""`timm-lc run`: any script of timm's with the names registered."""

import argparse
import functools
from collections.abc import Callable

from timm_lc.commands._scripts import run_script, script_path

__all__ = ['EXAMPLE', 'HELP', 'add_arguments', 'run']

HELP = "run a script, such as timm's validate.py, with the lc_ models and l1 optimizers registered"
EXAMPLE = (
    'timm-lc run validate.py --model lc_resnet50 --checkpoint model_best.pth.tar --data-dir /imagenet\n'
    '  torchrun --nproc-per-node 8 -m timm_lc run train.py -c my_recipe.yaml --model lc_resnet50\n'
    "  timm-lc run bulk_runner.py --module 1 --model-list 'lc_resnet20_16x*' timm_lc run benchmark.py"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc run`."""
    parser.add_argument(
        'script',
        metavar='SCRIPT',
        help="a Python file, or the name of one of timm's (from $TIMM_SCRIPTS, a cached copy, or a download)",
    )
    parser.add_argument('arguments', nargs='*', default=[], metavar='ARGS', help='its arguments')


def run(args: argparse.Namespace) -> Callable[[], None]:
    """Return what runs the script."""
    return functools.partial(run_script, script_path(args.script), args.arguments)
