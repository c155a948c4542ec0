"""Which training runs experiments need, which of them there are, and how long the others would take."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from timm_lc.arguments import check_count
from timm_lc.paper.estimate import Estimator
from timm_lc.paper.experiment import Experiment, Variant
from timm_lc.paper.results import Results
from timm_lc.paper.runs import describe_run, folder_of, known_values
from timm_lc.paper.selection import Selection, select
from timm_lc.training.data import DATA, TRAIN_IMAGES
from timm_lc.training.recipe import Recipe, Run, Speed
from timm_lc.training.trainer import STATE

__all__ = ['Job', 'Options', 'chosen', 'list_experiments', 'list_runs', 'open_results', 'plan']


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
        wait: Whether to wait for a run that another process trains; else it is left to it.
        time_networks: Whether an estimate times networks that were not trained here yet.
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
    wait: bool = True
    time_networks: bool = False

    def __post_init__(self) -> None:
        for name in ('runs', 'jobs', 'limit'):
            if name != 'limit' or self.limit is not None:
                check_count(name, getattr(self, name))
        if not self.max_minutes >= 0:
            raise ValueError(f'`max_minutes` must be 0 or a positive number, got {self.max_minutes}')
        if self.data not in DATA and not Path(self.data).is_dir():
            raise ValueError(f'`data` must be one of {", ".join(DATA)} or a folder, got {self.data!r}')
        try:
            re.compile(self.only)
        except re.error as error:
            raise ValueError(f'`only` must be a regular expression, got {self.only!r}: {error}') from error
        if missing := [str(folder) for folder in self.train_dirs if not folder.is_dir()]:
            raise ValueError(f'`--train-dirs` must be folders, got {", ".join(missing)}: no such folder')
        index, count = self.shard
        if not 1 <= index <= count:
            raise ValueError(f'`shard` must be i/n with 1 <= i <= n, got {index}/{count}')

    @property
    def data_name(self) -> str:
        """The name that the images will have."""
        return Path(self.data).resolve().name if Path(self.data).is_dir() else self.data


@dataclasses.dataclass(frozen=True)
class Job:
    """A training run, and the points that are made of it.

    Attributes:
        run: What is trained.
        content: The same with data and limit, as `describe_run` tells it.
        directory: Of the trained network.
        points: (experiment, variant) of each.
    """

    run: Run
    content: dict[str, Any]
    directory: Path
    points: tuple[tuple[Experiment, Variant], ...]

    def lacking(self, results: Mapping[str, Results]) -> 'Job':
        """Return the job with only those points that the results have not."""
        points = [point for point in self.points if not results[point[0].id].has(point[1], self.content)]
        return dataclasses.replace(self, points=tuple(points))

    def state(self, results: Mapping[str, Results]) -> str:
        """Return how far it is: in results, trained, interrupted, or missing."""
        if not self.lacking(results).points:
            return 'in results'
        if known_values(self.directory):
            return 'trained'
        return 'interrupted' if (self.directory / STATE).is_file() else 'missing'


def open_results(experiments: Sequence[Experiment], options: Options) -> dict[str, Results]:
    """Return the results of each experiment by its id."""
    return {experiment.id: Results(options.output / experiment.id) for experiment in experiments}


def plan(experiments: Sequence[Experiment], options: Options) -> list[Job]:
    """Return the training runs of experiments, each once, seed by seed; those of the shard.

    Raises:
        ValueError: If no variant of an experiment is left.
    """
    places = list(dict.fromkeys(str(variant.x) for experiment in experiments for variant in experiment.variants))
    if unknown := ', '.join(value for value in options.values if value not in places):
        raise ValueError(f'`values` must be of the axis, got {unknown}; the axis has {", ".join(places)}')
    jobs: dict[str, Job] = {}
    points = [(experiment, variant) for experiment in experiments for variant in chosen(experiment, options)]
    for seed in range(options.seed, options.seed + options.runs):
        for experiment, variant in points:
            if experiment.measures and not (experiment.single and seed > options.seed):
                job = _job(experiment, variant, seed, options)
                points_so_far = jobs[job.directory.name].points if job.directory.name in jobs else ()
                jobs[job.directory.name] = dataclasses.replace(job, points=points_so_far + job.points)
    index, count = options.shard
    return list(jobs.values())[index - 1 :: count]


def _job(experiment: Experiment, variant: Variant, seed: int, options: Options) -> Job:
    run = variant.run(seed, options.recipe)
    content = describe_run(run, experiment.data or options.data_name, options.limit)
    return Job(run, content, options.runs_dir / folder_of(content), ((experiment, variant),))


def chosen(experiment: Experiment, options: Options) -> list[Variant]:
    """Return the variants that `only` and `values` leave.

    Raises:
        ValueError: If they leave none.
    """
    variants = select(experiment.variants, Selection(options.only, options.values))
    if not variants:
        known = ', '.join(dict.fromkeys(str(variant.x) for variant in experiment.variants))
        raise ValueError(f'no point of {experiment.id} is left by `--only` and `--values`; its values are {known}')
    return variants


def list_experiments(experiments: Sequence[Experiment], options: Options) -> Iterator[str]:
    """Yield a line for each experiment, and one for all: runs, those missing, and the time that these would take."""
    estimator, results = _estimator(options), open_results(experiments, options)
    yield f'{"id":<24}{"runs":>6}{"missing":>9}{"time":>9}  title'
    for experiment in experiments:
        if experiment.by_train_script:
            cost = f'{"-":>6}{"-":>9}{"train.py":>9}'
        else:
            cost = _cost(plan([experiment], options), results, estimator, _train_images(options, experiment.data))
        yield f'{experiment.id:<24}{cost}  {experiment.title}'
    cost = _cost(plan(experiments, options), results, estimator, _train_images(options))
    yield f'{"all":<24}{cost}  each shared run once'
    yield f'time to train what is missing, one run after another: {estimator.source()}'


def list_runs(experiments: Sequence[Experiment], options: Options) -> Iterator[str]:
    """Yield a line for each run: its state, its folder, the points made of it; then what missing ones would take."""
    jobs, results = plan(experiments, options), open_results(experiments, options)
    for job in jobs:
        points = '; '.join(f'{experiment.id} {variant.name}' for experiment, variant in job.points)
        yield f'{job.state(results):<12}{job.directory.name}  {points}'
    for name in [experiment.id for experiment in experiments if experiment.by_train_script]:
        yield f'{"train.py":<12}{name}: trained by timm, read from `--train-dirs`, and not among the runs below'
    estimator = _estimator(options)
    yield f'{"runs":>6}{"missing":>9}{"time":>9}\n{_cost(jobs, results, estimator, _train_images(options))}'
    yield f'time: {estimator.source()}'


def _train_images(options: Options, data: str = '') -> int:
    """Return the number of training images of a data set, or of that of the options, not reading them."""
    data = data or options.data
    count = TRAIN_IMAGES.get(data) or _files(data)
    return min(count, options.limit or count)


@functools.cache  # once for the lines of a queue
def _files(data: str) -> int:
    return sum(path.is_file() for path in Path(data, 'train').glob('*/*'))


def _estimator(options: Options) -> Estimator:
    speed = options.speed or Speed.best_for(options.device)
    return Estimator(options.runs_dir, options.device, speed, time_networks=options.time_networks)


def _cost(jobs: Sequence[Job], results: Mapping[str, Results], estimator: Estimator, images: int) -> str:
    missing = [job for job in jobs if job.state(results) in ('missing', 'interrupted')]
    time = estimator.total([job.run for job in missing], images) if missing else '-'
    return f'{len(jobs):>6}{len(missing):>9}{time:>9}'
