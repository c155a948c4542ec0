"""The least time that a step can take on a machine: its multiply-adds and its weights' bytes at measured rates."""

import copy
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ['Rates', 'Work', 'count_work', 'floors', 'measure_rates']

SIZE, COPIED, REPEATS = 1024, 1 << 26, 5  # a matrix's side; bytes that no cache holds


class Rates(NamedTuple):
    """A machine's best: multiply-adds a second in matrix products, bytes read or written a second."""

    multiply_adds: float
    bytes: float


class Work(NamedTuple):
    """Multiply-adds of a pass, and bytes: of learnable tensors, and of all that a forward pass reads."""

    forward: int
    both: int
    learnable_bytes: int
    weight_bytes: int


def measure_rates(device: torch.device, dtype: torch.dtype = torch.float32) -> Rates:
    """Time matrix products of `dtype` and copies on a device; the fastest of a few count."""
    matrix = torch.rand(SIZE, SIZE, device=device, dtype=dtype)
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product, copying = _fastest(lambda: matrix @ matrix), _fastest(lambda: target.copy_(source))
    return Rates(SIZE**3 / product, 2 * COPIED / copying)


def count_work(model: nn.Module, shape: tuple[int, ...]) -> Work:
    """Count what a training step on a batch of `shape` (N, C_in, H, W) needs, on a copy without memory."""
    learnable = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    weights = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    empty = copy.deepcopy(model).to('meta').train()
    with FlopCounterMode(display=False) as forward:
        logits: Tensor = empty(torch.empty(shape, device='meta'))
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    flops = forward.get_total_flops(), backward.get_total_flops()
    return Work(flops[0] // 2, sum(flops) // 2, learnable, sum(weights.values()))


def floors(work: Work, rates: Rates) -> dict[str, float]:
    """Return the least seconds of `forward`, `both` and `optimizer`: of computing or of reading, whichever is longer.

    A forward pass reads all weights, a backward pass reads them again and writes gradients, and a step of SGD with
    momentum reads weights, gradients and momenta and writes two of them. Activations count nothing: caches hold some.
    """
    return {
        'forward': max(work.forward / rates.multiply_adds, work.weight_bytes / rates.bytes),
        'both': max(work.both / rates.multiply_adds, (2 * work.weight_bytes + work.learnable_bytes) / rates.bytes),
        'optimizer': 5 * work.learnable_bytes / rates.bytes,
    }


def _fastest(call: Callable[[], Tensor]) -> float:
    seconds = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        result = call()
        result.flatten()[-1].item()  # waits for a GPU
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])
