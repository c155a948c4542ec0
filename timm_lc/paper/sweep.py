"""Accuracy of a trained network over the pruned share of its pointwise weights (appendix H, figure 19)."""

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from timm_lc.analysis.counting import count_parameters
from timm_lc.analysis.evaluation import accuracy, predict
from timm_lc.paper.plots import Curve, Panel, curves, require_plots, save
from timm_lc.training.files import write_text
from timm_lc.transforms.prune import check_amount, pointwise_sparsity, prune_pointwise

__all__ = ['Point', 'sweep', 'write_sweep']


class Point(NamedTuple):
    """A pruned network.

    Attributes:
        amount: Share of pointwise weights that was to be pruned, in [0, 1).
        accuracy: In percent.
        zeros: Pointwise weights that are zero.
        nonzero: All weights less these.
    """

    amount: float
    accuracy: float
    zeros: int
    nonzero: int


def sweep(model: nn.Module, amounts: Sequence[float], loader: DataLoader, device: torch.device) -> list[Point]:
    """Measure the accuracy of `model`, which stays as it is, pruned by each of `amounts`.

    Args:
        model: A trained network.
        amounts: Fractions of its pointwise weights to prune, in [0, 1), each time from the weights of `model`.
        loader: Batches of images (N, C_in, H, W) and labels (N,).
        device: Where to compute.

    Raises:
        TypeError: If an amount is not a number.
        ValueError: If an amount is out of range, or there is no pointwise convolution.
    """
    for amount in amounts:
        check_amount(amount)
    with tqdm(total=len(amounts) * len(loader), desc='pruning', unit='batch', disable=None) as bar:
        return [_point(model, amount, _counted(loader, bar), device) for amount in amounts]


def write_sweep(points: Sequence[Point], stem: Path, **about: Any) -> list[Path]:
    """Write a sweep as STEM.json, STEM.png and STEM.svg, each of which appears only when whole; return their paths.

    Args:
        points: Of one network.
        stem: Path without a suffix.
        **about: What else to say in the JSON file; `model` is the figure's title.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    require_plots()
    table, *drawings = (stem.with_name(f'{stem.name}.{suffix}') for suffix in ('json', 'png', 'svg'))
    write_text(table, json.dumps({**about, 'points': [point._asdict() for point in points]}, indent=1) + '\n')
    line = Curve('', [(point.amount, [point.accuracy]) for point in points])
    labels = 'pruned share of pointwise weights', 'accuracy [%]'
    figure = curves([Panel([line], *labels, title=about.get('model', ''), places=[point.amount for point in points])])
    for path in drawings:
        save(figure, path)
    return [table, *drawings]


def _point(model: nn.Module, amount: float, batches: Iterator[Any], device: torch.device) -> Point:
    pruned = prune_pointwise(copy.deepcopy(model), amount).to(device)
    percent = accuracy(*predict(pruned, batches, device))
    zeros = sum(layer.zeros for layer in pointwise_sparsity(pruned))
    return Point(amount, percent, zeros, count_parameters(pruned).nonzero)


def _counted(loader: DataLoader, bar: tqdm) -> Iterator[Any]:
    for batch in loader:
        yield batch
        bar.update()
