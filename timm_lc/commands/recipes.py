"""`timm-lc recipes`: the files for train.py's `-c` that come with this package."""

import argparse

from timm_lc.commands._recipes import find_recipe, purpose, recipes

__all__ = ['EXAMPLE', 'HELP', 'add_arguments', 'run']

HELP = 'list the recipes for `timm-lc train -c NAME`, or print one'
EXAMPLE = 'timm-lc recipes rsb_a2 > my_recipe.yaml'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc recipes`."""
    parser.add_argument('name', nargs='?', metavar='NAME', help='recipe to print (default: list all)')


def run(args: argparse.Namespace) -> None:
    """Print the names and what they are for, or one file."""
    if args.name:
        print(find_recipe(args.name).read_text(encoding='utf-8'), end='')
        return
    width = max(map(len, recipes()), default=0) + 2
    for name, path in recipes().items():
        print(f'{name:<{width}}{purpose(path)}')
