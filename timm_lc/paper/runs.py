"""Trained networks on disk: each run in a folder named by its content, trained once and measured once.

A run's content is the network, its arguments, the training seed, the recipe, the data and their limit. Experiments that
ask for the same run share it, as figures 1, 4, 6, 14 and 16 do.
"""

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from torch import nn

from timm_lc.checkpoints.checkpoint import WEIGHTS, load_model
from timm_lc.paper.measures import MEASURES
from timm_lc.training.data import TRAIN_IMAGES, Images
from timm_lc.training.files import lock, read_json, read_lines, write_lines, write_text
from timm_lc.training.recipe import Run, Speed
from timm_lc.training.trainer import METRICS, RUN, STATE, VALUES, OutOfTime, claim, train
from timm_lc.transforms.prune import prune_pointwise

__all__ = ['adopt_runs', 'describe_run', 'folder_of', 'known_values', 'measure_run', 'train_once']


def describe_run(run: Run, data: str, limit: int | None) -> dict[str, Any]:
    """Return all that makes a run: the fields of `Run`, `data` (name of the images) and `limit` (how many of them)."""
    return {**dataclasses.asdict(run), 'data': data, 'limit': limit}


def folder_of(run: dict[str, Any]) -> str:
    """Return the name of a run's folder: the network, the training seed and a digest of all that makes the run."""
    digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
    return f'{run["model"]}-seed{run["seed"]}-{digest[:10]}'


def known_values(directory: Path) -> dict[str, Any]:
    """Return what was measured of a finished run, {} if the run is not finished or its weights are gone.

    Keys are `seed`, `accuracy` (percent), `seconds`, `losses` (in training, of each epoch), and measures as
    `measure_run` names them.
    """
    values = read_json(directory / VALUES) if (directory / WEIGHTS).is_file() else {}
    return values and {'losses': [round(line['loss'], 4) for line in read_lines(directory / METRICS)], **values}


def train_once(
    run: Run,
    images: Images,
    directory: Path,
    device: torch.device,
    speed: Speed | None = None,
    *,
    deadline: float = math.inf,
    wait: bool = True,
) -> dict[str, Any]:
    """Train, unless the run is finished; return its values. Arguments and errors are those of `train`.

    While another process trains the run, this one waits, or with `wait=False` raises `OutOfTime`.
    """
    speed = speed or Speed.best_for(device)
    try:
        with lock(directory, deadline if wait else 0.0):
            values = known_values(directory)
            if values:
                claim(directory, run, images, device, speed)
                return values
            if speed.compile:
                torch.compiler.reset()  # what was compiled for other networks counts against the limit
            accuracy = train(run, images, directory, device, speed, deadline=deadline)
            seconds = sum(line['seconds'] for line in read_lines(directory / METRICS))
            values = {'seed': run.seed, 'accuracy': accuracy, 'seconds': round(seconds, 1)}
            _record(directory, values)
            (directory / STATE).unlink(missing_ok=True)  # to resume from, and twice the size of the checkpoint
            return values
    except Timeout as error:
        raise OutOfTime from error


def adopt_runs(source: Path, runs_dir: Path, limit: int | None) -> list[Path]:
    """Copy runs of `timm-lc cifar`, finished or not, to where `reproduce` looks for them; return their new folders.

    Args:
        source: Folder below which they are; it stays as it is.
        runs_dir: Folder of trained networks. What it has already of a run stays, unless `source` has trained longer.
        limit: `--limit` that they were trained with, which they do not tell.

    Raises:
        ValueError: If there is none below `source`, or one of other images than `limit` says.
    """
    found = sorted(path.parent for path in source.rglob(RUN))
    if not found:
        raise ValueError(f'`--adopt` {source}: no {RUN} of `timm-lc cifar` below it')
    folders = []
    for folder in found:
        facts = read_json(folder / RUN)
        if 'run' not in facts:
            raise ValueError(f'`--adopt` {folder / RUN} is not of `timm-lc cifar`')
        _check_limit(folder, facts['run'], limit)
        run = {key: value for key, value in facts['run'].items() if key not in ('images', 'checksum')}
        folders.append(runs_dir / folder_of({**run, 'limit': limit}))
        with lock(folders[-1]):
            if len(read_lines(folder / METRICS)) > len(read_lines(folders[-1] / METRICS)):
                left_out = shutil.ignore_patterns('*.partial*', METRICS)
                shutil.copytree(folder, folders[-1], dirs_exist_ok=True, ignore=left_out)
                write_lines(folders[-1] / METRICS, read_lines(folder / METRICS))  # last: its length says what is here
    return folders


def _check_limit(folder: Path, run: dict[str, Any], limit: int | None) -> None:
    """Refuse a run that was not of `limit` images: it would lie where that of other images is looked for."""
    count, whole = run['images'][0], TRAIN_IMAGES.get(run['data'])
    if count > (limit or count) or (whole is not None and count != min(limit or whole, whole)):
        raise ValueError(f'`--adopt` {folder} is of {count:,} training images: give its `--limit`, got {limit}')


def measure_run(
    directory: Path, measures: Sequence[str], images: Images, device: torch.device, amount: float = 0.0
) -> dict[str, Any]:
    """Measure a finished run, unless its folder tells the values already; return them in one dictionary.

    Args:
        directory: Of the run.
        measures: Names in `MEASURES`.
        images: That it was trained and validated on.
        device: Where to measure.
        amount: Share of pointwise weights to prune before, in [0, 1).
    """
    model: nn.Module | None = None
    with lock(directory):
        values = known_values(directory)
        for measure in measures:
            key = f'{measure} pruned {amount:g}' if amount else measure
            if key not in values:
                if model is None:
                    model = _load(directory, amount).to(device)
                    images = images.map(lambda tensor: tensor.to(device))
                values[key] = MEASURES[measure](model, images)
                _record(directory, values)
    merged: dict[str, Any] = {}
    for measure in measures:
        value = values[f'{measure} pruned {amount:g}' if amount else measure]
        merged.update(value if isinstance(value, dict) else {measure: value})
    return merged


def _load(directory: Path, amount: float) -> nn.Module:
    model = load_model(directory)
    if amount:
        prune_pointwise(model, amount)
    return model


def _record(directory: Path, values: dict[str, Any]) -> None:
    write_text(directory / VALUES, json.dumps(values) + '\n')
