"""Time and memory of a step, as in table 3: a batch of 64 images of 32x32 pixels."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from timm_lc.analysis.counting import count_parameters
from timm_lc.analysis.intervals import mean_and_std
from timm_lc.analysis.memory import measure_memory
from timm_lc.analysis.timing import interleave, timed_step
from timm_lc.checkpoints.checkpoint import WEIGHTS, save_pretrained
from timm_lc.layers.lc_conv import LCConv2d
from timm_lc.paper.experiment import Variant
from timm_lc.transforms.prune import prune_pointwise

__all__ = ['build', 'checkpoint_bytes', 'measure_timing', 'two_convolutions']

SHAPE = (64, 3, 32, 32)
ROUNDS, MAX_SECONDS = 21, 60.0
MEBI = 2**20


def two_convolutions(model: nn.Module) -> nn.Module:
    """Make, in place, each LC-Block compute two convolutions, spatial and pointwise, as the paper's; return `model`."""
    for module in list(model.modules()):
        for name, block in list(module.named_children()):
            if isinstance(block, LCConv2d):
                setattr(module, name, nn.Sequential(block.spatial, block.pointwise))
    return model


def build(variant: Variant) -> nn.Module:
    """Return the untrained network of a variant, pruned and in its form."""
    model = timm.create_model(variant.model, **variant.model_kwargs)
    if variant.amount:
        prune_pointwise(model, variant.amount)
    return two_convolutions(model) if variant.two_convolutions else model


def measure_timing(variant: Variant, device: torch.device) -> dict[str, Any]:
    """Measure table 3's columns: times in ms with the deviation over rounds, memory and checkpoint in MiB."""
    model = build(variant)
    size = checkpoint_bytes(model, sparse=variant.amount > 0, whole=variant.two_convolutions)
    values: dict[str, Any] = {'checkpoint': size / MEBI}
    step = timed_step(model.to(device), torch.rand(SHAPE, device=device))
    seconds = interleave({'': step}, ROUNDS, max_seconds=MAX_SECONDS)['']
    for name in ('forward', 'both'):
        mean, std = mean_and_std(seconds[name])
        values |= {f'{name}_ms': 1e3 * mean, **({f'{name}_ms_std': 1e3 * std} if std is not None else {})}
    del model, step
    memory = measure_memory(functools.partial(build, variant), SHAPE, device)
    return values | {name: peak / MEBI for name, peak in memory.items()}


def checkpoint_bytes(model: nn.Module, *, sparse: bool, whole: bool) -> int:
    """Return the bytes of our checkpoint; or, as of the paper's, of all weights, a shared vector once."""
    if whole:
        return 4 * count_parameters(model).total
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, sparse=sparse, card='')
        return Path(folder, WEIGHTS).stat().st_size
