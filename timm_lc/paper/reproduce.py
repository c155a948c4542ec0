"""Make figures and tables: train what is missing, measure, write results (`timm-lc reproduce`)."""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from tqdm import tqdm

from timm_lc.paper.experiment import Experiment, Variant
from timm_lc.paper.imagenet import collect_runs, write_commands
from timm_lc.paper.measures import UNTRAINED
from timm_lc.paper.planning import Job, Options, chosen, open_results, plan
from timm_lc.paper.results import RUNS, Line, Results, setting_of
from timm_lc.paper.runs import describe_run, measure_run, train_once
from timm_lc.paper.sections import sections_of, write_sections
from timm_lc.training.data import Images, load_images
from timm_lc.training.files import read_json
from timm_lc.training.parallel import in_parallel
from timm_lc.training.recipe import Run
from timm_lc.training.trainer import RUN, OutOfTime, describe_device, versions

__all__ = ['reproduce']

Read = Callable[..., Images]


def reproduce(
    experiments: Sequence[Experiment], options: Options, read: Read = load_images, begun: float | None = None
) -> bool:
    """Run what is missing and write the results of each experiment; return whether nothing is missing any more.

    Args:
        experiments: To run.
        options: Of them all.
        read: `load_images`, or what remembers what that returned, as for the lines of a queue.
        begun: Time of `time.monotonic` from which `max_minutes` counts, as a queue's start; None is now.
    """
    deadline = (time.monotonic() if begun is None else begun) + 60 * options.max_minutes
    results = open_results(experiments, options)
    for experiment in experiments:
        if experiment.by_train_script:
            write_commands(experiment, options.output / experiment.id / 'commands.sh')
            if options.train_dirs:
                results[experiment.id].add(collect_runs(experiment, options.train_dirs))
        _measure_untrained(experiment, results[experiment.id], options, deadline)
    jobs = plan(experiments, options)
    missing = [job for job in (job.lacking(results) for job in jobs) if job.points]
    if missing:
        _finish_all(missing, results, options, deadline, read)
    for experiment in experiments:
        note = '' if missing or not experiment.measures else ' (no run was missing)'
        print(f'{experiment.id}: {_write(experiment, results[experiment.id], options)}{note}')
    untrained = any(_lacking_untrained(experiment, results[experiment.id], options) for experiment in experiments)
    return not untrained and not any(job.lacking(results).points for job in jobs)


def _finish_all(
    jobs: Sequence[Job], results: Mapping[str, Results], options: Options, deadline: float, read: Read
) -> None:
    """Train and measure what is missing, and write each result as it comes."""
    number = itertools.count(1)
    for data in dict.fromkeys(job.content['data'] for job in jobs):
        images = read(options.data if data == options.data_name else data, limit=options.limit)
        for known in results.values():
            known.check_images(images, options.limit)
        tasks = [(job, images, options, deadline) for job in jobs if job.content['data'] == data]
        for lines in in_parallel(_finish, tasks, options.jobs):
            progress = f'run {next(number)} of {len(jobs)}'
            for name, line in lines:
                results[name].add([line])
                _report(name, line, progress)


def _finish(job: Job, images: Images, options: Options, deadline: float) -> list[tuple[str, Line]]:
    """Train if need be, measure, and return (experiment, line) for each point; none if the time is up."""
    if time.monotonic() > deadline:
        return []
    try:
        trained = train_once(
            job.run, images, job.directory, options.device, options.speed, deadline=deadline, wait=options.wait
        )
    except OutOfTime:
        return []
    facts = read_json(job.directory / RUN)
    run, where = {**facts['run'], 'limit': options.limit}, {**facts['where'], 'seconds': trained['seconds']}
    lines = []
    for experiment, variant in job.points:
        values = measure_run(job.directory, experiment.measures, images, options.device, variant.amount)
        lines.append((experiment.id, Line.of(variant, run, where, values)))
    return lines


def _lacking_untrained(experiment: Experiment, results: Results, options: Options) -> list[Variant]:
    """Return the variants of which something that needs no training was not yet measured on this device."""
    device = describe_device(options.device)
    variants = chosen(experiment, options) if experiment.untrained else []
    return [variant for variant in variants if not results.has_untrained(variant, device)]


def _measure_untrained(experiment: Experiment, results: Results, options: Options, deadline: float) -> None:
    """Measure what needs no training, and write it into the results."""
    where = {'device': describe_device(options.device), 'threads': torch.get_num_threads(), **versions()}
    for variant in _lacking_untrained(experiment, results, options):
        if time.monotonic() > deadline:
            return
        measured = [UNTRAINED[name](variant, options.device) for name in experiment.untrained]
        line = Line.of(variant, None, where, {key: value for values in measured for key, value in values.items()})
        results.add([line])
        if not experiment.measures:
            _report(experiment.id, line)


def _write(experiment: Experiment, results: Results, options: Options) -> str:
    """Write the pages of all results, as `timm-lc report` does; return where, or why not."""
    if not results.lines:
        commands = f': {results.directory / "commands.sh"} trains it' if experiment.by_train_script else ''
        return f'nothing is measured yet{commands}'
    sections = sections_of(experiment, results.lines)
    paths = ', '.join(map(str, write_sections(sections, options.output)))
    run = describe_run(Run('', seed=0, recipe=options.recipe), experiment.data or options.data_name, options.limit)
    shown = {line.setting for section in sections for line in section.lines}
    unseen = setting_of(run) in {line.setting for line in results.lines} - shown
    return paths + (f', of other runs; those of these options are in {RUNS} alone' if unseen else '')


def _report(name: str, line: Line, progress: str = '') -> None:
    numbers = {key: value for key, value in line.values.items() if isinstance(value, int | float)}
    shown = ', '.join(f'{key} {value:.4g}' for key, value in numbers.items())
    point = ' '.join(str(part) for part in line.point if part != '')
    seed = f', seed {line.seed}' if line.is_trained else ''
    tqdm.write(f'{name}: {point}{seed}: {shown or "pictures"}' + (f' ({progress})' if progress else ''))
