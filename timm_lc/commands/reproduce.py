"""The commands `timm-lc cifar` and `timm-lc reproduce`: their arguments, and what they do."""

import argparse
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ['add_cifar_arguments', 'add_reproduce_arguments', 'run_cifar', 'run_reproduce']


def add_cifar_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc cifar`, but `--model-kwargs`."""
    parser.add_argument('--model', default='lc_resnet20_16x8', help='a registered name (default: %(default)s)')
    _add_training(parser, runs=1)
    parser.add_argument(
        '--l1', type=float, default=0.0, help='factor of the l1 penalty on pointwise weights (default: 0)'
    )
    parser.add_argument(
        '--output',
        type=Path,
        help='folder of a folder for each run (default: output/cifar/MODEL)',
    )


def add_reproduce_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc reproduce`."""
    parser.add_argument('experiments', nargs='*', metavar='ID', help='fig1, table1, ...; several share their runs')
    _add_training(parser, runs=4)
    parser.add_argument('--list', action='store_true', help='show the experiments and how long they would take here')
    parser.add_argument('--dry-run', action='store_true', help='show which runs there are, and which are missing')
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
    parser.add_argument(
        '--train-dirs', type=Path, nargs='*', default=[], help="folders of train.py's runs on ImageNet (table2, fig17)"
    )
    parser.add_argument('--shard', type=_shard, default=(1, 1), metavar='I/N', help='the I-th of N parts of the runs')
    parser.add_argument('--max-minutes', type=float, default=math.inf, metavar='M', help='stop then, to go on later')
    parser.add_argument(
        '--output', type=Path, default=Path('results'), help='folder of tables and figures (default: %(default)s)'
    )
    parser.add_argument(
        '--runs-dir', type=Path, default=Path('output/runs'), help='folder of trained networks (default: %(default)s)'
    )


def run_cifar(args: argparse.Namespace) -> None:
    """Train one network with several seeds, and print mean and spread."""
    from timm_lc.analysis.intervals import mean_and_std
    from timm_lc.paper.runs import complete
    from timm_lc.training.data import load_images
    from timm_lc.training.parallel import in_parallel
    from timm_lc.training.trainer import Run

    settings = _training(args)
    if args.runs < 1:
        raise ValueError(f'`--runs` must be a positive integer, got {args.runs}')
    if fixed := args.model_kwargs.keys() & {'num_classes', 'in_chans'}:
        raise ValueError(f'`--model-kwargs` must leave {", ".join(sorted(fixed))} to `--data`')
    output = args.output or Path('output/cifar', args.model)
    images, accuracies = load_images(args.data, limit=args.limit), []
    runs = [Run(args.model, args.model_kwargs, args.seed + index, settings['recipe']) for index in range(args.runs)]
    where = settings['device'], settings['speed']
    tasks = [(run, images, output / f'seed{run.seed}', *where) for run in runs]
    for values in in_parallel(complete, tasks, args.jobs):
        accuracies.append(values['accuracy'])
        print(f'seed {values["seed"]}: {values["accuracy"]:.2f} % after {values["seconds"]:.0f} s')
    mean, std = mean_and_std(accuracies)
    spread = '' if std is None else f' ± {std:.2f}'
    print(f'{args.model}: {mean:.2f}{spread} % over {len(accuracies)} run{"s"[: len(accuracies) > 1]}')


def run_reproduce(args: argparse.Namespace) -> None:
    """List experiments, show what would run, or run it."""
    from timm_lc.paper.catalogue import EXPERIMENTS, find
    from timm_lc.paper.planning import Options, list_experiments, list_runs
    from timm_lc.paper.plots import check_figures
    from timm_lc.paper.reproduce import reproduce

    check_figures()
    experiments = [find(name) for name in args.experiments]
    if not experiments and not args.list:
        raise ValueError(f'give one or more of {", ".join(EXPERIMENTS)}')
    names = ('runs', 'seed', 'limit', 'output', 'runs_dir', 'jobs', 'shard', 'max_minutes', 'only', 'values')
    chosen = {name: getattr(args, name) for name in names}
    options = Options(args.data, **_training(args), **chosen, train_dirs=tuple(args.train_dirs))
    if args.list:
        _print_each(list_experiments(experiments or list(EXPERIMENTS.values()), options))
    elif args.dry_run:
        _print_each(list_runs(experiments, options))
    elif not reproduce(experiments, options):
        print('stopped when the time was up; the same command goes on')


def _add_training(parser: argparse.ArgumentParser, runs: int) -> None:
    """Add what both commands have in common."""
    parser.add_argument(
        '--data',
        default='cifar10',
        help='cifar10, cifar100, digits, or a folder with train/ and validation/ (default: %(default)s)',
    )
    parser.add_argument('--epochs', type=int, default=75, help='epochs of training (default: %(default)s)')
    parser.add_argument('--runs', type=int, default=runs, help='training seeds (default: %(default)s)')
    parser.add_argument(
        '--seed', type=int, default=0, help='the first of them; filters have their own (default: %(default)s)'
    )
    parser.add_argument('--jobs', type=int, default=1, help='runs at once, on one device (default: %(default)s)')
    parser.add_argument('--limit', type=int, help='images of each split (default: all)')
    parser.add_argument('--batch-size', type=int, default=256, help='(default: %(default)s)')
    parser.add_argument('--lr', type=float, default=1e-2, help='initial learning rate (default: %(default)s)')
    parser.add_argument('--device', help='cpu, cuda, ... (default: cuda if there is one)')
    for name, text in (
        ('amp', 'bfloat16 autocast (default: on a GPU)'),
        ('channels-last', 'channels_last memory (default: on)'),
        ('compile', 'torch.compile with CUDA graphs (default: on a GPU)'),
    ):
        parser.add_argument(f'--{name}', action=argparse.BooleanOptionalAction, help=text)


def _training(args: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe, device and speed that the arguments ask for."""
    import torch

    from timm_lc.training.trainer import Recipe, Speed

    try:
        device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'`--device {args.device}`: {str(error).splitlines()[0]}') from None
    best = Speed.best_for(device)
    chosen = {name: getattr(args, name) for name in ('amp', 'channels_last', 'compile')}
    speed = Speed(**{name: getattr(best, name) if value is None else value for name, value in chosen.items()})
    recipe = Recipe(args.epochs, args.batch_size, args.lr, l1=getattr(args, 'l1', 0.0))
    return {'recipe': recipe, 'device': device, 'speed': speed}


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
