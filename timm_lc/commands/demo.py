"""`timm-lc demo`: what the package does, in two minutes."""

import argparse
from pathlib import Path

from timm_lc.commands._arguments import check_model
from timm_lc.naming import PREFIX

__all__ = ['EXAMPLE', 'HELP', 'add_arguments', 'run']

HELP = 'train a frozen-random network beside its learnable twin'
EXAMPLE = 'timm-lc demo --epochs 10'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc demo`."""
    parser.add_argument('--model', default='lc_resnet20_16x8', help='an lc_ model (default: %(default)s)')
    parser.add_argument('--epochs', type=int, default=15, help='epochs of training (default: %(default)s)')
    parser.add_argument(
        '--seed', type=int, default=0, help='training seed; the filters have their own (default: %(default)s)'
    )
    parser.add_argument(
        '--data-dir', type=Path, help='ImageFolder tree with train/ and validation/ (default: handwritten digits)'
    )
    parser.add_argument(
        '--output', type=Path, default=Path('output/demo'), help='folder for checkpoints (default: %(default)s)'
    )


def run(args: argparse.Namespace) -> None:
    """Train both networks, print the table, reload and fold the frozen one."""
    check_model(args.model)
    if not args.model.startswith(PREFIX):
        raise ValueError(f'`--model` must be an lc_ model, as {PREFIX}{args.model}, got {args.model!r}')
    from timm_lc.training.demo import demonstrate

    demonstrate(args.model, epochs=args.epochs, seed=args.seed, data_dir=args.data_dir, output=args.output)
