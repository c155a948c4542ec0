"""Whether what was measured agrees with what the paper prints, and what ours shows where the paper speaks in words."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from timm_lc.analysis.intervals import mean_and_std, paired_interval
from timm_lc.paper.experiment import FROZEN, GAP, LEARNABLE, PLAIN, Experiment, Printed
from timm_lc.paper.results import Cells, Line, departures, runs_of
from timm_lc.paper.tables import differences
from timm_lc.training.recipe import Recipe

__all__ = [
    'AGREES', 'DIFFERS', 'MISSING', 'OPEN', 'SHORT', 'UNCLEAR', 'Verdict', 'findings', 'incomparable', 'shortfall',
    'verdict_of',
]  # fmt: skip

AGREES, DIFFERS, SHORT, OPEN, MISSING = 'agrees', 'differs', 'too short to tell', 'no number to compare', 'not run'
UNCLEAR = 'too few runs to tell'
IMAGENET_EPOCHS = 300
POINTS, PERCENT = 0.5, 5.0  # what counts as equal where the paper prints no deviation


class Verdict(NamedTuple):
    """One of the six words above, and why."""

    word: str
    reason: str


class _Compared(NamedTuple):
    """Ours beside a number of the paper, or beside a difference of two; what lies within `tolerance` is equal."""

    name: str
    key: str
    ours: float
    paper: float
    high: float
    tolerance: float
    is_difference: bool = False
    runs: int = 1

    @property
    def excess(self) -> float:
        """Distance from the paper's number or range, over the tolerance."""
        return abs(self.ours - min(max(self.ours, self.paper), self.high)) / self.tolerance

    def tell(self, value: float) -> str:
        """Return one of the numbers as text."""
        return f'{value:+.2f}' if self.is_difference else f'{value:,.0f}' if abs(value) >= 1e5 else f'{value:,.5g}'

    @property
    def is_unclear(self) -> bool:
        """Whether ours, so many runs, and the paper's difference are both as good as none."""
        return self.is_difference and abs(self.ours) < self.tolerance / math.sqrt(self.runs) and self.excess <= 1


def verdict_of(experiment: Experiment, lines: Sequence[Line], cells: Cells) -> Verdict:
    """Return whether the numbers of an experiment agree with the paper's, within two of its standard deviations.

    On images that are not the paper's, such as CIFAR-10 as JPEG, only differences of two networks are compared.
    """
    if not lines:
        return Verdict(MISSING, 'no run of ours')
    if _length(experiment, lines):
        return Verdict(SHORT, shortfall(experiment, lines))
    if other := shortfall(experiment, lines):
        return Verdict(OPEN, f"not the paper's recipe: {other}")
    if not experiment.printed:
        return Verdict(OPEN, 'an experiment of ours' if experiment.is_ours else 'the paper prints no number of it')
    others = sorted({line.run['data'] for line in lines if _has_other_images(experiment, line)})
    compared = _compared(experiment, cells, incomparable(experiment, lines), images=not others)
    if not compared and others:
        return Verdict(OPEN, f"{', '.join(others)} is not the paper's images, and no pair that it prints is measured")
    if not compared:
        return Verdict(OPEN, 'none of the points with a number in print is measured')
    far = [found for found in compared if found.excess > 1]
    learned = {key for line in lines if line.is_trained for key in line.values}
    if experiment.measures and not far and not any(found.key in learned for found in compared):
        counts = f'{len(compared)} count{"s"[: len(compared) > 1]} within {PERCENT:g} %'
        return Verdict(OPEN, f"no accuracy in print is measured on the paper's images; {counts}")
    if 'timing' in experiment.untrained:
        sizes = f'{len(compared) - len(far)} of {len(compared)} checkpoint sizes within {PERCENT:g} %'
        return Verdict(OPEN, f'times and memory of another device than the paper used; {sizes}')
    most = max(far or compared, key=lambda found: found.excess)
    beside = f'{most.name}: {most.tell(most.ours)}, paper {most.tell(most.paper)}'
    if far:
        return Verdict(DIFFERS, f'{len(far)} of {len(compared)} numbers; the most {beside}')
    if all(found.is_unclear for found in compared):
        return Verdict(UNCLEAR, f'{beside}, which may be none: two deviations are {most.tolerance:.2f}')
    return Verdict(AGREES, _agreement(experiment, len(compared)))


def _agreement(experiment: Experiment, count: int) -> str:
    """Say what agrees, and what is not judged."""
    equal = 'two of its deviations, or 0.5 points or 5 % where it prints none'
    parts = [f'{count} number{"s"[: count > 1]} within {equal}']
    parts += ['what it says in words is not judged'] if experiment.says else []
    return '; '.join(parts)


def _compared(experiment: Experiment, cells: Cells, others: set[str], images: bool) -> list[_Compared]:
    """Return ours beside each number of the paper, less those of the values in `others`.

    Where the images are not the paper's, so `images` is False, differences of its numbers take their place.
    """
    pairs = [] if images else _pairs(experiment)
    places = {(first.facet, first.x, first.key) for first, _ in pairs}
    numbers = [
        printed
        for printed in experiment.printed
        if (printed.facet, printed.x, printed.key) not in places
        and (printed.series == GAP or printed.key not in others)
    ]
    found = [_beside(experiment, cells, printed) for printed in numbers]
    found += [_difference_of(experiment, cells, *pair) for pair in pairs]
    known = [each for each in found if each is not None]
    return list({each[1:]: each for each in known}.values())  # a level line is one number


def _beside(experiment: Experiment, cells: Cells, printed: Printed) -> _Compared | None:
    is_gap = printed.series == GAP
    if is_gap:
        ours: Sequence[float] = differences(experiment, cells, printed.facet, printed.x, printed.key)
    else:
        ours = list(runs_of(cells, printed.facet, printed.series, printed.x, printed.key).values())
    if not ours:
        return None
    high = printed.low if printed.high is None else printed.high
    relative = any(value.key == printed.key and value.relative for value in experiment.values)
    tolerance = PERCENT / 100 * abs(printed.low) if relative else 2 * (printed.std or POINTS / 2)
    return _Compared(
        _name(printed), printed.key, mean_and_std(ours)[0], printed.low, high, tolerance, is_gap, len(ours)
    )


def _pairs(experiment: Experiment) -> list[tuple[Printed, Printed]]:
    """Return the pairs of networks whose accuracies, with deviations, the paper prints for one place."""
    order = (FROZEN, LEARNABLE, PLAIN)
    printed = sorted(
        (each for each in experiment.printed if each.series in order and each.std),
        key=lambda each: order.index(each.series),
    )
    pairs = itertools.combinations(printed, 2)
    return [(a, b) for a, b in pairs if a.series != b.series and (a.facet, a.x, a.key) == (b.facet, b.x, b.key)]


def _difference_of(experiment: Experiment, cells: Cells, first: Printed, second: Printed) -> _Compared | None:
    both = dataclasses.replace(experiment, pair=(first.series, second.series))
    ours = differences(both, cells, first.facet, first.x, first.key)
    if not ours:
        return None
    paper, tolerance = first.low - second.low, 2 * math.hypot(first.std or 0, second.std or 0)
    name = f'{first.series} less {second.series} at {first.x}'
    return _Compared(name, first.key, mean_and_std(ours)[0], paper, paper, tolerance, True, len(ours))


def _name(printed: Printed) -> str:
    return ' '.join(str(part) for part in (printed.series, printed.x) if part != '')


def incomparable(experiment: Experiment, lines: Sequence[Line]) -> set[str]:
    """Return the keys of the values that were measured on images, or a device, that are not the paper's.

    Of short runs none compares, nor does a difference, whose key is `GAP`.
    """
    keys = {key for line in lines if _has_other_images(experiment, line) for key in line.values}
    if shortfall(experiment, lines):
        keys |= {GAP, *(key for line in lines if line.is_trained for key in line.values)}
    if 'timing' in experiment.untrained:
        keys |= {key for line in lines for key in line.values} - {'checkpoint'}
    return keys


def _has_other_images(experiment: Experiment, line: Line) -> bool:
    """Return whether a network was trained on images that are not the paper's; a train.py run's have any name."""
    return line.is_trained and not experiment.by_train_script and line.run['data'] != (experiment.data or 'cifar10')


def shortfall(experiment: Experiment, lines: Sequence[Line]) -> str:
    """Return in what runs fall short of the paper's training, or are of another recipe, '' if in nothing."""
    length = _length(experiment, lines)
    other = {name: value for line in lines for name, value in departures(experiment, line).items()}
    if not other:
        return length
    epochs = min(line.run['recipe']['epochs'] for line in lines if line.is_trained)
    told = ', '.join(f'{"learning rate" if name == "lr" else name.replace("_", " ")} {other[name]}' for name in other)
    return f'{length or f"{epochs} epochs"} at {told}'


def _length(experiment: Experiment, lines: Sequence[Line]) -> str:
    """Return in what runs are shorter than the paper's training, '' if in nothing."""
    runs = [line.run for line in lines if line.is_trained]
    whole = IMAGENET_EPOCHS if experiment.by_train_script else Recipe.epochs
    epochs, limits = {run['recipe']['epochs'] for run in runs}, {run['limit'] for run in runs if run['limit']}
    parts = [f'{min(epochs)} of {whole} epochs'] if epochs and min(epochs) < whole else []
    parts += [f'on {min(limits):,} images'] if limits else []
    return ' '.join(parts)


def findings(experiment: Experiment, cells: Cells) -> list[str]:
    """Return in words what ours shows where the paper says something in words."""
    find = _FINDINGS.get(experiment.id)
    return find(experiment, cells) if find else []


def _means(experiment: Experiment, cells: Cells, series: str, facet: str, key: str) -> dict[Any, float]:
    """Return our mean at each measured place, in the axis's order."""
    found = {x: runs_of(cells, facet, series, x, key) for x in experiment.places}
    return {x: mean_and_std(list(values.values()))[0] for x, values in found.items() if values}


def _facets(experiment: Experiment, cells: Cells) -> list[str]:
    return [facet for facet in experiment.facets if any(point.facet == facet for point in cells)]


def _crossing(experiment: Experiment, cells: Cells) -> list[str]:
    """Say of each two series from where on the first is ahead, or by how much where single runs tell."""
    found = []
    for facet in _facets(experiment, cells):
        for value in experiment.values:
            title = [part for part in (facet, value.title if len(experiment.values) > 1 else '') if part]
            for first, other in ((FROZEN, LEARNABLE), (FROZEN, PLAIN), (LEARNABLE, PLAIN)):
                pair = dataclasses.replace(experiment, pair=(first, other))
                places = [*_means(experiment, cells, first, facet, value.key)]
                gaps = {x: differences(pair, cells, facet, x, value.key) for x in places}
                if gaps := {x: gap for x, gap in gaps.items() if gap}:
                    found.append(': '.join([*title, _ahead(pair, gaps)]))
    return found


def _ahead(experiment: Experiment, gaps: dict[Any, list[float]]) -> str:
    first, other = experiment.pair or ('', '')
    intervals = {x: paired_interval(gap) for x, gap in gaps.items()}
    axis = experiment.x_label.split()[-1]
    single = None in intervals.values()
    if single or len(gaps) == 1:
        counts = {len(gap) for gap in gaps.values()}
        told = {x: f' ({len(gap)} run{"s"[: len(gap) > 1]})' if len(counts) > 1 else '' for x, gap in gaps.items()}
        each = ', '.join(f'{mean_and_std(gap)[0]:+.2f} at {axis} = {x}{told[x]}' for x, gap in gaps.items())
        return f'{first} less {other} is {each}' + (' (one run each)' if counts == {1} else '')
    behind = [index for index, interval in enumerate(intervals.values()) if interval and interval[0] <= 0]
    ahead = [*gaps][behind[-1] + 1 :] if behind else [*gaps]
    where = f'from {axis} = {ahead[0]} on' if ahead else f'nowhere up to {axis} = {[*gaps][-1]}'
    return f'{first} is ahead of {other} {where} (95 % intervals)'


def _trend(experiment: Experiment, cells: Cells) -> list[str]:
    """Say how each series goes from the first place to the last, or where it is."""
    found = []
    for facet in _facets(experiment, cells):
        for value in experiment.values:
            title = [part for part in (facet, value.title if len(experiment.values) > 1 else '') if part]
            for series in (FROZEN, LEARNABLE, PLAIN):
                if means := _means(experiment, cells, series, facet, value.key):
                    found.append(': '.join([*title, f'{series} {_course(experiment, means)}']))
    return found


def _course(experiment: Experiment, means: dict[Any, float]) -> str:
    places, values = [*means], [*means.values()]
    if len(set(values)) > 1:
        return f'goes from {values[0]:.3f} to {values[-1]:.3f}, within {min(values):.3f} and {max(values):.3f}'
    where = f' at {experiment.x_label.split()[-1]} = {places[0]}' if len(places) == 1 else ''
    return f'is {values[0]:.3f}{where}'


def _change(experiment: Experiment, cells: Cells) -> list[str]:
    """Say how far accuracy is at each place from that at the first."""
    series = experiment.variants[0].series
    means = _means(experiment, cells, series, '', 'accuracy')
    if not means:
        return []
    (first, base), *rest = means.items()
    return [f'against {first}: ' + ', '.join(f'{mean - base:+.2f} at {x}' for x, mean in rest)] if rest else []


def _difference(experiment: Experiment, cells: Cells) -> list[str]:
    """Say the first and the largest difference of the pair."""
    found = {x: differences(experiment, cells, '', x, 'accuracy') for x in experiment.places}
    means = {x: mean_and_std(values)[0] for x, values in found.items() if values}
    if not means or experiment.pair is None:
        return []
    first, most = next(iter(means)), max(means, key=lambda x: abs(means[x]))
    text = f'{experiment.pair[0]} less {experiment.pair[1]}: {means[first]:+.2f} points at {first}'
    return [text + (f', {means[most]:+.2f} at {most}' if most != first else '')]


def _border(experiment: Experiment, cells: Cells) -> list[str]:
    """Say how much the border of kernels varies against their centre."""
    found = []
    for facet in _facets(experiment, cells):
        ratios = []
        for series in (LEARNABLE, FROZEN):
            runs = runs_of(cells, facet, series, 1, 'positions')
            if runs:
                matrix = np.mean([np.array(values) for values in runs.values()], 0)
                edge = np.ones_like(matrix, dtype=bool)
                edge[1:-1, 1:-1] = False
                ratios.append(f'{series} {matrix[edge].mean() / matrix[~edge].mean():.2f}')
        found += [f'{facet}: variance at the border over that inside: {", ".join(ratios)}'] if ratios else []
    return found


_FINDINGS: dict[str, Callable[[Experiment, Cells], list[str]]] = {
    **dict.fromkeys(
        ('fig1', 'fig4', 'fig7', 'fig8', 'fig11', 'v2-fig4a', 'v2-fig4c', 'v2-fig6a', 'v2-fig6b'), _crossing
    ),
    'v2-fig8': _crossing,
    **dict.fromkeys(('fig6', 'fig15', 'v2-fig5', 'v2-fig10', 'v2-fig11'), _trend),
    'fig9': _difference,
    'fig13': _border,
    'fig18': _change,
    'fig19': _difference,
}
