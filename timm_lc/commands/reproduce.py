"""`timm-lc reproduce`: the paper's figures and tables."""

import argparse
import functools
import math
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from timm_lc.commands._arguments import add_training, training_of

__all__ = ['EXAMPLE', 'HELP', 'add_arguments', 'run']

HELP = "run what a figure or table of the paper is missing, and write ours beside the paper's"
EXAMPLE = 'timm-lc reproduce fig1 --data cifar10 --runs 1 --epochs 5 --values 1,4,8,32 --device cpu'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc reproduce`."""
    parser.usage = '%(prog)s [ID ...] [options]'
    parser.add_argument('experiments', nargs='*', metavar='ID', help='fig1, table1, ...; several share their runs')
    add_training(parser, runs=4)
    parser.add_argument(
        '--list', action='store_true', help='show the experiments, and how long what is missing would take'
    )
    parser.add_argument('--dry-run', action='store_true', help='show which runs there are, and which are missing')
    parser.add_argument(
        '--time', action='store_true', help='with --list or --dry-run, time networks that were not trained here yet'
    )
    parser.add_argument(
        '--only', default='', metavar='REGEX', help='only points whose name matches, as --dry-run shows it'
    )
    parser.add_argument(
        '--values',
        type=_values,
        default=(),
        metavar='X,X,...',
        help='only points of these places on the axis, as 1,4,8,32',
    )
    parser.add_argument('--shard', type=_shard, default=(1, 1), metavar='I/N', help='the I-th of N parts of the runs')
    parser.add_argument('--max-minutes', type=float, default=math.inf, metavar='M', help='stop then, to go on later')
    parser.add_argument(
        '--queue', type=Path, metavar='FILE', help='do each line of FILE in order: IDs and arguments, as given here'
    )
    _add_folders(parser)


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--train-dirs',
        type=Path,
        nargs='*',
        default=[],
        help="folders of train.py's runs on ImageNet (table2, fig17, v2-table2)",
    )
    parser.add_argument(
        '--adopt',
        type=Path,
        nargs='*',
        default=[],
        metavar='DIR',
        help='copy runs of `timm-lc cifar` to --runs-dir first, in a dry run too',
    )
    parser.add_argument(
        '--output', type=Path, default=Path('results'), help='folder of tables and figures (default: %(default)s)'
    )
    parser.add_argument(
        '--runs-dir', type=Path, default=Path('output/runs'), help='folder of trained networks (default: %(default)s)'
    )


def run(args: argparse.Namespace) -> None:
    """List experiments, show what would run, or run it; a queue, line by line."""
    from timm_lc.paper.runs import adopt_runs
    from timm_lc.training.data import load_images

    for folder in args.adopt:
        _print_each(f'{folder}: {path}' for path in adopt_runs(folder, args.runs_dir, args.limit))
    if args.queue is None:
        _run(args, load_images)
    elif args.experiments:
        raise ValueError(f'give IDs or `--queue`, not both; got {" ".join(args.experiments)}')
    else:
        read = functools.lru_cache(maxsize=1)(load_images)  # once for all lines
        for line in _read_queue(args):
            _run(line, read, wait=False)  # what another queue trains is left to it


def _run(args: argparse.Namespace, read: Any, *, wait: bool = True) -> None:
    from timm_lc.paper.catalogue import EXPERIMENTS, find
    from timm_lc.paper.planning import Options, list_experiments, list_runs
    from timm_lc.paper.plots import require_plots
    from timm_lc.paper.reproduce import reproduce

    experiments = [find(name) for name in args.experiments]
    if not experiments and not args.list:
        raise ValueError(f'give one or more of {", ".join(EXPERIMENTS)}')
    if args.time and not (args.list or args.dry_run):
        raise ValueError('`--time` is of `--list` and `--dry-run`; give one of them with it')
    names = ('runs', 'seed', 'limit', 'output', 'runs_dir', 'jobs', 'shard', 'max_minutes', 'only', 'values')
    chosen = {name: getattr(args, name) for name in names}
    options = Options(
        args.data, **training_of(args), **chosen, train_dirs=tuple(args.train_dirs), time_networks=args.time, wait=wait
    )
    if args.list:
        _print_each(list_experiments(experiments or list(EXPERIMENTS.values()), options))
    elif args.dry_run:
        _print_each(list_runs(experiments, options))
    else:
        require_plots()
        if not reproduce(experiments, options, read):
            print('not finished: the time was up, or another process trains a run; the same command goes on')


def _read_queue(args: argparse.Namespace) -> list[argparse.Namespace]:
    """Return the arguments of each line, which win over those of the command; '#' begins a comment."""
    if not args.queue.is_file():
        raise ValueError(f'`--queue` must be a file of IDs and arguments, got {args.queue}, which is not there')
    queue = []
    for number, text in enumerate(args.queue.read_text(encoding='utf-8').splitlines(), 1):
        given = argparse.Namespace(**{**vars(args), 'queue': None, 'adopt': []})
        try:
            words = shlex.split(text, comments=True)
            queue += [args.subparser.parse_args(words, given)] if words else []
        except (SystemExit, ValueError) as error:
            raise ValueError(f'`--queue` {args.queue}: line {number} is not understood: {text}') from error
        if given.queue or given.adopt or (words and not given.experiments):
            raise ValueError(f'`--queue` {args.queue}: line {number} must hold IDs and arguments, got {text}')
    return queue


def _print_each(lines: Iterable[str]) -> None:
    """Print each line as soon as it is known: all may take minutes."""
    for line in lines:
        print(line, flush=True)


def _values(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(',') if part.strip())


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition('/')
    if not (index.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f'must be i/n, such as 1/4, got {text!r}')
    return int(index), int(count)
