"""How long training runs would take on this device: from runs of the same network that were finished here."""

import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from timm_lc.training.data import Images
from timm_lc.training.files import read_json, read_lines, write_text
from timm_lc.training.recipe import Recipe, Run, Speed
from timm_lc.training.trainer import METRICS, RUN, describe_device, train

__all__ = ['Estimator', 'duration']

TIMINGS = 'timings.json'
TIMED = 256  # images of an epoch that is timed


class Estimator:
    """Time of runs on a device.

    Args:
        runs_dir: Folder of trained networks; timings are kept there too.
        device: Where runs would be trained.
        speed: How.
        time_networks: Whether to time networks that were not trained here yet, seconds to minutes each.
    """

    def __init__(self, runs_dir: Path, device: torch.device, speed: Speed, *, time_networks: bool = False) -> None:
        self.runs_dir, self.device, self.speed, self.time_networks = runs_dir, device, speed, time_networks
        self.name = f'{describe_device(device)}, {torch.get_num_threads()} threads'
        self.seconds: dict[str, float] = {**read_json(runs_dir / TIMINGS), **self._finished()}

    def total(self, runs: list[Run], images: int) -> str:
        """Return the time to train all of `runs` on so many images; '?' and a bound where some are not known."""
        for run in tqdm(runs, desc='timing networks', unit='network', disable=None) if self.time_networks else ():
            if self._key(run.model, run.model_kwargs) not in self.seconds:
                self._time(run)
        keys = [(self._key(run.model, run.model_kwargs), run.recipe.epochs) for run in runs]
        known = [epochs * images * self.seconds[key] for key, epochs in keys if key in self.seconds]
        if len(known) == len(runs):
            return duration(sum(known))
        return f'>{duration(sum(known))}' if known else '?'

    def source(self) -> str:
        """Return where the numbers come from."""
        rest = f'else an epoch of {TIMED} images' if self.time_networks else 'others unknown (`--time` times them)'
        return f'from runs on {self.name}, {rest}'

    def _key(self, model: str, model_kwargs: dict[str, Any]) -> str:
        return f'{self.name}: {model} {json.dumps(model_kwargs, sort_keys=True)}'

    def _finished(self) -> dict[str, float]:
        """Return seconds per image of networks that were trained on this device."""
        found: dict[str, list[float]] = {}
        for path in self.runs_dir.glob(f'*/{RUN}'):
            facts = read_json(path)
            if not {'run', 'where'} <= facts.keys():
                continue  # of something else
            run, where = facts['run'], facts['where']
            if f'{where["device"]}, {where["threads"]} threads' == self.name:
                seconds = [line['seconds'] / run['images'][0] for line in read_lines(path.with_name(METRICS))]
                found.setdefault(self._key(run['model'], run['model_kwargs']), []).extend(seconds)
        return {key: statistics.median(seconds) for key, seconds in found.items() if seconds}

    def _time(self, run: Run) -> None:
        """Keep the seconds per image of an epoch on noise, the second of two: the first one warms up."""
        pixels, labels = torch.randint(256, (TIMED, 3, 32, 32), dtype=torch.uint8), torch.arange(TIMED) % 10
        images = Images('noise', [str(label) for label in range(10)], pixels, labels, pixels[:10], labels[:10])
        recipe = Recipe(epochs=2, batch_size=min(run.recipe.batch_size, TIMED))
        with tempfile.TemporaryDirectory() as folder:
            train(Run(run.model, run.model_kwargs, recipe=recipe), images, Path(folder), self.device, self.speed)
            seconds = read_lines(Path(folder, METRICS))[-1]['seconds']
        self.seconds[self._key(run.model, run.model_kwargs)] = seconds / TIMED
        kept = {**read_json(self.runs_dir / TIMINGS), self._key(run.model, run.model_kwargs): seconds / TIMED}
        write_text(self.runs_dir / TIMINGS, json.dumps(kept, indent=1) + '\n')


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
