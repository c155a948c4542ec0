"""Results of an experiment: `runs.jsonl`, one line for each point and training seed.

Lines stand for themselves: files of several machines may be joined by `cat`, a later line replaces an earlier one
of the same run.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from timm_lc.paper.check_line import check_line
from timm_lc.paper.experiment import Experiment, Point, Variant
from timm_lc.training.data import Images
from timm_lc.training.files import lock, read_lines, write_lines
from timm_lc.training.recipe import Recipe

__all__ = [
    'FORMAT', 'RUNS', 'Cells', 'Line', 'Results', 'collect', 'departures', 'runs_of', 'setting_in', 'setting_of',
    'settings',
]  # fmt: skip

FORMAT = 1
RUNS = 'runs.jsonl'
_COMPARED = [field.name for field in dataclasses.fields(Recipe) if field.name not in ('epochs', 'l1', 'drop_last')]

Cells = dict[Point, dict[str, dict[int, Any]]]


@dataclasses.dataclass(frozen=True)
class Line:
    """What was measured of one point.

    Attributes:
        point: Place in the experiment.
        pruned: Share of pointwise weights pruned before.
        run: What was trained, as `describe_run` tells it; its `seed` is None of what needs no training.
        where: Device, versions, and how the device was used.
        values: Of the measures, by name.
    """

    point: Point
    pruned: float
    run: dict[str, Any]
    where: dict[str, Any]
    values: dict[str, Any]

    @classmethod
    def of(cls, variant: Variant, run: dict[str, Any] | None, where: dict[str, Any], values: dict[str, Any]) -> 'Line':
        """Return the line of a variant; `run` is None for what needs no training."""
        untrained = {'model': variant.model, 'model_kwargs': variant.model_kwargs, 'seed': None}
        return cls(variant.point, variant.amount, run or untrained, where, values)

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> 'Line':
        """Return the line of a file's object, which `check_line` has checked."""
        point = Point(line['facet'], line['series'], line['x'])
        return cls(point, line['pruned'], line['run'], line['where'], line['values'])

    def to_json(self) -> dict[str, Any]:
        """Return the object that a file holds."""
        about = {'format': FORMAT, **self.point._asdict(), 'pruned': self.pruned}
        return {**about, 'run': self.run, 'where': self.where, 'values': self.values}

    @property
    def is_trained(self) -> bool:
        """Whether a network was trained for it."""
        return self.run['seed'] is not None

    @property
    def seed(self) -> int:
        """Training seed, 0 of what needs no training."""
        return self.run['seed'] or 0

    @property
    def setting(self) -> str:
        """What runs must have in common to be averaged; '' if not trained."""
        return setting_of(self.run) if self.is_trained else ''

    @property
    def identity(self) -> str:
        """What a later line must share with this one to replace it."""
        run = {key: value for key, value in self.run.items() if key not in ('images', 'checksum')}
        return json.dumps([*self.point, self.pruned, run], sort_keys=True)


class Results:
    """The results in an experiment's folder, as they were when it was opened or last added to.

    Args:
        directory: Of the experiment; it need not exist.

    Raises:
        ValueError: If another version wrote them, or they are damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lines = self._read()

    def add(self, lines: Iterable[Line]) -> None:
        """Write lines to the file, replacing those of the same runs; what other processes wrote meanwhile stays.

        Raises:
            ValueError: If a line could not be read again, as of a measure that is not finite.
        """
        lines = list(lines)
        for line in lines:
            check_line(line.to_json(), f'{self.directory / RUNS}, {line.point}')
        with lock(self.directory / RUNS):
            merged = {line.identity: line for line in [*self._read(), *lines]}
            self.lines = list(merged.values())
            write_lines(self.directory / RUNS, (line.to_json() for line in self.lines))

    def has(self, variant: Variant, run: dict[str, Any]) -> bool:
        """Return whether a point was measured of a run that `describe_run` tells."""
        run = json.loads(json.dumps(run))
        return any(
            line.point == variant.point and {key: line.run.get(key) for key in run} == run for line in self.lines
        )

    def has_untrained(self, variant: Variant, device: str) -> bool:
        """Return whether a point was measured on a device without training."""
        return any(
            line.point == variant.point and not line.is_trained and line.where['device'] == device
            for line in self.lines
        )

    def check_images(self, images: Images, limit: int | None) -> None:
        """Refuse to add to results of other images of the same name.

        Raises:
            ValueError: If there are such.
        """
        for line in self.lines:
            same = (line.run.get('data'), line.run.get('limit')) == (images.name, limit)
            if same and line.run.get('checksum', images.checksum) != images.checksum:
                raise ValueError(
                    f'`--output` {self.directory} holds results of other images named {images.name}: '
                    'give another folder, or rename that of `--data`'
                )

    def _read(self) -> list[Line]:
        path = self.directory / RUNS
        lines = []
        for number, line in enumerate(read_lines(path), 1):
            if (found := line.get('format')) != FORMAT:
                raise ValueError(
                    f'{path} was written by another version: its format is {found}, this one reads {FORMAT}'
                )
            check_line(line, f'{path}, line {number}')
            lines.append(Line.from_json(line))
        return lines


def setting_of(run: dict[str, Any]) -> str:
    """Return what runs must have in common to be averaged: data and recipe, the penalty aside."""
    recipe = {key: value for key, value in run['recipe'].items() if key != 'l1'}
    return json.dumps({'data': run['data'], 'limit': run['limit'], **recipe}, sort_keys=True)


def setting_in(experiment: Experiment, line: Line) -> str:
    """Return a line's setting; of a point that has a learning rate of its own, that of the points beside it."""
    recipe = line.run.get('recipe', {})
    if line.is_trained and _rates(experiment).get(line.point) == recipe.get('lr', 0):
        return setting_of({**line.run, 'recipe': {**recipe, 'lr': Recipe.lr}})
    return line.setting


def _rates(experiment: Experiment) -> dict[Point, float]:
    return {variant.point: variant.lr for variant in experiment.variants if variant.lr}


def settings(experiment: Experiment, lines: Sequence[Line]) -> list[str]:
    """Return the settings of trained lines: most epochs first, then most images, then most lines.

    Those of another recipe than the paper's are left out, all but the first if there are no others.
    """
    trained = [line for line in lines if line.is_trained]
    found = [setting_in(experiment, line) for line in trained]

    def rank(setting: str) -> tuple[float, ...]:
        content = json.loads(setting)
        return content['epochs'], content['limit'] or math.inf, found.count(setting)

    ranked = sorted(dict.fromkeys(found), key=rank, reverse=True)
    departing = {setting for setting, line in zip(found, trained, strict=True) if departures(experiment, line)}
    return [setting for setting in ranked if setting not in departing] or ranked[:1]


def departures(experiment: Experiment, line: Line) -> dict[str, Any]:
    """Return in what a line's recipe is not the paper's for its point, but for the epochs; {} if in nothing.

    The penalty is each variant's own. Older results left out incomplete last batches, which is no other recipe. What
    train.py trained does not tell more than its epochs.
    """
    if not line.is_trained or experiment.by_train_script:
        return {}
    paper = {name: getattr(Recipe, name) for name in _COMPARED} | {'lr': _rates(experiment).get(line.point, Recipe.lr)}
    recipe = line.run['recipe']
    return {name: recipe.get(name, 'not told') for name, value in paper.items() if recipe.get(name) != value}


def collect(experiment: Experiment, lines: Iterable[Line]) -> Cells:
    """Return, for each point of the experiment and key of values, the value of each training seed."""
    points = {variant.point for variant in experiment.variants}
    cells: Cells = {}
    for line in lines:
        if line.point in points:
            for key, value in line.values.items():
                cells.setdefault(line.point, {}).setdefault(key, {})[line.seed] = value
    return cells


def runs_of(cells: Cells, facet: str, series: str, x: Any, key: str) -> dict[int, Any]:
    """Return the value of each training seed at a point, {} where none is measured."""
    return cells.get(Point(facet, series, x), {}).get(key, {})
