"""`timm-lc cifar`: the paper's CIFAR training (appendix C) of one network."""

import argparse
from pathlib import Path

from timm_lc.arguments import check_count
from timm_lc.commands._arguments import add_model_kwargs, add_training, check_model, training_of

__all__ = ['EXAMPLE', 'HELP', 'add_arguments', 'run']

HELP = "train as in the paper's appendix C, with several seeds"
EXAMPLE = 'timm-lc cifar --model lc_resnet20_16x8 --data cifar10 --runs 4'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc cifar`."""
    parser.add_argument('--model', default='lc_resnet20_16x8', help='a registered name (default: %(default)s)')
    add_training(parser, runs=1)
    parser.add_argument(
        '--l1', type=float, default=0.0, help='factor of the l1 penalty on pointwise weights (default: 0)'
    )
    parser.add_argument(
        '--output',
        type=Path,
        help='folder of a folder for each run (default: output/cifar/MODEL)',
    )
    add_model_kwargs(parser)


def run(args: argparse.Namespace) -> None:
    """Train one network with several seeds, and print mean and spread."""
    check_model(args.model)
    from timm_lc.analysis.intervals import mean_and_std
    from timm_lc.paper.runs import known_values, train_once
    from timm_lc.training.data import load_images
    from timm_lc.training.parallel import in_parallel
    from timm_lc.training.recipe import Run

    settings = training_of(args)
    check_count('runs', args.runs)
    if fixed := args.model_kwargs.keys() & {'num_classes', 'in_chans'}:
        raise ValueError(f'`--model-kwargs` must leave {", ".join(sorted(fixed))} to `--data`')
    output = args.output or Path('output/cifar', args.model)
    images, accuracies = load_images(args.data, limit=args.limit), []
    runs = [Run(args.model, args.model_kwargs, args.seed + index, settings['recipe']) for index in range(args.runs)]
    where = settings['device'], settings['speed']
    tasks = [(run, images, output / f'seed{run.seed}', *where) for run in runs]
    finished = {run.seed for run, _, folder, *_ in tasks if known_values(folder)}
    for values in in_parallel(train_once, tasks, args.jobs):
        accuracies.append(values['accuracy'])
        again = f'; found finished in {output}, not trained again' if values['seed'] in finished else ''
        print(f'seed {values["seed"]}: {values["accuracy"]:.2f} % after {values["seconds"]:.0f} s{again}', flush=True)
    mean, std = mean_and_std(accuracies)
    spread = '' if std is None else f' ± {std:.2f}'
    print(f'{args.model}: {mean:.2f}{spread} % over {len(accuracies)} run{"s"[: len(accuracies) > 1]}')
