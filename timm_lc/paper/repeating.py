"""The commands that make the runs of a page again, or in words why none does."""

import dataclasses
import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from timm_lc.paper.experiment import Experiment, Point
from timm_lc.paper.results import Line
from timm_lc.paper.runs import describe_run
from timm_lc.paper.selection import Selection, selection_of
from timm_lc.training.recipe import Recipe

__all__ = ['how_to_repeat']

_MOST = 3  # commands on a page


@dataclasses.dataclass(frozen=True)
class _Block:
    """Points that were trained with the same seeds, `runs` of them from `seed` on, all in autocast or none."""

    points: frozenset[Point]
    amp: bool
    seed: int
    runs: int = 1


def how_to_repeat(experiment: Experiment, lines: Sequence[Line]) -> list[str]:
    """Return paragraphs: the commands that train the runs of these lines and no others, or words.

    The lines are of one setting. On which device is left to who repeats them.
    """
    known = {variant.point for variant in experiment.variants}
    shown = {(line.point, line.seed, line.is_trained): line for line in lines if line.point in known}  # the last counts
    trained = [line for line in shown.values() if line.is_trained]
    untrained = {line.point for line in shown.values() if not line.is_trained}
    if experiment.by_train_script or not shown:
        return [f'`timm-lc reproduce {experiment.id}`']
    if not trained:
        return _of_untrained(experiment, untrained)
    if words := _of_earlier_versions(experiment, trained):
        return [words]
    more = bool(untrained - {line.point for line in trained})
    return _commands(experiment, trained) + ['What needs no training was measured of further points.'] * more


def _of_untrained(experiment: Experiment, points: set[Point]) -> list[str]:
    """Return how to measure points without training; where others can be trained, no command stops before that."""
    selection = selection_of(experiment.variants, points)
    command = ' '.join([f'timm-lc reproduce {experiment.id}', *(selection or Selection()).options])
    return [f'`{command}` trains more runs than are shown.' if experiment.measures else f'`{command}`']


def _commands(experiment: Experiment, trained: Sequence[Line]) -> list[str]:
    """Return up to three commands that train these runs alone, or one that trains more, and says so."""
    blocks = _blocks(experiment, trained)
    found = [(block, selection_of(experiment.variants, block.points)) for block in blocks]
    exact = [(block, selection) for block, selection in found if selection is not None]
    if len(exact) == len(blocks) <= _MOST:
        return [f'`{_command(experiment, trained, *each)}`' for each in exact]
    points = frozenset(line.point for line in trained)
    first, last = (end(line.seed for line in trained) for end in (min, max))
    block = _Block(points, all(block.amp for block in blocks), first, last - first + 1)
    command = _command(experiment, trained, block, selection_of(experiment.variants, points) or Selection())
    return [f'`{command}` trains more runs than are shown.']


def _blocks(experiment: Experiment, trained: Sequence[Line]) -> list[_Block]:
    """Return the lines as blocks, the first seed's first."""
    found: dict[tuple[int, bool], set[Point]] = {}
    for line in trained:
        found.setdefault((line.seed, bool((line.where or {}).get('amp'))), set()).add(line.point)
    blocks: list[_Block] = []
    for (seed, amp), points in sorted(found.items(), key=lambda item: item[0]):
        block = _Block(frozenset(points), amp, seed)
        before = [each for each in blocks if dataclasses.replace(block, seed=each.seed, runs=seed - each.seed) == each]
        if before and not experiment.single:  # of which a command trains one seed
            blocks[blocks.index(before[0])] = dataclasses.replace(before[0], runs=before[0].runs + 1)
        else:
            blocks.append(block)
    return blocks


def _command(experiment: Experiment, trained: Sequence[Line], block: _Block, selection: Selection) -> str:
    """Return the command that trains a selection with the seeds of a block."""
    run, recipe = trained[0].run, _recipe(experiment, trained)
    options = {'limit': (run['limit'], None), 'epochs': (recipe.epochs, None), 'seed': (block.seed, 0)}
    options |= {name: (getattr(recipe, name), getattr(Recipe, name)) for name in ('batch_size', 'lr')}
    options['runs'] = block.runs, None
    given = [f'--{name.replace("_", "-")} {value}' for name, (value, usual) in options.items() if value != usual]
    start = f'timm-lc reproduce {experiment.id} --data {shlex.quote(run["data"])}'
    return ' '.join([start, *given, *selection.options, *(['--amp'] if block.amp else [])])


def _recipe(experiment: Experiment, trained: Sequence[Line]) -> Recipe:
    """Return the recipe that options gave: the learning rate is that of points that have none of their own."""
    tuned = {variant.point for variant in experiment.variants if variant.lr}
    given, rates = trained[0].run['recipe'], [line.run['recipe'] for line in trained if line.point not in tuned]
    told = {'batch_size': given.get('batch_size'), 'lr': rates[0].get('lr') if rates else None}
    return Recipe(given['epochs'], **{name: value for name, value in told.items() if value is not None})


def _of_earlier_versions(experiment: Experiment, trained: Sequence[Line]) -> str:
    """Say in what runs differ from those that their points have now, which no option changes; '' if in nothing."""
    recipe, variants = _recipe(experiment, trained), {variant.point: variant for variant in experiment.variants}
    found = []
    for line in trained:
        run = variants[line.point].run(line.seed, recipe)
        now = json.loads(json.dumps(describe_run(run, line.run['data'], line.run['limit'])))
        found.append(list(_differences(line.run, now)))
    reasons = '; '.join(dict.fromkeys(reason for each in found for reason in each))
    part = '' if all(found) else ' in part'
    return reasons and f'Made{part} by an earlier version, whose runs no command repeats: {reasons}.'


def _differences(was: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Yield in what a run differs from another, but for its data."""
    recipe = {'drop_last': True, **was['recipe']}  # older results do not tell, and have left them out
    if recipe['drop_last'] != now['recipe']['drop_last']:
        yield 'incomplete last batches were left out'
    before, after = (run['model_kwargs'].get('implicit', False) for run in (was, now))
    if before != after:
        yield f'frozen networks were trained in the {"implicit" if before else "explicit"} form'
    if _network(was) != _network(now):
        yield 'networks had other arguments'
    others = [name for name in recipe | now['recipe'] if recipe.get(name) != now['recipe'].get(name)]
    if others := [name for name in others if name != 'drop_last']:
        yield f'the recipe had another {", ".join(others)}'


def _network(run: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a run's model and arguments but for its form."""
    return run['model'], {name: value for name, value in run['model_kwargs'].items() if name != 'implicit'}
