"""Time, memory, files and floors of a network's forms beside the plain network: table 3's columns and more."""

import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from timm_lc.analysis.floors import Rates, count_work, floors, measure_rates
from timm_lc.analysis.memory import fixed_bytes, measure_memory
from timm_lc.analysis.timing import Seconds, interleave, quartiles, timed_inference, timed_step
from timm_lc.arguments import check_count
from timm_lc.inputs import input_size
from timm_lc.paper.bench_cases import TWO, Case, expanded
from timm_lc.paper.timing import checkpoint_bytes
from timm_lc.training.trainer import describe_device, versions

__all__ = ['Settings', 'measure_bench', 'measure_sweep']

IMPORT = 'import time, timm; start = time.perf_counter(); import timm_lc; print(time.perf_counter() - start)'
IMPORTS = 3
SWEEP_ROUNDS = 3
GIBI = 2**30


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Args:
        device: A CPU or a CUDA GPU.
        amp: Floating type of autocast, 'bfloat16' or 'float16'; None computes in float32.
        channels_last: Whether memory is laid out so.
        compile: Mode of `torch.compile`, such as 'reduce-overhead' (CUDA graphs); None computes eagerly.
        batch_size: Images of a step.
        image_size: Pixels of a side; None is the network's own.
        rounds: Interleaved steps of each network.
        max_seconds: A network that has taken longer in all is measured once.
        max_memory: GiB that a larger expansion may take.
    """

    device: torch.device
    amp: str | None = None
    channels_last: bool = False
    compile: str | None = None
    batch_size: int = 64
    image_size: int | None = None
    rounds: int = 9
    max_seconds: float = 30.0
    max_memory: float = 3.0

    def __post_init__(self) -> None:
        for name in ('batch_size', 'image_size', 'rounds'):
            if (value := getattr(self, name)) is not None:
                check_count(name, value)
        for name in ('max_seconds', 'max_memory'):
            if not getattr(self, name) > 0:
                raise ValueError(f'`{name}` must be a positive number, got {getattr(self, name)!r}')
        if self.device.type not in ('cpu', 'cuda'):
            raise ValueError(f'`device` must be a CPU or a CUDA GPU, whose clocks are read, got {self.device}')

    @property
    def dtype(self) -> torch.dtype | None:
        """Type of autocast."""
        return getattr(torch, self.amp) if self.amp else None

    def shape(self, model: nn.Module) -> tuple[int, ...]:
        """Return (N, C_in, H, W)."""
        channels, height, width = input_size(model)
        return self.batch_size, channels, self.image_size or height, self.image_size or width


def measure_bench(networks: dict[str, list[Case]], settings: Settings, command: str) -> dict[str, Any]:
    """Measure the rows of each network; return them as JSON holds them.

    Args:
        networks: The rows of each model, by its name.
        settings: How.
        command: That asked for it.
    """
    rates = measure_rates(settings.device, settings.dtype or torch.float32)
    rows = [{'model': name, **row} for name, found in networks.items() for row in _measure(found, settings, rates)]
    where = {'device': describe_device(settings.device), 'threads': torch.get_num_threads(), **versions()}
    how = {name: getattr(settings, name) for name in ('amp', 'channels_last', 'compile', 'batch_size', 'rounds')}
    machine = {'multiply_adds_per_second': rates.multiply_adds, 'bytes_per_second': rates.bytes}
    return {
        'command': command,
        'where': where | machine,
        'how': how,
        'import_seconds': _import(min(IMPORTS, settings.rounds)),
        'rows': rows,
    }


def measure_sweep(
    name: str,
    forms: Sequence[str],
    expansions: Sequence[int],
    settings: Settings,
    plain: dict[str, Any],
    **model_kwargs: Any,
) -> list[dict[str, Any]]:
    """Measure the frozen network in each form over expansions, as far as its step and memory stay within bounds.

    What they exceed those of the plain network by is taken to grow as the expansion does: a form ends before a point
    whose step would take more than a quarter of `max_seconds`, or its peak more than `max_memory`.

    Args:
        name: Of an `lc_` model.
        forms: Of its LC-Blocks.
        expansions: E, in any order.
        settings: How.
        plain: The plain network's row of `measure_bench`.
        **model_kwargs: Arguments of `timm.create_model`.
    """
    least = plain['seconds']['step']['median'], max(plain['memory'].values(), default=0)
    points = []
    for form in forms:
        previous: dict[str, Any] = {}
        for expansion in sorted(expansions):
            if previous and _exceeds(previous, least, expansion / previous['expansion'], settings):
                break
            previous = {'model': name, 'form': form, 'expansion': expansion}
            previous |= _point(expanded(name, form, expansion, **model_kwargs), settings)
            points.append(previous)
    return points


def _exceeds(point: dict[str, Any], least: tuple[float, float], growth: float, settings: Settings) -> bool:
    found = point['seconds']['step'], max(point['memory'].values(), default=0)
    bounds = settings.max_seconds / 4, settings.max_memory * GIBI
    # noise may hide what the blocks add, which is then taken for a twentieth
    return any(
        value + (growth - 1) * max(value - base, value / 20) > bound
        for value, base, bound in zip(found, least, bounds, strict=True)
    )


def _point(case: Case, settings: Settings) -> dict[str, Any]:
    """Return the median seconds of a step, and the memory."""
    model = case.build()
    shape = settings.shape(model)
    call = _call(model, shape, settings)
    parts = interleave({'': call}, SWEEP_ROUNDS, max_seconds=settings.max_seconds, title=case.name)['']
    del model, call
    seconds = {part: statistics.median(values) for part, values in parts.items()}
    return {'seconds': seconds, 'memory': measure_memory(case.build, shape, settings.device)}


def _measure(found: list[Case], settings: Settings, rates: Rates) -> list[dict[str, Any]]:
    """Time the rows of one model, interleaved, then measure the memory of each."""
    calls: dict[str, Callable[[], Seconds]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for case in found:
        model = case.build()
        shape = settings.shape(model)
        facts[case.name] = _facts(case, model, shape, rates)
        calls[case.name] = _call(model, shape, settings)
    del model
    warmups = 3 if settings.compile else 1  # a CUDA graph is recorded in the second call
    seconds = interleave(calls, settings.rounds, warmups=warmups, max_seconds=settings.max_seconds, title='steps')
    calls.clear()  # and the networks with them
    created = interleave(
        {case.name: functools.partial(_create, case) for case in found}, settings.rounds, title='creating'
    )
    rows = []
    for case in found:
        parts = {**seconds[case.name], **created[case.name]}
        times = {part: quartiles(values)._asdict() for part, values in parts.items()}
        memory = measure_memory(case.build, facts[case.name]['shape'], settings.device)
        rows.append({**facts[case.name], 'seconds': times, 'memory': memory})
    return rows


def _facts(case: Case, model: nn.Module, shape: tuple[int, ...], rates: Rates) -> dict[str, Any]:
    """Return what needs no clock."""
    work = count_work(model, shape)
    return {
        'row': case.row,
        'form': case.form,
        'shape': shape,
        'multiply_adds': {'forward': work.forward, 'both': work.both},
        'floors': floors(work, rates),
        'fixed_bytes': fixed_bytes(model),
        'checkpoint_bytes': checkpoint_bytes(model, sparse='pruning' in case.row, whole=case.form == TWO),
    }


def _call(model: nn.Module, shape: tuple[int, ...], settings: Settings) -> Callable[[], Seconds]:
    """Return a function that trains for a step and evaluates once; it returns the seconds of both."""
    device = settings.device
    model, images = model.to(device), torch.rand(shape, device=device)
    if settings.channels_last:
        model, images = (thing.to(memory_format=torch.channels_last) for thing in (model, images))
    run: Any = torch.compile(model, mode=settings.compile, dynamic=False) if settings.compile else model
    step, infer = (timed(run, images, amp=settings.dtype) for timed in (timed_step, timed_inference))
    return lambda: step() | infer()


def _create(case: Case) -> Seconds:
    begun = time.perf_counter()
    case.build()
    return {'create': time.perf_counter() - begun}


def _import(runs: int) -> float:
    """Return the median seconds that `import timm_lc` adds to `import timm`, in fresh processes."""
    command = [sys.executable, '-c', IMPORT]
    printed = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(runs)]
    return statistics.median(map(float, printed))
