"""Train a frozen-random network beside its learnable twin on real images, save, reload, fold.

Data, optimizer, scheduler, training task and checkpoints are timm's own parts.
"""

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.data import create_loader, resolve_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from timm.utils import CheckpointSaver
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from timm_lc._timm import describe_images
from timm_lc.analysis.counting import ParameterCount, count_parameters
from timm_lc.analysis.evaluation import accuracy, folder_dataset, predict
from timm_lc.arguments import check_count
from timm_lc.checkpoints.checkpoint import CONFIG, WEIGHTS, save_pretrained
from timm_lc.checkpoints.facts import Facts
from timm_lc.filters import check_seed
from timm_lc.naming import name_classes
from timm_lc.training.digits import Digits
from timm_lc.transforms.fold import fold

__all__ = ['demonstrate']

# A digit must not be mirrored or coloured; the crops are slight.
DIGITS_AUGMENTATION = {'hflip': 0.0, 'color_jitter': 0.0, 'scale': (0.8, 1.0), 'ratio': (0.9, 1.1)}
FOLDER_AUGMENTATION = {'hflip': 0.5, 'color_jitter': 0.0, 'scale': (0.6, 1.0), 'ratio': (0.9, 1.1)}


class Result(NamedTuple):
    """One trained network: accuracy in percent, seconds of training, bytes of its weights on disk."""

    name: str
    accuracy: float
    parameters: ParameterCount
    seconds: float
    size: int
    model: nn.Module
    path: Path


def demonstrate(model: str, *, epochs: int, seed: int, data_dir: Path | None, output: Path) -> None:
    """Train both networks, print the table, reload and fold the frozen one.

    Args:
        model: Name of an `lc_` model.
        epochs: Of training.
        seed: Of training; filters have their own.
        data_dir: ImageFolder tree with train/ and validation/; None is handwritten digits.
        output: Folder for the checkpoints.

    Raises:
        ValueError: If `epochs` is not positive, the data directory is of no use, or `output` holds runs of train.py.
    """
    check_count('epochs', epochs)
    check_seed(seed)
    for name in ('frozen', 'learnable'):
        if (output / name / 'args.yaml').exists():
            raise ValueError(f'`--output` {output}: {output / name} holds a run of train.py: give another')
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    data = _loaders(model, data_dir, device)
    results = []
    for label in ('frozen random', 'learnable'):
        torch.manual_seed(seed)
        arguments = {'num_classes': data.num_classes, 'freeze_spatial': label != 'learnable'}
        network = timm.create_model(model, **arguments).to(device)
        name_classes(network, data.classes)
        _describe_images(network)
        result = _train(label, network, data, epochs, output / label.split()[0], device)
        results.append(_save(result, data, f'timm-lc demo --model {model} --epochs {epochs} --seed {seed}', epochs))
    print(f'\n{model}, {epochs} epochs, {data.description}, {device.type}')
    _print_table(results)
    _reload_and_fold(results[0], data, device)


def _describe_images(network: nn.Module) -> None:
    """Save that the network is measured on whole images, of the size that it was trained on."""
    describe_images(network, *(network.pretrained_cfg[key] for key in ('input_size', 'mean', 'std')))


def _print_table(results: list[Result]) -> None:
    columns = ('accuracy', 'learnable', 'total', 'stored', 'seconds', 'on disk')
    widths = (10, 12, 12, 12, 9, 11)
    print(f'{"filters":<16}' + ''.join(f'{column:>{width}}' for column, width in zip(columns, widths, strict=True)))
    for result in results:
        counts = result.parameters
        print(
            f'{result.name:<16}{result.accuracy:>9.2f}%{counts.learnable:>12,}{counts.total:>12,}{counts.stored:>12,}'
            f'{result.seconds:>9.1f}{result.size / 1e6:>8.2f} MB'
        )


class _Data(NamedTuple):
    train: DataLoader
    held_out: DataLoader
    classes: list[str]
    description: str
    name: str
    option: str

    @property
    def num_classes(self) -> int:
        return len(self.classes)


def _loaders(model: str, data_dir: Path | None, device: torch.device) -> _Data:
    """Return timm's loaders for the digits, or for the splits `train` and `validation` of an ImageFolder tree."""
    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(model).to_dict(), verbose=False)
    if data_dir is None:
        train, held_out = (Digits(train=train, size=config['input_size'][-1]) for train in (True, False))
        classes, batch_size, workers, augmentation = [*map(str, range(10))], 64, 0, DIGITS_AUGMENTATION
        description = f'{len(train)} handwritten digits, {len(held_out)} held out'
    else:
        train, held_out = (_folder(data_dir, split) for split in ('train', 'validation'))
        classes, augmentation = list(train.reader.class_to_idx), FOLDER_AUGMENTATION
        batch_size = max(2, min(256, len(train) // 8))
        workers = min(4, os.cpu_count() or 1)
        description = f'{len(train)} images of {len(classes)} classes, {len(held_out)} held out'
        if len(classes) < 2 or train.reader.class_to_idx != held_out.reader.class_to_idx:
            raise ValueError(f'`--data-dir` {data_dir}: train/ and validation/ must hold the same two or more classes')
    common = {
        'input_size': config['input_size'], 'mean': config['mean'], 'std': config['std'], 'num_workers': workers,
        'interpolation': config['interpolation'], 'device': device, 'use_prefetcher': False,
    }  # fmt: skip
    return _Data(
        create_loader(train, batch_size=batch_size, is_training=True, **augmentation, **common),
        create_loader(held_out, batch_size=256, crop_pct=1.0, **common),
        classes,
        description,
        data_dir.resolve().name if data_dir else 'handwritten digits',
        ' --data-dir DIR' if data_dir else '',
    )


def _folder(root: Path, split: str) -> Any:
    if not (root / split).is_dir():
        raise ValueError(
            f'`--data-dir` {root} has no folder {split}/: an ImageFolder tree has train/CLASS/*.jpg '
            'and validation/CLASS/*.jpg'
        )
    return folder_dataset(root / split, split, search_split=False)  # a class may be named train


def _train(label: str, model: nn.Module, data: _Data, epochs: int, directory: Path, device: torch.device) -> Result:
    """Train one network and save it."""
    _empty(directory)
    optimizer = create_optimizer_v2(model, opt='sgd', lr=0.1, weight_decay=5e-4, momentum=0.9)
    scheduler, _ = create_scheduler_v2(
        optimizer, num_epochs=epochs, warmup_epochs=1, warmup_lr=0.01, step_on_epochs=False,
        updates_per_epoch=len(data.train),
    )  # fmt: skip
    task = ClassificationTask(model, nn.CrossEntropyLoss(), device=device, verbose=False)
    saver = CheckpointSaver(model, optimizer, checkpoint_dir=str(directory), recovery_dir=str(directory), max_history=1)
    started = time.perf_counter()
    with tqdm(total=epochs * len(data.train), desc=label, unit='step', mininterval=0.5, disable=None) as bar:
        for epoch in range(epochs):
            loss = _train_epoch(task, optimizer, scheduler, data.train, epoch, device, bar)
            percent = accuracy(*predict(model, data.held_out, device))
            bar.write(f'{label}: epoch {epoch + 1}/{epochs}, loss {loss:.4f}, held-out accuracy {percent:.2f}%')
            saver.save_checkpoint(epoch, metric=percent)
    seconds = time.perf_counter() - started
    return Result(label, percent, count_parameters(model), seconds, 0, model, directory / WEIGHTS)


def _empty(directory: Path) -> None:
    """Make a run's folder, or remove from it what an earlier demo left, whose checkpoints `push` would take."""
    directory.mkdir(parents=True, exist_ok=True)
    left = [path for path in directory.iterdir() if path.name in (WEIGHTS, CONFIG) or path.name.endswith('.pth.tar')]
    if left:
        print(f'{directory}: the network of an earlier run there is replaced', flush=True)
    for path in left:
        path.unlink()


def _save(result: Result, data: _Data, command: str, epochs: int) -> Result:
    """Save a trained network with what is to be told of it."""
    metrics = {'epoch': epochs - 1, 'eval_top1': result.accuracy}
    facts = Facts({'dataset': data.name}, metrics, command=f'{command}{data.option}')
    path = save_pretrained(result.model, result.path.parent, facts=facts) / WEIGHTS
    return result._replace(size=path.stat().st_size)


def _train_epoch(
    task: ClassificationTask,
    optimizer: Any,
    scheduler: Any,
    loader: DataLoader,
    epoch: int,
    device: torch.device,
    bar: tqdm,
) -> float:
    """Train for one epoch; return the mean loss."""
    task.train()
    losses = []
    for step, (images, labels) in enumerate(loader, start=epoch * len(loader) + 1):
        loss = task(images.to(device), labels.to(device))['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step_update(step)
        losses.append(loss.detach())
        bar.update()
    return torch.stack(losses).mean().item()


def _reload_and_fold(result: Result, data: _Data, device: torch.device) -> None:
    """Show that the file alone, and the stock network folded from it, predict the same."""
    reloaded = timm.create_model(f'local-dir:{result.path.parent}', pretrained=True).to(device)
    logits, labels = predict(reloaded, data.held_out, device)
    print(
        f'\nreloaded {result.path} through timm.create_model: accuracy {accuracy(logits, labels):.2f}% '
        f'(trained: {result.accuracy:.2f}%)'
    )
    stock = fold(reloaded)
    folded, _ = predict(stock, data.held_out, device)
    same = (folded.argmax(1) == logits.argmax(1)).double().mean().item() * 100
    count = sum(p.numel() for p in stock.parameters())
    print(
        f'folded into a stock network of {count:,} parameters: {same:.2f}% of predictions the same, '
        f'logits differ by at most {(folded - logits).abs().max().item():.1e}'
    )
