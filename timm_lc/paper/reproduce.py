"""Run what an experiment is missing, and write its results: `timm-lc reproduce`."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from timm_lc.paper.experiment import Experiment, Variant
from timm_lc.paper.imagenet import collect_runs, write_commands
from timm_lc.paper.measures import UNTRAINED
from timm_lc.paper.planning import Job, Options, chosen, plan
from timm_lc.paper.results import Line, describe, make_line, merge, setting_of, settings
from timm_lc.paper.runs import measure_run, run_facts, train_once
from timm_lc.paper.sections import make_section, write_section
from timm_lc.training.data import Images, load_images
from timm_lc.training.parallel import in_parallel
from timm_lc.training.trainer import OutOfTime, Run, describe_device, versions

__all__ = ['reproduce']


def reproduce(experiments: Sequence[Experiment], options: Options) -> bool:
    """Run what is missing and write the results of each experiment; return whether nothing is missing any more."""
    deadline = time.monotonic() + 60 * options.max_minutes
    for experiment in experiments:
        _measure_untrained(experiment, options, deadline)
        if experiment.by_train_script:
            write_commands(experiment, options.output / experiment.id / 'commands.sh')
            merge(options.output / experiment.id, collect_runs(experiment, options.train_dirs))
    jobs = plan(experiments, options)
    missing = [job for job in (job.lacking(options) for job in jobs) if job.points]
    if missing:
        images = load_images(options.data, limit=options.limit)
        _check_images(images, experiments, options)
        tasks = [(job, images, options, deadline) for job in missing]
        for number, lines in enumerate(in_parallel(_finish, tasks, options.jobs), 1):
            for name, line in lines:
                merge(options.output / name, [line])
            _report(lines, f'run {number} of {len(missing)}')
    for experiment in experiments:
        known = settings(options.lines(experiment))
        setting = next(iter(known), '') if experiment.by_train_script else _setting(options)
        path = write_section(make_section(experiment, options.output / experiment.id, setting), options.output)
        print(f'{experiment.id}: {path}' + ('' if missing or not experiment.measures else ' (no run was missing)'))
    untrained_is_whole = all(not _lacking_untrained(experiment, options) for experiment in experiments)
    return untrained_is_whole and not any(job.lacking(options).points for job in jobs)


def _check_images(images: Images, experiments: Sequence[Experiment], options: Options) -> None:
    """Refuse to add to results of other images of the same name."""
    for experiment in experiments:
        for line in options.lines(experiment):
            run = line['run']
            same = (run.get('data'), run.get('limit')) == (images.name, options.limit)
            if same and run.get('checksum', images.checksum) != images.checksum:
                raise ValueError(
                    f'`--output` {options.output / experiment.id} holds results of other images named {images.name}: '
                    'give another folder, or rename that of `--data`'
                )


def _setting(options: Options) -> str:
    return setting_of(describe(Run('', seed=0, recipe=options.recipe), options.data_name, options.limit))


def _lacking_untrained(experiment: Experiment, options: Options) -> list[Variant]:
    """Return the variants of which something that needs no training was not yet measured on this device."""
    device, known = describe_device(options.device), options.lines(experiment)
    points = [
        (line['facet'], line['series'], line['x'], line['where']['device'])
        for line in known
        if line['run']['seed'] is None
    ]
    variants = chosen(experiment, options) if experiment.untrained else []
    return [variant for variant in variants if (variant.facet, variant.series, variant.x, device) not in points]


def _measure_untrained(experiment: Experiment, options: Options, deadline: float) -> None:
    """Measure what needs no training, and write it into the results."""
    where = {'device': describe_device(options.device), 'threads': torch.get_num_threads(), **versions()}
    for variant in _lacking_untrained(experiment, options):
        if time.monotonic() > deadline:
            return
        values: dict[str, Any] = {}
        for name in experiment.untrained:
            values.update(UNTRAINED[name](variant, options.device))
        line = make_line(variant, None, where, values)
        merge(options.output / experiment.id, [line])
        if not experiment.measures:
            _report([(experiment.id, line)])


def _finish(job: Job, images: Images, options: Options, deadline: float) -> list[tuple[str, Line]]:
    """Train if need be, measure, and return (experiment, line) for each point; none if the time is up."""
    if time.monotonic() > deadline:
        return []
    try:
        train_once(job.run, images, job.directory, options.device, options.speed, deadline=deadline)
    except OutOfTime:
        return []
    facts = run_facts(job.directory)
    run = {**facts['run'], 'limit': options.limit}
    lines = []
    for experiment, variant in job.points:
        values = measure_run(job.directory, experiment.measures, images, options.device, variant.amount)
        lines.append((experiment.id, make_line(variant, run, facts['where'], values)))
    return lines


def _report(lines: Sequence[tuple[str, Line]], progress: str = '') -> None:
    for name, line in lines:
        numbers = {key: value for key, value in line['values'].items() if isinstance(value, int | float)}
        shown = ', '.join(f'{key} {value:.4g}' for key, value in numbers.items())
        point = ' '.join(str(part) for part in (line['facet'], line['series'], line['x']) if part != '')
        seed = '' if line['run']['seed'] is None else f', seed {line["run"]["seed"]}'
        tqdm.write(f'{name}: {point}{seed}: {shown or "pictures"}' + (f' ({progress})' if progress else ''))
