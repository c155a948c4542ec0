"""The comparison of ways to adapt a network: which runs there are.

A base learns five classes of CIFAR-10, or is trained already. Each way then adapts it to the other five, from few and
from more images of each, and to handwritten digits. Each learning rate is tried with each seed.
"""

import copy
import dataclasses
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from timm_lc.checkpoints.checkpoint import WEIGHTS, load_model, save_pretrained
from timm_lc.naming import PREFIX
from timm_lc.training.account import differences
from timm_lc.training.adapting import METHODS, Method, Tuning, by_length, choose, learn, shrink, stored_bytes
from timm_lc.training.data import Images, load_images
from timm_lc.training.files import append_line, lock, read_json, read_lines, write_lines, write_text
from timm_lc.transforms.fold import fold

__all__ = ['Plan', 'run_plan']

RUNS, BASE, PLAN = 'runs.jsonl', 'base', 'plan.json'
OLD, NEW = [0, 1, 2, 3, 4], [5, 6, 7, 8, 9]
SELECTING = ('seeds', 'lrs', 'lengths', 'rank', 'layers', 'tasks')  # what tells which runs there are, not what they do


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
        model: The base, by timm's name.
        pretrained: Whether to take it as it was trained already, not to train it.
        pixels: Sides of all images.
        base_epochs: Of the base's training.
        seeds: Of training, each drawing images of its own.
        lrs: Learning rates.
        effort: Factor of the epochs of all tasks.
        amp: Whether to compute under bfloat16 autocast.
        lengths: Of the rows of random filters to compare, with full fine-tuning; none compares all ways of `METHODS`.
        rank: Of the adapters of these lengths.
        layers: Which they adapt, as in `add_adapters`.
        tasks: Only tasks whose name this regular expression matches.
    """

    data: str = 'cifar10'
    model: str = 'lc_lowres_resnet20'
    pretrained: bool = False
    pixels: int = 32
    base_epochs: int = 15
    seeds: int = 3
    lrs: tuple[float, ...] = (0.03, 0.1)
    effort: float = 1.0
    amp: bool = False
    lengths: tuple[float, ...] = ()
    rank: int = 8
    layers: str = 'spatial'
    tasks: str = ''

    def __post_init__(self) -> None:
        for name in ('lrs', 'lengths', 'effort'):
            values = getattr(self, name)
            if not all(0 < value < math.inf for value in (values if isinstance(values, tuple) else [values])):
                raise ValueError(f'`{name}` must be positive and finite, got {values}')
        if not self.lengths and (self.rank, self.layers) != (Plan.rank, Plan.layers):
            raise ValueError('`rank` and `layers` are of the adapters of `lengths`: give those too')
        try:
            re.compile(self.tasks)
        except re.error as error:
            raise ValueError(f'`tasks` is no regular expression: {error}; got {self.tasks!r}') from None

    @property
    def methods(self) -> dict[str, Method]:
        """The ways to compare, by name."""
        return by_length(self.lengths, self.rank, self.layers) if self.lengths else METHODS


def run_plan(plan: Plan, output: Path, tell: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Do the runs that `output` does not hold yet, each kept as it ends; return all.

    Raises:
        ValueError: If `output` holds runs of another base or effort, or no task matches.
    """
    images = shrink(load_images(plan.data), plan.pixels)
    if len(images.classes) < len(OLD + NEW):
        raise ValueError(f'`data` must have {len(OLD + NEW)} classes or more, got {len(images.classes)}')
    tasks = [task for task in _tasks(plan, images) if re.search(plan.tasks, task.name)]
    if not tasks:
        raise ValueError(f'`tasks` must match the name of a task, got {plan.tasks!r}')
    _claim(plan, output)
    old = choose(images, OLD)
    with lock(output / RUNS):  # a second process waits, then finds all done
        base = _base(plan, old, output, tell)
        normalize = _normalize(base) if plan.pretrained else old.normalize
        done = read_lines(output / RUNS)
        write_lines(output / RUNS, done)  # without a line that was cut off
        for seed, task, method, lr in _runs(plan, tasks):
            key = {'task': task.name, 'method': method, 'lr': lr, 'seed': seed}
            if any(key.items() <= line.items() for line in done):
                continue
            line = {**key, **_adapt(plan, base, normalize, task, method, lr, seed)}
            append_line(output / RUNS, line)
            done.append(line)
            tell(f'{task.name}, {method}, lr {lr:g}, seed {seed}: {line["accuracy"]:.2f} %')
    return done


def _claim(plan: Plan, output: Path) -> None:
    """Write down what the runs in `output` are of, or refuse if it is something else."""
    present = {key: value for key, value in dataclasses.asdict(plan).items() if key not in SELECTING}
    found = differences(read_json(output / PLAN) or present, present)
    if found:
        raise ValueError(f'`output` {output} holds other runs: {"; ".join(found)}')
    write_text(output / PLAN, json.dumps(present, indent=2) + '\n')


def _runs(plan: Plan, tasks: list[Task]) -> Iterator[tuple[int, Task, str, float]]:
    """Yield the runs, all of one task before the next, and of one seed before the next."""
    for task in tasks:
        for seed in range(plan.seeds):
            for method in plan.methods:
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
    """Return the base, a plain network: trained unless it is, or `output` holds it."""
    if plan.pretrained:
        return fold(timm.create_model(plan.model, pretrained=True))
    if not (output / BASE / WEIGHTS).is_file():
        torch.manual_seed(0)
        plain = {'freeze_spatial': False} if plan.model.startswith(PREFIX) else {}
        model = timm.create_model(plan.model, num_classes=len(OLD), **plain)
        tuning = Tuning(plan.base_epochs, lr=0.1, batch_size=128, warmup=200, amp=plan.amp)
        accuracy = learn(model.to(memory_format=torch.channels_last), old, tuning, 0, normalize=old.normalize)
        save_pretrained(model.to(memory_format=torch.contiguous_format), output / BASE, card='')
        tell(f'base: {accuracy:.2f} % of {len(OLD)} classes')
    return fold(load_model(output / BASE))


def _normalize(base: Any) -> Callable[[Tensor], Tensor]:
    """Return how the images were normalised that a pretrained base learned."""
    mean, std = (torch.tensor(base.pretrained_cfg[key]).view(-1, 1, 1) for key in ('mean', 'std'))
    return lambda images: (images.float() / 255 - mean) / std


def _adapt(
    plan: Plan,
    base: nn.Module,
    normalize: Callable[[Tensor], Tensor],
    task: Task,
    method: str,
    lr: float,
    seed: int,
) -> dict[str, Any]:
    images = task.images(seed)
    torch.manual_seed(seed)
    model: Any = copy.deepcopy(base)
    model.reset_classifier(len(images.classes))
    model = plan.methods[method](model.to(memory_format=torch.channels_last))
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    begun = time.process_time()
    tuning = Tuning(task.epochs, lr, amp=plan.amp)
    accuracy = learn(model, images, tuning, seed, normalize=normalize, flips=task.flips)
    seconds = time.process_time() - begun
    return {'accuracy': accuracy, 'weights': weights, 'bytes': stored_bytes(model), 'cpu_seconds': seconds}
