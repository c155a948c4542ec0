"""`timm-lc report`: all results as one page."""

import argparse
from pathlib import Path

__all__ = ['EXAMPLE', 'HELP', 'add_arguments', 'run']

HELP = "write all results of `timm-lc reproduce` as one page, ours beside the paper's"
EXAMPLE = 'timm-lc report results'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc report`."""
    parser.add_argument(
        'directory', type=Path, nargs='?', default=Path('results'), metavar='DIR', help='of results (default: results)'
    )


def run(args: argparse.Namespace) -> None:
    """Write the page and print its files."""
    from timm_lc.paper.report import write_report

    print('\n'.join(map(str, write_report(args.directory))))
