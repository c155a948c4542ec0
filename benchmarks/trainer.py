"""The CIFAR trainer's epoch over bare forward and backward passes, and two runs in turn over two at once.

Both are of random images; epochs are interleaved with as many bare steps. Example: python benchmarks/trainer.py
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch
from torch.nn.functional import cross_entropy

import timm_lc  # noqa: F401  # registers the names
from timm_lc.paper.runs import train_once
from timm_lc.training.data import Images
from timm_lc.training.parallel import in_parallel
from timm_lc.training.recipe import Recipe, Run
from timm_lc.training.trainer import METRICS, evaluate, train

CPU = torch.device('cpu')


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', default='lc_lowres_resnet20', help='(default: %(default)s, learnable)')
    parser.add_argument('--images', type=int, default=5000, help='a fifth as many validate (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=5, help='(default: %(default)s)')
    args = parser.parse_args(argv)
    images = random_images(args.images)
    run = Run(args.model, {'freeze_spatial': False}, recipe=Recipe(epochs=1))
    ratio, share = over_bare(run, images, args.rounds)
    threads = torch.get_num_threads()
    print(
        f'{threads} threads: an epoch takes {ratio:.3f} of bare forward and backward; evaluation is {share:.3f} of it'
    )
    in_turn, at_once = (seconds_of(run, images, jobs) for jobs in (1, 2))
    print(f'two runs: {in_turn:.1f} s one after the other, {at_once:.1f} s at once with half the threads each')
    return 0


def random_images(count):
    """Return a set of 32 x 32 pixels that mean nothing."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count + count // 5, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(len(pixels)) % 10
    classes = [str(label) for label in range(10)]
    return Images('random', classes, pixels[:count], labels[:count], pixels[count:], labels[count:])


def over_bare(run, images, rounds):
    """Return the median of an epoch over bare steps, and the share of evaluation in it; the first round warms up."""
    model = timm.create_model(run.model, **run.model_kwargs).to(memory_format=torch.channels_last)
    ratios, shares = [], []
    for _ in range(rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            train(run, images, Path(folder), CPU)
            epoch = json.loads(Path(folder, METRICS).read_text().splitlines()[-1])['seconds']
        bare = clocked(lambda: bare_steps(model.train(), run, images))
        ratios.append(epoch / bare)
        shares.append(clocked(lambda: evaluate(model, images)) / epoch)
    return statistics.median(ratios[1:]), statistics.median(shares[1:])


def bare_steps(model, run, images):
    """Do as many forward and backward passes as an epoch has steps, nothing else."""
    shape = (run.recipe.batch_size, *images.train.shape[1:])
    batch, labels = torch.rand(shape).to(memory_format=torch.channels_last), torch.arange(shape[0]) % 10
    for _ in range(run.recipe.steps(len(images.train))):
        model.zero_grad()
        cross_entropy(model(batch), labels).backward()


def seconds_of(run, images, jobs):
    """Return the seconds that two runs of three epochs take, so many at a time, less what starting processes takes."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = dataclasses.replace(run.recipe, epochs=3)
        runs = [dataclasses.replace(run, seed=seed, recipe=recipe) for seed in (0, 1)]
        tasks = [(each, images, Path(folder, str(each.seed)), CPU) for each in runs]
        taken = [values['seconds'] for values in in_parallel(train_once, tasks, jobs)]
    return sum(taken) if jobs == 1 else max(taken)


def clocked(call):
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


if __name__ == '__main__':
    sys.exit(main())
