"""Run what an experiment is missing, and write its results: `timm-lc reproduce`."""

import contextlib
import dataclasses
import json
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from tqdm import tqdm

from timm_lc.analysis.plots import save
from timm_lc.experiments.data import Images, load_images
from timm_lc.experiments.experiment import Experiment, Variant
from timm_lc.experiments.figures import draw
from timm_lc.experiments.measures import FRESH
from timm_lc.experiments.results import Line, collect, describe, load, make_line, merge, setting_of
from timm_lc.experiments.runs import complete, folder_of, known_values, measure_run, run_facts
from timm_lc.experiments.tables import markdown_table
from timm_lc.experiments.trainer import STATE, OutOfTime, Recipe, Run, Speed, describe_device

__all__ = ['Job', 'Options', 'plan', 'reproduce', 'write_results']


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

    def __post_init__(self) -> None:
        for name in ('runs', 'jobs'):
            if getattr(self, name) < 1:
                raise ValueError(f'`{name}` must be a positive integer, got {getattr(self, name)}')
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


@dataclasses.dataclass(frozen=True)
class Job:
    """A training run, and the points that are made of it: (experiment, variant)."""

    run: Run
    directory: Path
    points: tuple[tuple[Experiment, Variant], ...]

    def state(self, options: Options) -> str:
        """Return how far it is: in results, trained, interrupted, or missing."""
        if not _lacking(self, options):
            return 'in results'
        if known_values(self.directory):
            return 'trained'
        return 'interrupted' if (self.directory / STATE).is_file() else 'missing'


def plan(experiments: Sequence[Experiment], options: Options) -> list[Job]:
    """Return the training runs of experiments, each once, seed by seed; those of the shard.

    Raises:
        ValueError: If no variant of an experiment is left.
    """
    found: dict[str, tuple[Run, list[tuple[Experiment, Variant]]]] = {}
    chosen = [(experiment, variant) for experiment in experiments for variant in _chosen(experiment, options)]
    for seed in range(options.seed, options.seed + options.runs):
        for experiment, variant in chosen:
            run = variant.run(seed, options.recipe)
            folder = folder_of(run, options.data_name, options.limit)
            if experiment.measures and not (experiment.single and seed > options.seed):
                found.setdefault(folder, (run, []))[1].append((experiment, variant))
    index, count = options.shard
    jobs = [Job(run, options.runs_dir / folder, tuple(points)) for folder, (run, points) in found.items()]
    return jobs[index - 1 :: count]


def reproduce(experiments: Sequence[Experiment], options: Options) -> bool:
    """Run what is missing and write the results of each experiment; return whether nothing is missing any more."""
    for experiment in experiments:
        _measure_fresh(experiment, options)
    jobs = plan(experiments, options)
    missing = [job for job in jobs if _lacking(job, options)]
    if missing:
        images = load_images(options.data, limit=options.limit)
        for number, lines in enumerate(_work_off(missing, images, options), 1):
            for name, line in lines:
                merge(options.output / name, [line])
            _report(lines, f'run {number} of {len(missing)}')
    for experiment in experiments:
        write_results(experiment, options.output / experiment.id, _setting(options))
    return not any(_lacking(job, options) for job in jobs)


def write_results(experiment: Experiment, directory: Path, setting: str) -> None:
    """Write `table.md`, and the figure as PNG and SVG, of what `runs.jsonl` holds of one setting."""
    cells = collect(experiment, load(directory), setting)
    lines = [f'# {experiment.id}: {experiment.title}', '', _describe_setting(setting), '']
    lines += [markdown_table(experiment, cells), '']
    lines += [f'- The paper: {text}' for text in experiment.says] + [f'- {text}' for text in experiment.notes]
    (directory / 'table.md').write_text('\n'.join([*lines, '']), encoding='utf-8')
    figure = draw(experiment, cells)
    if figure is not None:
        for suffix in ('png', 'svg'):
            save(figure, directory / f'{experiment.id}.{suffix}')


def _chosen(experiment: Experiment, options: Options) -> list[Variant]:
    variants = [
        variant
        for variant in experiment.variants
        if re.search(options.only, variant.name) and (not options.values or str(variant.x) in options.values)
    ]
    if not variants:
        known = ', '.join(dict.fromkeys(str(variant.x) for variant in experiment.variants))
        raise ValueError(f'no point of {experiment.id} is left by `--only` and `--values`; its values are {known}')
    return variants


def _setting(options: Options) -> str:
    return setting_of(describe(Run('', seed=0, recipe=options.recipe), options.data_name, options.limit))


def _lacking(job: Job, options: Options) -> list[tuple[Experiment, Variant]]:
    """Return the points of a job that no results file has."""
    wanted = json.loads(json.dumps(describe(job.run, options.data_name, options.limit)))
    return [
        (experiment, variant)
        for experiment, variant in job.points
        if not any(
            (line['facet'], line['series'], line['x']) == (variant.facet, variant.series, variant.x)
            and {key: line['run'].get(key) for key in wanted} == wanted
            for line in load(options.output / experiment.id)
        )
    ]


def _measure_fresh(experiment: Experiment, options: Options) -> None:
    """Measure what needs no training, unless it was measured on this device; write it into the results."""
    directory, device = options.output / experiment.id, describe_device(options.device)
    where = {'device': device, 'threads': torch.get_num_threads(), 'torch': torch.__version__, 'timm': timm.__version__}
    for variant in _chosen(experiment, options) if experiment.fresh else ():
        point = (variant.facet, variant.series, variant.x, device)
        known = [line for line in load(directory) if line['run']['seed'] is None]
        if point not in [(line['facet'], line['series'], line['x'], line['where']['device']) for line in known]:
            values: dict[str, Any] = {}
            for name in experiment.fresh:
                values.update(FRESH[name](variant, options.device))
            line = make_line(variant, None, where, values)
            merge(directory, [line])
            if not experiment.measures:
                _report([(experiment.id, line)])


def _work_off(jobs: Sequence[Job], images: Images, options: Options) -> Iterator[list[tuple[str, Line]]]:
    """Yield the lines of each job as it ends; stop when the time is up."""
    deadline = time.monotonic() + 60 * options.max_minutes
    if options.jobs == 1:
        for job in jobs:
            if time.monotonic() < deadline:
                yield _finish(job, images, options, deadline)
        return
    tasks = [(job, images, options, deadline) for job in jobs]
    context = torch.multiprocessing.get_context('spawn')
    with context.Pool(options.jobs, _prepare_worker, (options.jobs,)) as pool:
        yield from pool.imap_unordered(_finish_task, tasks)


def _prepare_worker(jobs: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    os.environ['TQDM_DISABLE'] = '1'


def _finish_task(task: tuple[Job, Images, Options, float]) -> list[tuple[str, Line]]:
    return _finish(*task) if time.monotonic() < task[-1] else []


def _finish(job: Job, images: Images, options: Options, deadline: float) -> list[tuple[str, Line]]:
    """Train if need be, measure, and return (experiment, line) for each point; none if the time is up."""
    with contextlib.suppress(OutOfTime):
        complete(job.run, images, job.directory, options.device, options.speed, deadline=deadline)
        facts = run_facts(job.directory)
        run = {**facts['run'], 'limit': options.limit}
        return [
            (
                experiment.id,
                make_line(
                    variant,
                    run,
                    facts['where'],
                    measure_run(job.directory, experiment.measures, images, options.device, variant.amount),
                ),
            )
            for experiment, variant in _lacking(job, options)
        ]
    return []


def _report(lines: Sequence[tuple[str, Line]], progress: str = '') -> None:
    for name, line in lines:
        numbers = {key: value for key, value in line['values'].items() if isinstance(value, int | float)}
        shown = ', '.join(f'{key} {value:.4g}' for key, value in numbers.items())
        point = ' '.join(str(part) for part in (line['facet'], line['series'], line['x']) if part != '')
        seed = '' if line['run']['seed'] is None else f', seed {line["run"]["seed"]}'
        tqdm.write(f'{name}: {point}{seed}: {shown or "pictures"}' + (f' ({progress})' if progress else ''))


def _describe_setting(setting: str) -> str:
    parts = json.loads(setting)
    limit = '' if parts['limit'] is None else f', {parts["limit"]} images of each split'
    epochs = f'{parts["epochs"]} epoch{"s"[: parts["epochs"] > 1]}'
    recipe = f'{epochs}, batch {parts["batch_size"]}, lr {parts["lr"]:g}'
    return f'{parts["data"]}{limit}, {recipe}. Mean ± standard deviation (runs).'
