"""Time of training steps and of inference, several networks interleaved in one process.

Interleaving lets whatever else the machine does fall on all networks alike, so that ratios are steadier than times.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

__all__ = ['Clock', 'Quartiles', 'Seconds', 'interleave', 'quartiles', 'timed_inference', 'timed_step']

Clock = Callable[[], float]
Seconds = dict[str, float]
MAX_SECONDS = 30.0


class Quartiles(NamedTuple):
    """Median and quartiles of `runs` values."""

    median: float
    low: float
    high: float
    runs: int


def quartiles(values: list[float]) -> Quartiles:
    """Return the quartiles of one or more values.

    Example:
        >>> quartiles([4.0, 1.0, 2.0, 3.0, 5.0])
        Quartiles(median=3.0, low=2.0, high=4.0, runs=5)
    """
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return Quartiles(median, low, high, len(values))


def timed_step(
    model: nn.Module, images: Tensor, *, amp: torch.dtype | None = None, clock: Clock = time.perf_counter
) -> Callable[[], Seconds]:
    """Return a function that trains for a step of SGD with momentum and returns the seconds of its parts.

    They are `forward`, `both` (forward and backward), `optimizer`, and `step`, all three.

    Args:
        model: Its learnable parameters move.
        images: A batch (N, C_in, H, W) on the network's device; all labels are class 0.
        amp: Type of autocast; None computes without. Gradients are not scaled, which changes no time.
        clock: Of a CPU; a GPU has its own.
    """
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def step() -> Seconds:
        model.train()
        optimizer.zero_grad()
        watch = _Stopwatch(images.device, clock)
        with torch.autocast(images.device.type, amp, enabled=amp is not None):
            logits = model(images)
        watch.mark()
        cross_entropy(logits.float(), labels).backward()
        watch.mark()
        optimizer.step()
        watch.mark()
        forward, both, whole = watch.seconds()
        return {'forward': forward, 'both': both, 'optimizer': whole - both, 'step': whole}

    return step


def timed_inference(
    model: nn.Module, images: Tensor, *, amp: torch.dtype | None = None, clock: Clock = time.perf_counter
) -> Callable[[], Seconds]:
    """Return a function that evaluates `images` (N, C_in, H, W) without gradients and returns its seconds.

    Arguments are those of `timed_step`.
    """

    @torch.no_grad()
    def infer() -> Seconds:
        model.eval()
        watch = _Stopwatch(images.device, clock)
        with torch.autocast(images.device.type, amp, enabled=amp is not None):
            model(images)
        watch.mark()
        return {'inference': watch.seconds()[0]}

    return infer


def interleave(
    calls: Mapping[str, Callable[[], Seconds]],
    rounds: int,
    *,
    warmups: int = 1,
    max_seconds: float = MAX_SECONDS,
    title: str = '',
) -> dict[str, dict[str, list[float]]]:
    """Call each function once a round, and return for each the values of its parts over the rounds.

    Args:
        calls: By name; each returns its parts' seconds.
        rounds: That count.
        warmups: Rounds before them that do not.
        max_seconds: A function that has taken longer in all, warm-ups included, is left out after its first round.
        title: Of a progress bar; none without it.
    """
    values: dict[str, dict[str, list[float]]] = {name: {} for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    places = [(index, name) for index in range(-warmups, rounds) for name in calls]
    with tqdm(places, desc=title, unit='call', disable=None if title else True) as bar:
        for index, name in bar:
            if index and spent[name] > max_seconds:  # the first round counts, however long the warm-ups took
                continue
            begun = time.perf_counter()
            parts = calls[name]()
            spent[name] += time.perf_counter() - begun
            if index >= 0:
                for part, seconds in parts.items():
                    values[name].setdefault(part, []).append(seconds)
    return values


class _Stopwatch:
    """Moments on a device since it was made; a GPU tells them afterwards, so that nothing waits for it in between."""

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self.device, self.on_gpu, self.clock = device, device.type == 'cuda', clock
        self.moments: list[Any] = []
        if self.on_gpu:
            torch.cuda.synchronize(device)
        self.mark()

    def mark(self) -> None:
        """Note this moment."""
        if self.on_gpu:
            self.moments.append(torch.cuda.Event(enable_timing=True))
            self.moments[-1].record(torch.cuda.current_stream(self.device))
        else:
            self.moments.append(self.clock())

    def seconds(self) -> list[float]:
        """Return the seconds from the start to each later moment."""
        first, *later = self.moments
        if not self.on_gpu:
            return [moment - first for moment in later]
        later[-1].synchronize()
        return [first.elapsed_time(moment) / 1000 for moment in later]
