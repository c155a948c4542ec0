"""Results of an experiment: `runs.jsonl`, one line for each point and training seed, and what it says when collected.

Lines stand for themselves: files of several machines may be joined by `cat`, a later line replaces an earlier one
of the same run.
"""

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from timm_lc.paper.experiment import Experiment, Variant
from timm_lc.training.files import lock, read_lines, write_lines
from timm_lc.training.trainer import Run

__all__ = ['FORMAT', 'RUNS', 'Cells', 'collect', 'describe', 'load', 'make_line', 'merge', 'setting_of', 'settings']

FORMAT = 1
RUNS = 'runs.jsonl'
_PARTS = {'facet', 'series', 'x', 'pruned', 'run', 'where', 'values'}
_TRAINED = {'model', 'model_kwargs', 'seed', 'recipe', 'data', 'limit'}

Line = dict[str, Any]
Cells = dict[tuple[str, Any, str], dict[str, dict[int, Any]]]


def make_line(variant: Variant, run: dict[str, Any] | None, where: dict[str, Any], values: dict[str, Any]) -> Line:
    """Return a line of `runs.jsonl`; `run` is None for what needs no training."""
    about = {'facet': variant.facet, 'series': variant.series, 'x': variant.x, 'pruned': variant.amount}
    run = run or {'model': variant.model, 'model_kwargs': variant.model_kwargs, 'seed': None}
    return {'format': FORMAT, **about, 'run': run, 'where': where, 'values': values}


def describe(run: Run, data: str, limit: int | None) -> dict[str, Any]:
    """Return what a line says of a training run before it is trained."""
    return {**dataclasses.asdict(run), 'data': data, 'limit': limit}


def load(directory: Path) -> list[Line]:
    """Return the lines of a folder's `runs.jsonl`, [] if there is none.

    Raises:
        ValueError: If it was written by another version, or is damaged.
    """
    path = directory / RUNS
    lines = read_lines(path)
    for number, line in enumerate(lines, 1):
        if line.get('format') != FORMAT:
            found = line.get('format')
            raise ValueError(f'{path} was written by another version: its format is {found}, this one reads {FORMAT}')
        run = line.get('run')
        parts = _TRAINED if isinstance(run, dict) and run.get('seed') is not None else {'seed'}
        if not (line.keys() >= _PARTS and isinstance(run, dict) and parts <= run.keys()):
            raise ValueError(f'{path} is damaged: line {number} is not whole')
    return lines


def merge(directory: Path, lines: Iterable[Line]) -> list[Line]:
    """Add lines to a folder's `runs.jsonl`, replacing those of the same runs; return all."""
    with lock(directory / RUNS):
        merged = {_identity(line): line for line in [*load(directory), *lines]}
        write_lines(directory / RUNS, merged.values())
    return list(merged.values())


def setting_of(run: dict[str, Any]) -> str:
    """Return what runs must have in common to be averaged: data and recipe, the penalty aside; '' if not trained."""
    if run['seed'] is None:
        return ''
    recipe = {key: value for key, value in run['recipe'].items() if key != 'l1'}
    return json.dumps({'data': run['data'], 'limit': run['limit'], **recipe}, sort_keys=True)


def settings(lines: Iterable[Line]) -> list[str]:
    """Return the settings of trained lines: most epochs first, then most lines, then most images."""
    found = [setting_of(line['run']) for line in lines]

    def rank(setting: str) -> tuple[float, ...]:
        content = json.loads(setting)
        return content['epochs'], found.count(setting), content['limit'] or math.inf

    return sorted({setting for setting in found if setting}, key=rank, reverse=True)


def collect(experiment: Experiment, lines: Iterable[Line], setting: str) -> Cells:
    """Return, for each (facet, x, series) and key of values, the value of each training seed.

    Lines of other settings, and of points that the experiment has not, are left out; what needs no training has seed 0.
    """
    points = {(variant.facet, variant.x, variant.series) for variant in experiment.variants}
    cells: Cells = {}
    for line in lines:
        point = (line['facet'], line['x'], line['series'])
        if point not in points or setting_of(line['run']) not in ('', setting):
            continue
        for key, value in line['values'].items():
            cells.setdefault(point, {}).setdefault(key, {})[line['run']['seed'] or 0] = value
    return cells


def _identity(line: Line) -> str:
    run = {key: value for key, value in line['run'].items() if key not in ('images', 'checksum')}
    parts = [line['facet'], line['series'], line['x'], line['pruned'], run]
    return json.dumps(parts, sort_keys=True)
