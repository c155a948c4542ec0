"""Short runs of timm's own train.py with train_configs/rsb_a2.yaml: does the recipe train the networks of table 2?

Each run is a process of the untouched script on a CPU, with a part of CIFAR-10's images. Afterwards the final
checkpoint is loaded into a network built with another filter seed: its filters must be those that training began with,
and timm's validate.py must find the same accuracy. Writes results/recipes.md; finished runs in the output folder stay.
"""

import argparse
import csv
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import timm
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from timm_lc.training.trainer import describe_device  # noqa: E402  # importing timm_lc registers the names

BATCH, CLASSES = 64, 10
TRAIN_IMAGES, VALIDATION_IMAGES = 640, 200  # of each class: 100 steps an epoch
IMAGES = '--num-classes {classes} --img-size {pixels} -b {batch} -j 1 --device cpu --amp-dtype bfloat16'
TEST = '--crop-pct 0.95 --interpolation bicubic'
TRAIN = '-c train_configs/rsb_a2.yaml --model {model} --epochs {epochs} --warmup-epochs 0 --aug-repeats 0'
CHANCE = 1 / CLASSES
CHANCE_LOSS = -CHANCE * math.log(CHANCE) - (1 - CHANCE) * math.log(1 - CHANCE)
HEAD = f"""# The A2 recipe on a CPU

`TIMM_SCRIPTS=... python benchmarks/recipes.py --data-dir CIFAR10`: timm's untouched train.py with
train_configs/rsb_a2.yaml on {CLASSES * TRAIN_IMAGES:,} of CIFAR-10's training images, with A2's learning rate and all
else but what the commands below change. The loss is of mixed images; answering {CHANCE:.0%} for each class has a loss
of {CHANCE_LOSS:.4f}. Top-1 is on {CLASSES * VALIDATION_IMAGES:,} validation images, {VALIDATION_IMAGES} of each class;
chance is {CHANCE:.0%}. "Reloaded" is what validate.py finds for the final checkpoint, which does not hold the filters,
in a network built with another filter seed; "filters" counts the frozen layers of that network whose filters and record
have the bits of a new one's. One run each: they show that the recipe trains, not how good a network gets. The seconds
compare nothing, the machine may have had other work.

| network | pixels | steps | train loss, first and last epoch | top-1 | reloaded | filters | seconds |
|---|---|---|---|---|---|---|---|"""


class Run(NamedTuple):
    model: str
    pixels: int
    epochs: int

    @property
    def name(self):
        return f'{self.model}-{self.pixels}'

    @property
    def steps(self):
        return self.epochs * (TRAIN_IMAGES * CLASSES // BATCH)

    def arguments(self):
        """Return the arguments of train.py that say what is trained, as one would type them."""
        return f'{TRAIN} {IMAGES}'.format(**self._asdict(), batch=BATCH, classes=CLASSES)

    def validation_arguments(self):
        """Return those of validate.py; the network has another filter seed than the trained one."""
        images = IMAGES.format(**self._asdict(), batch=BATCH, classes=CLASSES)
        return f'--model {self.model} --model-kwargs seed=1 {images} --amp --channels-last {TEST}'


RUNS = (
    Run('lc_resnet50', 32, 6),
    Run('lc_resnet50', 64, 4),
    Run('lc_resnext50_32x4d', 32, 4),
    Run('lc_wide_resnet50_2', 32, 4),
    Run('lc_mobilenetv2_100', 32, 4),
    Run('lc_mobilenetv3_large_100', 32, 4),
    Run('lc_resnet18', 32, 4),
    Run('lc_resnet50d', 32, 4),
)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Example: TIMM_SCRIPTS=pytorch-image-models python benchmarks/recipes.py --data-dir CIFAR10',
    )
    parser.add_argument('--data-dir', type=Path, required=True, help='ImageFolder of 10 classes: train/, validation/')
    parser.add_argument(
        '--output', type=Path, default=Path('output/recipes'), help='folder of runs (default: %(default)s)'
    )
    parser.add_argument('--report', type=Path, default=ROOT / 'results', help='folder of the table (default: results)')
    args = parser.parse_args(argv)
    scripts = Path(os.environ.get('TIMM_SCRIPTS', '.')).resolve()
    if not (scripts / 'train.py').is_file():
        parser.error(f'no train.py in {scripts}: set TIMM_SCRIPTS to a checkout of pytorch-image-models')
    output = args.output.resolve()
    link_images(args.data_dir.resolve(), output / 'images')
    rows = [row for run in RUNS if (row := finish(run, scripts, output))]
    args.report.mkdir(parents=True, exist_ok=True)
    (args.report / 'recipes.md').write_text(as_markdown(rows))
    print(as_markdown(rows))
    return 0 if all(row['holds'] for row in rows) else 1


def link_images(source, target):
    """Make an ImageFolder of links to the first images of each class."""
    for split, count in (('train', TRAIN_IMAGES), ('validation', VALIDATION_IMAGES)):
        for label in sorted((source / split).iterdir()):
            folder = target / split / label.name
            folder.mkdir(parents=True, exist_ok=True)
            for image in sorted(label.iterdir())[:count]:
                if not (folder / image.name).exists():
                    (folder / image.name).symlink_to(image)


def finish(run, scripts, output):
    """Train unless the folder holds the finished run; return the row of the table."""
    folder = output / run.name
    if len(summary(folder)) < run.epochs:
        shutil.rmtree(folder, ignore_errors=True)
        seconds = train(run, scripts, output)
        (folder / 'run.json').write_text(json.dumps({'seconds': seconds, **environment(scripts)}, indent=1))
    epochs = summary(folder)
    losses, top1 = [float(epoch['train_loss']) for epoch in epochs], float(epochs[-1]['eval_top1'])
    same, total = compare_filters(run, folder / 'last.pth.tar')
    reloaded = validate(run, scripts, output)
    holds = losses[-1] < losses[0] and top1 > 100 * CHANCE and same == total and reloaded == top1
    row = {'run': run, 'losses': losses, 'top1': top1, 'reloaded': reloaded, 'filters': (same, total), 'holds': holds}
    return row | json.loads((folder / 'run.json').read_text())


def summary(folder):
    path = folder / 'summary.csv'
    return list(csv.DictReader(path.open())) if path.is_file() else []


def train(run, scripts, output):
    """Run train.py; return its seconds."""
    where = ['--data-dir', output / 'images', '--output', output, '--experiment', run.name, '--checkpoint-hist', 1]
    start = time.perf_counter()
    execute([scripts / 'train.py', *run.arguments().split(), *where], output / f'{run.name}.log')
    return time.perf_counter() - start


def validate(run, scripts, output):
    """Return the top-1 that validate.py finds for the final checkpoint, in percent."""
    where = ['--data-dir', output / 'images', '--checkpoint', output / run.name / 'last.pth.tar']
    log = output / f'{run.name}-validate.log'
    execute(['-m', 'timm_lc', 'run', scripts / 'validate.py', *run.validation_arguments().split(), *where], log)
    return json.loads(log.read_text().split('--result')[1])['top1']


def execute(arguments, log):
    print(f'{time.strftime("%H:%M:%S")} {log.stem}', file=sys.stderr, flush=True)
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    with log.open('w') as file:
        command = [sys.executable, *map(str, arguments)]
        subprocess.run(
            command, check=True, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=os.environ | {'PYTHONPATH': path}
        )


def compare_filters(run, checkpoint):
    """Return how many frozen layers, and of how many, have the bits of a new network after loading into another."""
    fresh = timm.create_model(run.model, num_classes=CLASSES)
    trained = timm.create_model(run.model, num_classes=CLASSES, seed=1, checkpoint_path=str(checkpoint))
    layers = [name.removesuffix('.record') for name in fresh.state_dict() if name.endswith('.record')]
    same = sum(same_filters(fresh.get_submodule(name), trained.get_submodule(name)) for name in layers)
    return same, len(layers)


def same_filters(layer, other):
    return torch.equal(layer.weight, other.weight) and torch.equal(layer.record, other.record)


def environment(scripts):
    """Return hardware and versions; train.py takes timm from its own folder where there is one."""
    code = 'import sys; sys.path.insert(0, sys.argv[1]); import timm; print(timm.__version__)'
    run = subprocess.run([sys.executable, '-c', code, str(scripts)], check=True, capture_output=True, text=True)
    threads = f'OMP_NUM_THREADS={os.environ.get("OMP_NUM_THREADS", "not set")}'
    return {
        'hardware': f'{describe_device(torch.device("cpu"))}, {os.cpu_count()} cores, {threads}',
        'versions': f'python {platform.python_version()}, torch {metadata.version("torch")}, '
        f'timm {run.stdout.strip()} (train.py) and {timm.__version__} (validate.py)',
    }


def as_markdown(rows):
    """Return the table, the commands and what they ran on."""
    lines = [HEAD, *map(as_row, rows), '', '```bash']
    lines += [f'python train.py {row["run"].arguments()} --data-dir IMAGES' for row in rows]
    lines += ['```', '', *sorted({f'{row["hardware"]}; {row["versions"]}.' for row in rows})]
    return '\n'.join([*lines, ''])


def as_row(row):
    run, (same, total) = row['run'], row['filters']
    losses = f'{row["losses"][0]:.4f}, {row["losses"][-1]:.4f}'
    accuracies = f'{row["top1"]:.2f} % | {row["reloaded"]:.2f} %'
    return (
        f'| {run.model} | {run.pixels} | {run.steps} | {losses} | {accuracies} | {same} of {total} | '
        f'{row["seconds"]:.0f} |'
    )


if __name__ == '__main__':
    sys.exit(main())
