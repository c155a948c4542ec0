"""`timm-lc adapt-bench`: adapters beside other ways to fine-tune, or with random filters of several lengths."""

import argparse
from pathlib import Path
from typing import Any

from timm_lc.commands._arguments import check_model

__all__ = ['EXAMPLE', 'HELP', 'add_arguments', 'run']

HELP = 'compare adapters with LoRA, head only, head and norms, and full fine-tuning, on CIFAR-10 and digits'
EXAMPLE = (
    'timm-lc adapt-bench --pixels 16 --base-epochs 8 --effort 0.5 --amp --output output/adapters\n'
    '  timm-lc adapt-bench --model resnet10t --lengths 0.5 1 2 4 --tasks "50 images" --output output/lengths'
)
PLANNED = (
    'model', 'pretrained', 'data', 'pixels', 'base_epochs', 'seeds', 'lrs', 'effort', 'amp', 'lengths', 'rank',
    'layers', 'tasks',
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc adapt-bench`."""
    parser.add_argument('--data', default='cifar10', help='cifar10, or a folder with train/ and validation/')
    parser.add_argument('--pixels', type=int, default=32, help='sides of the images (default: %(default)s)')
    _add_base(parser)
    parser.add_argument('--seeds', type=int, default=3, help='runs of each (default: %(default)s)')
    parser.add_argument('--lrs', type=float, nargs='+', default=[0.03, 0.1], help='learning rates (default: 0.03 0.1)')
    parser.add_argument('--effort', type=float, default=1.0, help='factor of the epochs of adapting (default: 1)')
    parser.add_argument('--tasks', default='', metavar='REGEX', help='only tasks whose name matches')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast')
    _add_lengths(parser)
    parser.add_argument(
        '--output',
        type=Path,
        default=Path('output/adapters'),
        help='folder of the runs, which go on there, and results',
    )


def _add_base(parser: argparse.ArgumentParser) -> None:
    """Add which network is adapted."""
    parser.add_argument(
        '--model', default='lc_lowres_resnet20', metavar='NAME', help='of the base, in its plain form (%(default)s)'
    )
    parser.add_argument('--pretrained', action='store_true', help='take its trained weights, do not train the base')
    parser.add_argument('--base-epochs', type=int, default=15, help='of its training (default: %(default)s)')


def _add_lengths(parser: argparse.ArgumentParser) -> None:
    """Add the comparison of lengths of random filters, instead of that of ways to adapt."""
    parser.add_argument(
        '--lengths',
        type=float,
        nargs='+',
        default=[],
        metavar='LENGTH',
        help='compare adapters whose random filters have these lengths with full fine-tuning, and no other way',
    )
    parser.add_argument('--rank', type=int, default=8, help='of these adapters (default: %(default)s)')
    parser.add_argument(
        '--layers', default='spatial', choices=('spatial', 'pointwise', 'all'), help='that they adapt (%(default)s)'
    )


def run(args: argparse.Namespace) -> None:
    """Do what is left to do, print the tables, and write them and the picture."""
    from timm_lc.arguments import check_count
    from timm_lc.paper.adapt_bench import Plan, run_plan
    from timm_lc.paper.adapt_page import draw, rates, table
    from timm_lc.paper.plots import require_plots, save
    from timm_lc.training.files import write_text

    check_model(args.model)
    for name in ('pixels', 'base_epochs', 'seeds', 'rank'):
        check_count(name, getattr(args, name))
    require_plots()
    args.output.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {name: getattr(args, name) for name in PLANNED}
    plan = Plan(**{**given, 'lrs': tuple(args.lrs), 'lengths': tuple(args.lengths)})
    runs = run_plan(plan, args.output, tell=lambda text: print(text, flush=True))
    text = table(runs) + ('\n' + rates(runs) if len(plan.lrs) > 1 else '')
    print(text)
    write_text(args.output / 'table.md', text)
    save(draw(runs), args.output / 'accuracy.svg')
