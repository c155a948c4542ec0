"""Time and memory of a step, as in table 3: a batch of 64 images of 32x32 pixels.

On a GPU memory is what torch has allocated; on Linux without one it is the growth of a fresh process's resident set.
"""

import functools
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from timm_lc.analysis.counting import count_parameters
from timm_lc.analysis.intervals import mean_and_std
from timm_lc.checkpoints.checkpoint import save_pretrained
from timm_lc.layers.lc_conv import LCConv2d
from timm_lc.paper.experiment import Variant
from timm_lc.transforms.prune import prune_pointwise

__all__ = ['build', 'measure_timing', 'time_calls', 'two_convolutions']

SHAPE = (64, 3, 32, 32)
ROUNDS, MAX_SECONDS, MIN_SECONDS = 7, 30.0, 0.5
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
    values: dict[str, Any] = {'checkpoint': _checkpoint_bytes(model, variant) / MEBI}
    forward, both = _steps(model.to(device).train(), device)
    for name, step in (('forward', forward), ('both', both)):
        mean, std = mean_and_std(time_calls(step, device))
        values |= {f'{name}_ms': 1e3 * mean, f'{name}_ms_std': 1e3 * std if std is not None else None}
    del model, forward, both
    return values | {name: peak / MEBI for name, peak in _memory(variant, device).items()}


def time_calls(
    step: Callable[[], object], device: torch.device, rounds: int = ROUNDS, max_seconds: float = MAX_SECONDS
) -> list[float]:
    """Return the mean seconds of a call in each of several rounds, fewer (but two) if they take too long.

    A round repeats the call for half a second or more; one call before warms up.
    """
    step()
    means: list[float] = []
    begun = time.perf_counter()
    while len(means) < rounds and (len(means) < 2 or time.perf_counter() - begun < max_seconds):
        _wait(device)
        started, calls = time.perf_counter(), 0
        while not calls or time.perf_counter() - started < MIN_SECONDS:
            step()
            calls += 1
            _wait(device)
        means.append((time.perf_counter() - started) / calls)
    return means


def _steps(model: nn.Module, device: torch.device) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a forward pass, and one followed by a backward pass."""
    images = torch.rand(SHAPE, device=device)

    def both() -> None:
        model.zero_grad()
        model(images).sum().backward()

    return functools.partial(model, images), both


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _checkpoint_bytes(model: nn.Module, variant: Variant) -> int:
    """Return the size of our checkpoint; of two convolutions, as the paper's, all weights with a shared vector once."""
    if variant.two_convolutions:
        return 4 * count_parameters(model).total
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, sparse=variant.amount > 0, card='')
        return Path(folder, 'model.safetensors').stat().st_size


def _memory(variant: Variant, device: torch.device) -> dict[str, int]:
    """Return bytes of the model, and the peaks in a forward, and a forward and backward pass; {} where unknown."""
    if device.type == 'cuda':
        return _cuda_memory(variant, device)
    if device.type != 'cpu' or not Path('/proc/self/clear_refs').exists():
        return {}
    with multiprocessing.get_context('spawn').Pool(1) as pool:  # a process that has allocated nothing yet
        return pool.apply(_resident_memory, (variant,))


def _cuda_memory(variant: Variant, device: torch.device) -> dict[str, int]:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    forward, both = _steps(build(variant).to(device).train(), device)
    peaks = {'model_memory': torch.cuda.memory_allocated(device) - before}
    for name, step in (('forward_peak', forward), ('both_peak', both)):
        torch.cuda.reset_peak_memory_stats(device)
        step()
        peaks[name] = torch.cuda.max_memory_allocated(device) - before
    return peaks


def _resident_memory(variant: Variant) -> dict[str, int]:
    nn.Conv2d(3, 4, 3)(torch.zeros(1, 3, 8, 8)).sum().backward()  # thread pools and kernels are no part of a network
    before = _resident('VmRSS')
    forward, both = _steps(build(variant).train(), torch.device('cpu'))
    peaks = {'model_memory': _resident('VmRSS') - before}
    for name, step in (('forward_peak', forward), ('both_peak', both)):
        Path('/proc/self/clear_refs').write_text('5', encoding='ascii')
        step()
        peaks[name] = _resident('VmHWM') - before
    return peaks


def _resident(field: str) -> int:
    lines = Path('/proc/self/status').read_text(encoding='ascii').splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
