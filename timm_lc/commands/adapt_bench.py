"""`timm-lc adapt-bench`: adapters beside other ways to fine-tune."""

import argparse
from pathlib import Path

__all__ = ['EXAMPLE', 'HELP', 'add_arguments', 'run']

HELP = 'compare adapters with LoRA, head only, norms only and full fine-tuning, on CIFAR-10 and digits'
EXAMPLE = 'timm-lc adapt-bench --pixels 16 --base-epochs 8 --effort 0.5 --amp --output output/adapters'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc adapt-bench`."""
    parser.add_argument('--data', default='cifar10', help='cifar10, or a folder with train/ and validation/')
    parser.add_argument('--pixels', type=int, default=32, help='sides of the images (default: %(default)s)')
    parser.add_argument('--base-epochs', type=int, default=15, help='of the base (default: %(default)s)')
    parser.add_argument('--seeds', type=int, default=3, help='runs of each (default: %(default)s)')
    parser.add_argument('--lrs', type=float, nargs='+', default=[0.03, 0.1], help='learning rates (default: 0.03 0.1)')
    parser.add_argument('--effort', type=float, default=1.0, help='factor of the epochs of adapting (default: 1)')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast')
    parser.add_argument(
        '--output',
        type=Path,
        default=Path('output/adapters'),
        help='folder of the runs, which go on there, and results',
    )


def run(args: argparse.Namespace) -> None:
    """Do what is left to do, print the tables, and write them and the picture."""
    from timm_lc.arguments import check_count
    from timm_lc.paper.adapt_bench import Plan, draw, run_plan, table
    from timm_lc.paper.plots import require_plots, save
    from timm_lc.training.files import write_text

    for name in ('pixels', 'base_epochs', 'seeds'):
        check_count(name, getattr(args, name))
    require_plots()
    args.output.mkdir(parents=True, exist_ok=True)
    names = ('data', 'pixels', 'base_epochs', 'seeds', 'effort', 'amp')
    plan = Plan(**{name: getattr(args, name) for name in names}, lrs=tuple(args.lrs))
    runs = run_plan(plan, args.output, tell=lambda text: print(text, flush=True))
    text = table(runs)
    print(text)
    write_text(args.output / 'table.md', text)
    save(draw(runs), args.output / 'accuracy.svg')
