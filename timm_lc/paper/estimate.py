"""How long training runs would take on this device: from finished runs of a network, else from a few timed steps."""

import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from tqdm import tqdm

from timm_lc.training.files import read_json, read_lines, write_text
from timm_lc.training.trainer import METRICS, RUN, Run, Speed, describe_device

__all__ = ['Estimator', 'duration']

TIMINGS = 'timings.json'
STEPS, BATCH = 2, {'cuda': 256}  # of 32 images elsewhere: steps of a large network take long enough
EVALUATION = 1.1  # an epoch over its training steps


class Estimator:
    """Seconds of runs on a device.

    Args:
        runs_dir: Folder of trained networks; timings are kept there too.
        device: Where runs would be trained.
        speed: How.
    """

    def __init__(self, runs_dir: Path, device: torch.device, speed: Speed) -> None:
        self.runs_dir, self.device, self.speed = runs_dir, device, speed
        self.name = f'{describe_device(device)}, {torch.get_num_threads()} threads'
        self.timed: dict[str, float] = read_json(runs_dir / TIMINGS)
        self.finished = self._finished()

    def total(self, runs: list[Run], images: int) -> float:
        """Return the seconds to train all of `runs` on so many images, timing networks that are not known."""
        unknown = {self._key(run.model, run.model_kwargs): run for run in runs}
        unknown = {key: run for key, run in unknown.items() if key not in self.finished and key not in self.timed}
        for key, run in tqdm(unknown.items(), desc='timing networks', unit='network', disable=None):
            self.timed[key] = self._time(run)
            write_text(self.runs_dir / TIMINGS, json.dumps(self.timed, indent=1) + '\n')
        keys = [(self._key(run.model, run.model_kwargs), run.recipe.epochs) for run in runs]
        return sum(epochs * images * self.finished.get(key, self.timed.get(key, 0.0)) for key, epochs in keys)

    def source(self) -> str:
        """Return where the numbers come from."""
        size = BATCH.get(self.device.type, 32)
        return f'finished runs, else {STEPS} timed steps of {size} images, not compiled, on {self.name}'

    def _key(self, model: str, model_kwargs: dict[str, Any]) -> str:
        return f'{self.name}: {model} {json.dumps(model_kwargs, sort_keys=True)}'

    def _finished(self) -> dict[str, float]:
        """Return seconds per image of networks that were trained on this device."""
        found: dict[str, list[float]] = {}
        for path in self.runs_dir.glob(f'*/{RUN}'):
            facts = read_json(path)
            run, where = facts['run'], facts['where']
            if f'{where["device"]}, {where["threads"]} threads' == self.name:
                seconds = [line['seconds'] / run['images'][0] for line in read_lines(path.with_name(METRICS))]
                found.setdefault(self._key(run['model'], run['model_kwargs']), []).extend(seconds)
        return {key: statistics.median(seconds) for key, seconds in found.items() if seconds}

    def _time(self, run: Run) -> float:
        """Return seconds per image of an epoch, from a few steps after one to warm up."""
        size = BATCH.get(self.device.type, 32)
        model = timm.create_model(run.model, **run.model_kwargs).to(self.device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        images, labels = torch.rand(size, 3, 32, 32, device=self.device), torch.zeros(size, dtype=torch.long)
        if self.speed.channels_last:
            model, images = (thing.to(memory_format=torch.channels_last) for thing in (model, images))
        begun = 0.0
        for step in range(STEPS + 1):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.speed.amp):
                loss = nn.functional.cross_entropy(model(images), labels.to(self.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()  # waits for a GPU
            begun = begun if step else time.perf_counter()
        return EVALUATION * (time.perf_counter() - begun) / (STEPS * size)


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it.

    Example:
        >>> duration(50), duration(600), duration(40_000), duration(400_000)
        ('50 s', '10 min', '11 h', '4.6 d')
    """
    units = ((1, 's', 99), (60, 'min', 99), (3600, 'h', 48), (86400, 'd', math.inf))
    unit, name = next((unit, name) for unit, name, enough in units if seconds / unit < enough)
    count = seconds / unit
    return f'{count:.0f} {name}' if count >= 10 or unit == 1 else f'{count:.1f} {name}'
