"""The paper's CIFAR training (appendix C), exactly: 75 epochs of SGD on images that live on the device.

Where it is silent we follow the authors' public trainer: an epoch's incomplete last batch is kept (196 steps of 256 on
CIFAR-10), and the learning rate falls with each step, not each epoch.

All randomness of an epoch, order and augmentation, is a function of (seed, epoch), and the state after an epoch is
saved: a run that was killed goes on with the same weights, to the bit on the same CPU with as many threads and the
same `Speed`.
"""

import copy
import dataclasses
import json
import math
import multiprocessing
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from timm_lc._timm import describe_images
from timm_lc.checkpoints.checkpoint import WEIGHTS, save_pretrained
from timm_lc.checkpoints.reading import read_checkpoint
from timm_lc.naming import name_classes
from timm_lc.training.account import differences, run_facts
from timm_lc.training.data import Images, augment
from timm_lc.training.files import append_line, read_json, read_lines, whole, write_lines, write_text
from timm_lc.training.recipe import Recipe, Run, Speed

__all__ = [
    'METRICS',
    'RUN',
    'STATE',
    'VALUES',
    'OutOfTime',
    'claim',
    'describe_device',
    'epoch_draws',
    'evaluate',
    'learning_rate',
    'train',
    'versions',
]

METRICS, STATE, RUN, VALUES = 'metrics.jsonl', 'state.pt', 'run.json', 'values.json'
# Images evaluated at a time; malloc maps a CPU's larger activations anew for each, which takes a third longer
EVALUATED = {'cuda': 1000, 'cpu': 250}
SAVE_SECONDS = 10.0  # between states: writing one takes longer than a short epoch


class OutOfTime(Exception):
    """Training stopped after an epoch, to go on later: the next one would end past its deadline."""


def train(
    run: Run,
    images: Images,
    directory: Path,
    device: torch.device,
    speed: Speed | None = None,
    *,
    deadline: float = math.inf,
) -> float:
    """Train, or go on with what `directory` holds, and return the final validation accuracy in percent.

    Writes `run.json`, one line an epoch in `metrics.jsonl`, `state.pt` to resume from, and in the end a checkpoint of
    `save_pretrained`.

    Args:
        run: What to train.
        images: On any device.
        directory: Of this run alone.
        device: Where to train.
        speed: How; None is the best for the device.
        deadline: Time of `time.monotonic` that no epoch should end after.

    Raises:
        ValueError: If `directory` holds another run, there are fewer images than a batch where the last one is
            dropped, or the network does not take them.
        OutOfTime: If another epoch would end after `deadline`.
    """
    speed = speed or Speed.best_for(device)
    if not run.recipe.steps(len(images.train)):
        size = run.recipe.batch_size
        raise ValueError(f'`batch_size` {size} must not exceed the {len(images.train)} training images')
    model, optimizer = _create(run, images, device, speed)
    claim(directory, run, images, device, speed)
    start = _resume(directory, model, optimizer, speed)
    if start < run.recipe.epochs:
        with _random_state_kept(device):
            images = images.map(lambda tensor: tensor.to(device))
            _train_epochs(model, optimizer, run, images, directory, speed, start, deadline)
    last = read_lines(directory / METRICS)[-1]
    name_classes(model, images.classes)
    save_pretrained(model, directory, facts=run_facts(run, images.name, last, images.limit, amp=speed.amp))
    return float(last['accuracy'])


def _train_epochs(
    model: nn.Module,
    optimizer: Any,
    run: Run,
    images: Images,
    directory: Path,
    speed: Speed,
    start: int,
    deadline: float,
) -> None:
    """Train from epoch `start` on; each leaves a line of metrics, and every few seconds a state."""
    epochs, steps = run.recipe.epochs, run.recipe.steps(len(images.train))
    # two graphs, for steps and for validation: their sizes differ, which else would make one of variable size
    trained = torch.compile(model, mode='reduce-overhead', dynamic=False) if speed.compile else model
    saved, fastest = time.monotonic(), math.inf
    disable = multiprocessing.parent_process() is not None or None  # bars of several processes overwrite one another
    with tqdm(total=epochs * steps, initial=start * steps, unit='step', disable=disable) as bar:
        for epoch in range(start, epochs):
            started = time.monotonic()
            bar.set_description(f'{run.model} seed {run.seed} epoch {epoch + 1}/{epochs}')
            line = _train_epoch(trained, optimizer, run, images, epoch, speed, bar)
            line.update(evaluate(trained, images, speed), seconds=round(time.monotonic() - started, 3))
            append_line(directory / METRICS, line)
            _show(line, run, bar)
            fastest = min(fastest, line['seconds'])  # the first epoch may compile
            is_last, is_late = epoch + 1 == epochs, time.monotonic() + fastest > deadline
            if is_last or is_late or time.monotonic() > saved + SAVE_SECONDS:
                _save_state(directory, model, optimizer, epoch + 1)
                saved = time.monotonic()
            if is_late and not is_last:
                raise OutOfTime


def _show(line: dict[str, Any], run: Run, bar: tqdm) -> None:
    """Show an epoch's accuracy in the bar, or as a line where there is none, as in a log file."""
    bar.set_postfix(accuracy=f'{line["accuracy"]:.2f}%')
    if bar.disable:
        place = f'{run.model} seed {run.seed} epoch {line["epoch"]}/{run.recipe.epochs}'
        print(
            f'{place}: loss {line["loss"]:.4f}, accuracy {line["accuracy"]:.2f} %, {line["seconds"]:.0f} s', flush=True
        )


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of a step in [0, steps), the first half of a cosine."""
    return recipe.lr * (1 + math.cos(math.pi * step / steps)) / 2


def epoch_draws(seed: int, epoch: int, count: int, padding: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is random in an epoch: the order of images (N,), flips (N,), and crop offsets (N, 2)."""
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order = torch.randperm(count, generator=generator)
    flips = torch.rand(count, generator=generator) < 0.5
    return order, flips, torch.randint(2 * padding + 1, (count, 2), generator=generator)


@torch.no_grad()
def evaluate(
    model: nn.Module, images: Images, speed: Speed | None = None, batch_size: int | None = None
) -> dict[str, float]:
    """Return cross entropy and accuracy (percent) on the validation images."""
    model.eval()
    loss, correct, count = 0.0, 0, len(images.validation)
    batch_size = batch_size or EVALUATED.get(images.validation.device.type, 1000)
    for start in range(0, count, batch_size):
        labels = images.validation_labels[start : start + batch_size]
        batch = images.normalize(images.validation[start : start + batch_size])
        logits = _forward(model, batch, speed or Speed())
        loss += cross_entropy(logits, labels, reduction='sum').item()
        correct += int((logits.argmax(1) == labels).sum())
    return {'validation_loss': loss / count, 'accuracy': 100 * correct / count}


def _train_epoch(
    model: nn.Module, optimizer: Any, run: Run, images: Images, epoch: int, speed: Speed, bar: tqdm
) -> dict[str, Any]:
    """Train for one epoch; return its line of metrics."""
    model.train()
    _seed((run.seed << 20) + epoch, images.train.device)  # of dropout, if a model has any
    recipe, losses = run.recipe, []
    steps = recipe.steps(len(images.train))
    for step, (batch, labels) in enumerate(_batches(images, run, epoch)):
        for group in optimizer.param_groups:
            group['lr'] = learning_rate(recipe, epoch * steps + step, recipe.epochs * steps)
        loss = cross_entropy(_forward(model, batch, speed), labels, label_smoothing=recipe.smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        bar.update()
    loss = torch.stack(losses).mean().item()
    if not math.isfinite(loss):
        raise ValueError(f'`lr` {recipe.lr}: the loss of epoch {epoch + 1} is {loss}')
    return {'epoch': epoch + 1, 'loss': loss}


def _batches(images: Images, run: Run, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the normalised batches of an epoch, augmented unless the set is not to be, and their labels."""
    recipe, device = run.recipe, images.train.device
    draws = epoch_draws(run.seed, epoch, len(images.train), recipe.padding)
    order, flips, offsets = (draw.to(device) for draw in draws)
    for step in range(recipe.steps(len(order))):
        part = slice(step * recipe.batch_size, (step + 1) * recipe.batch_size)
        batch = images.train[order[part]]
        if images.augmented:
            batch = augment(batch, flips[part], offsets[part], recipe.padding)
        yield images.normalize(batch), images.train_labels[order[part]]


def _forward(model: nn.Module, batch: Tensor, speed: Speed) -> Tensor:
    """Return the logits in float32."""
    if speed.channels_last:
        batch = batch.contiguous(memory_format=torch.channels_last)
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=speed.amp):
        return model(batch).float()


def _create(run: Run, images: Images, device: torch.device, speed: Speed) -> tuple[nn.Module, Any]:
    """Return the network, drawn by the run's seed, and its optimizer."""
    recipe = run.recipe
    with _random_state_kept(device):
        _seed(run.seed, device)
        arguments = {'num_classes': len(images.classes), 'in_chans': images.train.shape[1], **run.model_kwargs}
        model = timm.create_model(run.model, **arguments).to(device)
    mean, std = (values.tolist() for values in images.statistics)
    describe_images(model, tuple(images.train.shape[1:]), mean, std)
    if speed.channels_last:
        model.to(memory_format=torch.channels_last)
    with _random_state_kept(device):
        _check_takes(model, images.map(lambda tensor: tensor[:2].to(device)), run, speed, len(images.train))
    penalty = {'opt': 'l1sgd', 'l1': recipe.l1} if recipe.l1 else {'opt': 'sgd'}
    optimizer = create_optimizer_v2(
        list(model.parameters()), lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum, **penalty
    )
    return model, optimizer


def _check_takes(model: nn.Module, two: Images, run: Run, speed: Speed, count: int) -> None:
    """Refuse, before anything is written, images that the network does not take, or a last batch of one of them."""
    try:
        evaluate(model, two, speed)
    except (RuntimeError, IndexError, AssertionError) as error:
        size = ' x '.join(map(str, two.train.shape[1:]))
        raise ValueError(f'`model` {run.model} {run.model_kwargs} does not take images of {size}: {error}') from error
    batch_size = run.recipe.batch_size
    if count % batch_size == 1 and not run.recipe.drop_last:
        try:
            _forward(copy.deepcopy(model).train(), two.normalize(two.train[:1]), speed)
        except ValueError as error:  # a norm over a single value
            text = f'`batch_size` {batch_size} leaves a last batch of 1 of the {count} images, too few for {run.model}'
            raise ValueError(f'{text}: {error}') from error


def _random_state_kept(device: torch.device) -> AbstractContextManager[None]:
    """Return what leaves the random state of the CPU and of `device` as it was, the only ones that training moves."""
    return torch.random.fork_rng([device] if device.type == 'cuda' else [])


def _seed(seed: int, device: torch.device) -> None:
    """Seed the random numbers of the CPU and of `device`; `torch.manual_seed` does it to every GPU."""
    if device.type not in ('cpu', 'cuda'):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if device.type == 'cuda':
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def claim(directory: Path, run: Run, images: Images, device: torch.device, speed: Speed) -> None:
    """Write `run.json` into a folder, or check that the network or the values in it are of this run.

    Raises:
        ValueError: If it is of another run, or of other images.
    """
    path = directory / RUN
    sizes = [len(images.train), len(images.validation)]
    what = {**dataclasses.asdict(run), 'data': images.name, 'images': sizes, 'checksum': images.checksum}
    what = json.loads(json.dumps(what))  # as the file tells it: lists for tuples
    if any((directory / name).is_file() for name in (STATE, WEIGHTS, VALUES)):
        known = read_json(path).get('run', {})
        differing = differences(known, what)
        if differing:
            raise ValueError(f'{directory} holds another run: {", ".join(differing)}; give another folder')
        return
    write_text(path, json.dumps({'run': what, 'where': _where(device, speed)}, indent=2) + '\n')


def _where(device: torch.device, speed: Speed) -> dict[str, Any]:
    machine = {'device': describe_device(device), 'threads': torch.get_num_threads()}
    return {**machine, **versions(), **dataclasses.asdict(speed)}


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    return {'python': platform.python_version(), 'torch': torch.__version__, 'timm': timm.__version__}


def describe_device(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    info = Path('/proc/cpuinfo')
    lines = info.read_text(encoding='utf-8').splitlines() if info.is_file() else []
    names = [line.partition(': ')[2] for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def _resume(directory: Path, model: nn.Module, optimizer: Any, speed: Speed) -> int:
    """Load the state of an interrupted run, if there is one; return the number of finished epochs."""
    path = directory / STATE
    if not path.is_file():
        (directory / METRICS).unlink(missing_ok=True)
        return 0
    where = read_json(directory / RUN)['where']
    if where.get('amp') != speed.amp:
        raise ValueError(f'`amp` must be {where.get("amp")}, as when {directory} was begun, got {speed.amp}')
    if changed := differences(where, _where(next(model.parameters()).device, speed)):
        print(f'{directory}: {", ".join(changed)}: the run goes on with other rounding')
    try:
        state = read_checkpoint(path)
        model.load_state_dict(state['model'])
        optimizer.load_state_dict(state['optimizer'])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f'{path} is damaged: {error!r}; without it the run begins anew') from error
    finished = [line for line in read_lines(directory / METRICS) if line['epoch'] <= state['epoch']]
    if [line['epoch'] for line in finished[-1:]] != [state['epoch']]:
        raise ValueError(
            f'{directory / METRICS} lacks epoch {state["epoch"]} of {path}; without {STATE} the run begins anew'
        )
    write_lines(directory / METRICS, finished)
    return int(state['epoch'])


def _save_state(directory: Path, model: nn.Module, optimizer: Any, epoch: int) -> None:
    state = {'epoch': epoch, 'model': model.state_dict(), 'optimizer': optimizer.state_dict()}
    try:
        with whole(directory / STATE) as partial:
            torch.save(state, partial)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(f'cannot write {directory / STATE}: {error}') from error
