"""`timm-lc reproduce`: the paper's figures and tables."""

import argparse
import functools
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from timm_lc.commands._arguments import add_training, training_of
from timm_lc.commands._queue import naming_place, read_queue

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
    """List experiments, show what would run, or run it; a queue, line by line, once each is checked."""
    from timm_lc.paper.runs import adopt_runs
    from timm_lc.training.data import load_images

    lines = [('', args)] if args.queue is None else read_queue(args, add_arguments)
    tasks = []
    for place, line in lines:
        with naming_place(place):  # what another queue trains is left to it
            tasks.append((place, line, *_check(line, wait=args.queue is None)))
    for folder in args.adopt:
        _print_each(f'{folder}: {path}' for path in adopt_runs(folder, args.runs_dir, args.limit))
    read = functools.lru_cache(maxsize=1)(load_images)  # once for all lines
    begun = time.monotonic()
    for place, line, experiments, options in tasks:
        with naming_place(place):
            _run(line, experiments, options, read, begun)


def _check(args: argparse.Namespace, *, wait: bool) -> tuple[Any, Any]:
    """Return the experiments and options that arguments ask for; what they cannot mean is an error."""
    from timm_lc.paper.catalogue import EXPERIMENTS, find
    from timm_lc.paper.planning import Options, plan

    experiments = [find(name) for name in args.experiments]
    if not experiments and not args.list:
        raise ValueError(f'give one or more of {", ".join(EXPERIMENTS)}')
    if args.time and not (args.list or args.dry_run):
        raise ValueError('`--time` is of `--list` and `--dry-run`; give one of them with it')
    if args.train_dirs and experiments and not any(experiment.by_train_script for experiment in experiments):
        trained = ', '.join(name for name, experiment in EXPERIMENTS.items() if experiment.by_train_script)
        raise ValueError(f'`--train-dirs` are of {trained}, got {", ".join(args.experiments)}')
    names = ('runs', 'seed', 'limit', 'output', 'runs_dir', 'jobs', 'shard', 'max_minutes', 'only', 'values')
    chosen = {name: getattr(args, name) for name in names}
    options = Options(
        args.data, **training_of(args), **chosen, train_dirs=tuple(args.train_dirs), time_networks=args.time, wait=wait
    )
    experiments = experiments or list(EXPERIMENTS.values())
    plan(experiments, options)
    return experiments, options


def _run(args: argparse.Namespace, experiments: Any, options: Any, read: Any, begun: float) -> None:
    from timm_lc.paper.planning import list_experiments, list_runs
    from timm_lc.paper.plots import require_plots
    from timm_lc.paper.reproduce import reproduce

    if args.list:
        _print_each(list_experiments(experiments, options))
    elif args.dry_run:
        _print_each(list_runs(experiments, options))
    else:
        require_plots()
        if not reproduce(experiments, options, read, begun):
            print('not finished: the time was up, or another process trains a run; the same command goes on')


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
