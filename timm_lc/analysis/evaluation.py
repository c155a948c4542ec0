"""Predictions and accuracy of a network on a folder of images, read and resized as timm's validate.py does."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset, create_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader

from timm_lc.arguments import check_count
from timm_lc.inputs import data_config

__all__ = ['accuracy', 'folder_dataset', 'folder_loader', 'predict']


def folder_loader(
    model: nn.Module, data_dir: str | Path, batch_size: int = 256, limit: int | None = None, split: str = 'validation'
) -> DataLoader:
    """Return batches of (images (N, C_in, H, W), labels (N,)), prepared as the data config of `model` says.

    Args:
        model: A network from `timm.create_model`.
        data_dir: ImageFolder tree, whose folder of `split` or a synonym of it is taken, or a folder of classes.
        batch_size: Images in a batch.
        limit: Images to take, evenly spaced over the sorted files, so of all classes; None takes all.
        split: Part of the tree.

    Raises:
        ValueError: If `data_dir` is no folder of images, its classes are not those of `model`, `model` takes no
            images of 1 or 3 channels, or `batch_size` or `limit` is not positive.
    """
    check_count('batch_size', batch_size)
    if limit is not None:
        check_count('limit', limit)
    config = _image_config(model)
    dataset = folder_dataset(data_dir, split, input_img_mode='L' if config['input_size'][0] == 1 else 'RGB')
    classes, num_classes = len(dataset.reader.class_to_idx), getattr(model, 'num_classes', None)
    if num_classes is not None and classes != num_classes:
        raise ValueError(f'`data_dir` {data_dir} has {classes} classes and the model {num_classes}')
    samples = dataset.reader.samples
    if limit is not None and limit < len(samples):
        dataset.reader.samples = [samples[index * len(samples) // limit] for index in range(limit)]
    workers = min(4, os.cpu_count() or 1)
    return create_loader(dataset, batch_size=batch_size, num_workers=workers, use_prefetcher=False, **config)


def _image_config(model: nn.Module) -> dict[str, Any]:
    """Return how timm prepares images for `model`."""
    config = data_config(model)
    channels = config['input_size'][0]
    if channels not in (1, 3):
        raise ValueError(f'the model takes {channels} channels, and images have 1 or 3')
    return config


def folder_dataset(data_dir: str | Path, split: str, **kwargs: Any) -> Any:
    """Return timm's dataset of a folder of classes, or of the part `split` of an ImageFolder tree.

    Args:
        data_dir: The folder.
        split: Part of the tree; ignored where there is none.
        **kwargs: Arguments of `timm.data.create_dataset`.

    Raises:
        ValueError: If there is no such folder, or no image in it.
    """
    if not Path(data_dir).is_dir():
        raise ValueError(f'`data_dir` must be a folder of images, got {str(data_dir)!r}, which is none')
    try:
        return create_dataset('', root=str(data_dir), split=split, **kwargs)
    except RuntimeError as error:
        raise ValueError(f'`data_dir` {data_dir}: {error}') from None


@torch.inference_mode()
def predict(model: nn.Module, loader: Iterable[Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Put `model` into eval mode; return the logits (N, classes) and labels (N,) of all images, on the CPU."""
    model.eval()
    batches = [(model(images.to(device)).cpu(), labels.cpu()) for images, labels in loader]
    return torch.cat([logits for logits, _ in batches]), torch.cat([labels for _, labels in batches])


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the accuracy in percent of logits (N, classes) for labels (N,).

    Example:
        >>> accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0]))
        75.0
    """
    return (logits.argmax(1) == labels).double().mean().item() * 100
