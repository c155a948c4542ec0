"""The comparison of ways to adapt a network: which runs there are, and their table and picture.

A base learns five classes of CIFAR-10. Each way then adapts it to the other five, from few and from more images of
each, and to handwritten digits. Each learning rate is tried with each seed; a way is told at the better of its means.
"""

import copy
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from timm_lc.analysis.intervals import paired_interval
from timm_lc.checkpoints.checkpoint import WEIGHTS, load_model, save_pretrained
from timm_lc.paper.plots import scatter
from timm_lc.training.adapting import METHODS, Tuning, choose, learn, shrink, stored_bytes
from timm_lc.training.data import Images, load_images
from timm_lc.training.files import append_line, read_lines

__all__ = ['Plan', 'draw', 'run_plan', 'table']

NETWORK = 'lc_lowres_resnet20'
RUNS, BASE = 'runs.jsonl', 'base'
OLD, NEW = [0, 1, 2, 3, 4], [5, 6, 7, 8, 9]
FULL = 'full fine-tuning'


class Task(NamedTuple):
    """Images to adapt to, for how many epochs, and whether they may be mirrored."""

    name: str
    images: Callable[[int], Images]
    epochs: int
    flips: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is compared.

    Args:
        data: As in `load_images`: ten classes of which five teach the base.
        pixels: Sides of all images.
        base_epochs: Of the base's training.
        seeds: Of training, each drawing images of its own.
        lrs: Learning rates.
        effort: Factor of the epochs of all tasks.
        amp: Whether to compute under bfloat16 autocast.
    """

    data: str = 'cifar10'
    pixels: int = 32
    base_epochs: int = 15
    seeds: int = 3
    lrs: tuple[float, ...] = (0.03, 0.1)
    effort: float = 1.0
    amp: bool = False


def run_plan(plan: Plan, output: Path, tell: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Do the runs that `output` does not hold yet, each kept as it ends; return all."""
    images = shrink(load_images(plan.data), plan.pixels)
    old = choose(images, OLD)
    base = _base(plan, old, output, tell)
    done = read_lines(output / RUNS)
    for seed, task, method, lr in _runs(plan, images):
        key = {'task': task.name, 'method': method, 'lr': lr, 'seed': seed}
        if any(key.items() <= line.items() for line in done):
            continue
        line = {**key, **_adapt(plan, base, old, task, method, lr, seed)}
        append_line(output / RUNS, line)
        done.append(line)
        tell(f'{task.name}, {method}, lr {lr:g}, seed {seed}: {line["accuracy"]:.2f} %')
    return done


def table(runs: list[dict[str, Any]]) -> str:
    """Return a table in Markdown for each task: mean and deviation, against full fine-tuning, and what it costs."""
    parts = []
    for task in dict.fromkeys(run['task'] for run in runs):
        best = _best(runs, task)
        lines = [
            f'### {task}\n',
            '| what learns | accuracy, % | against full fine-tuning | lr | weights | bytes of a file |',
            '|---|---|---|---|---|---|',
        ]
        for method, (lr, found) in best.items():
            values = [run['accuracy'] for run in found]
            spread = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
            lines.append(
                f'| {method} | {statistics.fmean(values):.2f}{spread} | {_against_full(best, found)} | {lr:g} '
                f'| {found[0]["weights"]:,} | {found[0]["bytes"]:,} |'
            )
        parts.append('\n'.join(lines))
    return '\n\n'.join(parts) + '\n'


def draw(runs: list[dict[str, Any]]) -> Any:
    """Return the figure: accuracy over bytes, a group for each task."""
    groups = []
    for style, task in enumerate(dict.fromkeys(run['task'] for run in runs)):
        best = _best(runs, task)
        points = {m: (f[0]['bytes'], statistics.fmean(run['accuracy'] for run in f)) for m, (_, f) in best.items()}
        adapters = [point for method, point in points.items() if method.startswith('adapter')]
        others = [point for method, point in points.items() if not method.startswith('adapter')]
        groups += [(f'{task}: adapters', adapters, style, True), (f'{task}: other ways', others, style, False)]
    return scatter(groups, 'bytes to keep for one more task', 'accuracy, %')


def _runs(plan: Plan, images: Images) -> Iterator[tuple[int, Task, str, float]]:
    """Yield the runs, all of one task before the next, and of one seed before the next."""
    for task in _tasks(plan, images):
        for seed in range(plan.seeds):
            for method in METHODS:
                for lr in plan.lrs:
                    yield seed, task, method, lr


def _tasks(plan: Plan, images: Images) -> list[Task]:
    def epochs(count: int) -> int:
        return max(1, math.ceil(count * plan.effort))

    def digits(seed: int) -> Images:
        return choose(shrink(load_images('digits'), plan.pixels), list(range(10)), 50, seed)

    return [
        Task('five other classes, 50 images each', lambda seed: choose(images, NEW, 50, seed), epochs(40), True),
        Task('digits, 50 images each', digits, epochs(20), False),
        Task('five other classes, 500 images each', lambda seed: choose(images, NEW, 500, seed), epochs(10), True),
    ]


def _base(plan: Plan, old: Images, output: Path, tell: Callable[[str], None]) -> nn.Module:
    """Return the base, trained unless `output` holds it."""
    if not (output / BASE / WEIGHTS).is_file():
        torch.manual_seed(0)
        model = timm.create_model(NETWORK, freeze_spatial=False, num_classes=len(OLD))
        tuning = Tuning(plan.base_epochs, lr=0.1, batch_size=128, warmup=200, amp=plan.amp)
        accuracy = learn(model.to(memory_format=torch.channels_last), old, tuning, 0, normalize=old.normalize)
        save_pretrained(model.to(memory_format=torch.contiguous_format), output / BASE, card='')
        tell(f'base: {accuracy:.2f} % of {len(OLD)} classes')
    return load_model(output / BASE)


def _adapt(plan: Plan, base: nn.Module, old: Images, task: Task, method: str, lr: float, seed: int) -> dict[str, Any]:
    images = task.images(seed)
    torch.manual_seed(seed)
    model: Any = copy.deepcopy(base)
    model.reset_classifier(len(images.classes))
    model = METHODS[method](model.to(memory_format=torch.channels_last))
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    begun = time.process_time()
    tuning = Tuning(task.epochs, lr, amp=plan.amp)
    accuracy = learn(model, images, tuning, seed, normalize=old.normalize, flips=task.flips)
    seconds = time.process_time() - begun
    return {'accuracy': accuracy, 'weights': weights, 'bytes': stored_bytes(model), 'cpu_seconds': seconds}


def _best(runs: list[dict[str, Any]], task: str) -> dict[str, tuple[float, list[dict[str, Any]]]]:
    """Return for each method the learning rate of the best mean, and its runs in the order of seeds."""
    best = {}
    for method in METHODS:
        found: dict[float, list[dict[str, Any]]] = {}
        for run in runs:
            if (run['task'], run['method']) == (task, method):
                found.setdefault(run['lr'], []).append(run)
        if found:
            lr = max(found, key=lambda lr: statistics.fmean(run['accuracy'] for run in found[lr]))
            best[method] = lr, sorted(found[lr], key=lambda run: run['seed'])
    return best


def _against_full(best: dict[str, Any], found: list[dict[str, Any]]) -> str:
    """Return the mean difference from full fine-tuning over the same seeds, with its 95 % interval."""
    full = {run['seed']: run['accuracy'] for run in best.get(FULL, (0, []))[1]}
    differences = [run['accuracy'] - full[run['seed']] for run in found if run['seed'] in full]
    if not differences or found[0]['method'] == FULL:
        return ''
    interval = paired_interval(differences)
    bounds = f' ({interval[0]:+.1f} to {interval[1]:+.1f})' if interval else ''
    return f'{statistics.fmean(differences):+.2f}{bounds}'
