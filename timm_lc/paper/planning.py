"""Which training runs experiments need, which of them there are, and how long the others would take."""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from timm_lc.paper.estimate import Estimator, duration
from timm_lc.paper.experiment import Experiment, Variant
from timm_lc.paper.results import RUNS, Line, describe, load
from timm_lc.paper.runs import folder_of, known_values
from timm_lc.training.data import DATA
from timm_lc.training.trainer import STATE, Recipe, Run, Speed

__all__ = ['Job', 'Options', 'chosen', 'list_experiments', 'list_runs', 'plan']


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run, where, and where results go.

    Args:
        data: As in `load_images`.
        device: Where to train and measure.
        recipe: Of every run; the penalty is each variant's own.
        runs: Training seeds of each variant.
        seed: The first of them.
        limit: Images of each split; None is all.
        output: Folder of results.
        runs_dir: Folder of trained networks.
        speed: How to use the device; None is the best for it.
        jobs: Runs at once.
        shard: (i, n): the i-th of n parts of the runs, from 1.
        max_minutes: After which no epoch is to end.
        only: Regular expression that names of variants must match.
        values: The x values to keep, as text; () is all.
        train_dirs: Folders of train.py's runs on ImageNet.
    """

    data: str
    device: torch.device
    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    runs: int = 4
    seed: int = 0
    limit: int | None = None
    output: Path = Path('results')
    runs_dir: Path = Path('output/runs')
    speed: Speed | None = None
    jobs: int = 1
    shard: tuple[int, int] = (1, 1)
    max_minutes: float = math.inf
    only: str = ''
    values: tuple[str, ...] = ()
    train_dirs: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        for name in ('runs', 'jobs', 'limit'):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f'`{name}` must be a positive integer, got {value}')
        if not self.max_minutes >= 0:
            raise ValueError(f'`max_minutes` must be 0 or a positive number, got {self.max_minutes}')
        if self.data not in DATA and not Path(self.data).is_dir():
            raise ValueError(f'`data` must be one of {", ".join(DATA)} or a folder, got {self.data!r}')
        try:
            re.compile(self.only)
        except re.error as error:
            raise ValueError(f'`only` must be a regular expression, got {self.only!r}: {error}') from error
        index, count = self.shard
        if not 1 <= index <= count:
            raise ValueError(f'`shard` must be i/n with 1 <= i <= n, got {index}/{count}')

    @property
    def data_name(self) -> str:
        """The name that the images will have."""
        return Path(self.data).resolve().name if Path(self.data).is_dir() else self.data

    def lines(self, experiment: Experiment) -> list[Line]:
        """Return an experiment's results, read anew only if the file has changed."""
        directory = self.output / experiment.id
        changed = (directory / RUNS).stat().st_mtime_ns if (directory / RUNS).is_file() else 0
        return _load_version(directory, changed)

    @property
    def train_images(self) -> int:
        """The number of training images, not reading them."""
        sizes = {'cifar10': 50_000, 'cifar100': 50_000, 'digits': 1347}
        count = sizes.get(self.data) or sum(1 for path in Path(self.data, 'train').glob('*/*') if path.is_file())
        return min(count, self.limit or count)


@dataclasses.dataclass(frozen=True)
class Job:
    """A training run, and the points that are made of it: (experiment, variant)."""

    run: Run
    directory: Path
    points: tuple[tuple[Experiment, Variant], ...]

    def lacking(self, options: Options) -> 'Job':
        """Return the job with only those points that no results file has."""
        wanted = json.loads(json.dumps(describe(self.run, options.data_name, options.limit)))
        points = [
            (experiment, variant)
            for experiment, variant in self.points
            if not any(
                (line['facet'], line['series'], line['x']) == (variant.facet, variant.series, variant.x)
                and {key: line['run'].get(key) for key in wanted} == wanted
                for line in options.lines(experiment)
            )
        ]
        return dataclasses.replace(self, points=tuple(points))

    def state(self, options: Options) -> str:
        """Return how far it is: in results, trained, interrupted, or missing."""
        if not self.lacking(options).points:
            return 'in results'
        if known_values(self.directory):
            return 'trained'
        return 'interrupted' if (self.directory / STATE).is_file() else 'missing'


def plan(experiments: Sequence[Experiment], options: Options) -> list[Job]:
    """Return the training runs of experiments, each once, seed by seed; those of the shard.

    Raises:
        ValueError: If no variant of an experiment is left.
    """
    places = list(dict.fromkeys(str(variant.x) for experiment in experiments for variant in experiment.variants))
    if unknown := ', '.join(value for value in options.values if value not in places):
        raise ValueError(f'`values` must be of the axis, got {unknown}; the axis has {", ".join(places)}')
    found: dict[str, tuple[Run, list[tuple[Experiment, Variant]]]] = {}
    points = [(experiment, variant) for experiment in experiments for variant in chosen(experiment, options)]
    for seed in range(options.seed, options.seed + options.runs):
        for experiment, variant in points:
            run = variant.run(seed, options.recipe)
            folder = folder_of(run, options.data_name, options.limit)
            if experiment.measures and not (experiment.single and seed > options.seed):
                found.setdefault(folder, (run, []))[1].append((experiment, variant))
    index, count = options.shard
    jobs = [Job(run, options.runs_dir / folder, tuple(made)) for folder, (run, made) in found.items()]
    return jobs[index - 1 :: count]


def chosen(experiment: Experiment, options: Options) -> list[Variant]:
    """Return the variants that `only` and `values` leave.

    Raises:
        ValueError: If they leave none.
    """
    variants = [
        variant
        for variant in experiment.variants
        if re.search(options.only, variant.name) and (not options.values or str(variant.x) in options.values)
    ]
    if not variants:
        known = ', '.join(dict.fromkeys(str(variant.x) for variant in experiment.variants))
        raise ValueError(f'no point of {experiment.id} is left by `--only` and `--values`; its values are {known}')
    return variants


def list_experiments(experiments: Sequence[Experiment], options: Options) -> Iterator[str]:
    """Yield a line for each experiment, and one for all: runs, those missing, and the time that these would take."""
    estimator, images = _estimator(options), options.train_images
    yield f'{"id":<8}{"runs":>6}{"missing":>9}{"time":>9}  title'
    for experiment in experiments:
        jobs = plan([experiment], options)
        yield f'{experiment.id:<8}{_cost(jobs, options, estimator, images)}  {experiment.title}'
    yield f'{"all":<8}{_cost(plan(experiments, options), options, estimator, images)}  each shared run once'
    yield f'time to train what is missing, one run after another: {estimator.source()}'


def list_runs(experiments: Sequence[Experiment], options: Options) -> Iterator[str]:
    """Yield a line for each run: its state, its folder, the points made of it; then what missing ones would take."""
    jobs = plan(experiments, options)
    for job in jobs:
        points = '; '.join(f'{experiment.id} {variant.name}' for experiment, variant in job.points)
        yield f'{job.state(options):<12}{job.directory.name}  {points}'
    estimator = _estimator(options)
    yield f'{"runs":>6}{"missing":>9}{"time":>9}\n{_cost(jobs, options, estimator, options.train_images)}'
    yield f'time: {estimator.source()}'


@functools.lru_cache(maxsize=64)
def _load_version(directory: Path, changed: int) -> list[Line]:
    return load(directory)


def _estimator(options: Options) -> Estimator:
    return Estimator(options.runs_dir, options.device, options.speed or Speed.best_for(options.device))


def _cost(jobs: Sequence[Job], options: Options, estimator: Estimator, images: int) -> str:
    missing = [job.run for job in jobs if job.state(options) in ('missing', 'interrupted')]
    return f'{len(jobs):>6}{len(missing):>9}{duration(estimator.total(missing, images)) if missing else "-":>9}'
