"""`timm-lc list`: the names of the models."""

import argparse

__all__ = ['EXAMPLE', 'HELP', 'add_arguments', 'run']

HELP = 'list the lc_ models'
EXAMPLE = "timm-lc list 'lc_resnet20_*'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc list`."""
    parser.add_argument('filter', nargs='?', default='lc_*', help='part of a name, or a pattern that begins with lc_')


def run(args: argparse.Namespace) -> None:
    """Print the names that match."""
    import timm

    import timm_lc  # noqa: F401  # registers the names

    is_pattern = args.filter.startswith('lc_') and set('*?[') & set(args.filter)
    part = args.filter if args.filter.startswith('lc_') else f'lc_*{args.filter}'
    names = timm.list_models(part if is_pattern else f'{part}*')
    if not names:
        raise ValueError(f'no lc_ model matches {args.filter!r}; `timm-lc list` shows all')
    print('\n'.join(names))
