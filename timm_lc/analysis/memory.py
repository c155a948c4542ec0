"""Memory that a network and its training step hold at once: what a GPU allocates, or what a fresh process grows by.

On a CPU that needs Linux, whose kernel tells a process's resident set and its peak. The process gives back what is
freed at once: left to itself it keeps memory, and more or less of it by chance.
"""

import ctypes
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

__all__ = ['fixed_bytes', 'measure_memory']

_STATUS, _RESET = Path('/proc/self/status'), Path('/proc/self/clear_refs')
_M_MMAP_THRESHOLD, _MAPPED = -3, 1 << 16  # of mallopt(3); bytes from which on a tensor is a mapping of its own
# imported before the processes that measure are forked: each would take seconds to import them anew
_PRELOAD = ['timm_lc.models', 'timm_lc.analysis.memory']


def measure_memory(build: Callable[[], nn.Module], shape: tuple[int, ...], device: torch.device) -> dict[str, int]:
    """Return bytes: of the network, and the peaks in a forward and in a forward and backward pass; {} where unknown.

    Args:
        build: Returns the network; a CPU measures in another process, so it must be one that pickles.
        shape: Of the batch, (N, C_in, H, W).
        device: A CPU or a GPU.
    """
    if device.type == 'cuda':
        return _allocated(build, shape, device)
    if device.type != 'cpu' or not _RESET.exists():
        return {}
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(_PRELOAD)
    with context.Pool(1) as pool:  # a process that has allocated nothing yet
        return pool.apply(_resident, (build, shape, torch.get_num_threads()))


def fixed_bytes(model: nn.Module) -> int:
    """Return the bytes that stay as they are in training and in no file: random filters, and what is made of them."""
    fixed = {
        buffer.data_ptr(): buffer.nbytes
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set
    }
    return sum(fixed.values())


def _allocated(build: Callable[[], nn.Module], shape: tuple[int, ...], device: torch.device) -> dict[str, int]:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    model = build().to(device).train()
    peaks = {'model_memory': torch.cuda.memory_allocated(device) - before}
    for name, run in _passes(model, torch.rand(shape, device=device)).items():
        torch.cuda.reset_peak_memory_stats(device)
        run()
        peaks[name] = torch.cuda.max_memory_allocated(device) - before
    return peaks


def _resident(build: Callable[[], nn.Module], shape: tuple[int, ...], threads: int) -> dict[str, int]:
    torch.set_num_threads(threads)
    _give_back_at_once()
    nn.Conv2d(3, 4, 3)(torch.zeros(1, 3, 8, 8)).sum().backward()  # thread pools and kernels are no part of a network
    before = _kernel('VmRSS')
    model = build().train()
    peaks = {'model_memory': _kernel('VmRSS') - before}
    for name, run in _passes(model, torch.rand(shape)).items():
        _RESET.write_text('5', encoding='ascii')
        run()
        peaks[name] = _kernel('VmHWM') - before
    return peaks


def _give_back_at_once() -> None:
    """Let glibc unmap a tensor as it is freed; other C libraries have no such setting."""
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAPPED)


def _passes(model: nn.Module, images: Tensor) -> dict[str, Callable[[], object]]:
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    return {
        'forward_peak': lambda: model(images),
        'both_peak': lambda: cross_entropy(model(images), labels).backward(),
    }


def _kernel(field: str) -> int:
    lines = _STATUS.read_text(encoding='ascii').splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
