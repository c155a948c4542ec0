"""Differences of accuracy between trained networks on the same images, each with its standard error.

    python benchmarks/paired_errors.py RUN RUN ... --data cifar10-jpeg > results/paired_errors.md

A RUN is a folder of `timm-lc cifar` or `reproduce`. The error is that of the images alone: the deviation of (right in
one) - (right in the other) over the images, by the root of their number. What another training seed would change comes
on top. Networks are folded and evaluated in float32.
"""

import argparse
import json
from pathlib import Path

import torch

import timm_lc
from timm_lc.checkpoints.checkpoint import load_model
from timm_lc.training.data import load_images
from timm_lc.training.trainer import RUN, describe_device, versions

BATCH = 250


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='folder of a finished run')
    parser.add_argument('--data', required=True, help='the images that they were trained on, as in timm-lc cifar')
    args = parser.parse_args(argv)
    images = load_images(args.data)
    right = {describe(folder): correct(folder, images) for folder in args.runs}
    if len(right) < len(args.runs):
        parser.error('two runs are of the same network, recipe and seed')
    print(f'# Differences of accuracy on the same {len(images.validation):,} images of {images.name}\n')
    print(
        '`python benchmarks/paired_errors.py RUN ... --data ...`: the row less the column in points, with the standard'
    )
    print('error of the images alone; another training seed comes on top. Folded, float32.')
    where = ', '.join(f'{name} {version}' for name, version in versions().items())
    print(f'{describe_device(torch.device("cpu"))}; {where}.\n')
    print(table(right))


def describe(folder):
    """Return what a run trained, and its length."""
    run = json.loads((folder / RUN).read_text())['run']
    kwargs = ' '.join(f'{key}={value}' for key, value in run['model_kwargs'].items())
    recipe = run['recipe']
    return f'{run["model"]} {kwargs}'.strip() + f', {recipe["epochs"]} epochs at {recipe["lr"]:g}, seed {run["seed"]}'


@torch.no_grad()
def correct(folder, images):
    """Return for each validation image whether the network of a run is right, as float64."""
    model = timm_lc.fold(load_model(folder)).to(memory_format=torch.channels_last)
    parts = zip(images.validation.split(BATCH), images.validation_labels.split(BATCH), strict=True)
    return torch.cat([model(images.normalize(pixels)).argmax(1) == labels for pixels, labels in parts]).double()


def table(right):
    """Return each network's accuracy, and its difference from those above."""
    names = list(right)
    lines = ['| | network | accuracy | ' + ' | '.join(f'less {index}' for index in range(1, len(names))) + ' |']
    lines.append('|---' * (len(names) + 2) + '|')
    for index, name in enumerate(names):
        gaps = [100 * (right[name] - right[other]) for other in names[:index]]
        cells = [f'{gap.mean():+.2f} ± {gap.std() / len(gap) ** 0.5:.3f}' for gap in gaps]
        cells += [''] * (len(names) - 1 - index)
        lines.append(f'| {index + 1} | {name} | {100 * right[name].mean():.2f} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
