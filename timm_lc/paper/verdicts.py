"""Whether what was measured agrees with what the paper prints, and what ours shows where the paper speaks in words."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from timm_lc.analysis.intervals import mean_and_std
from timm_lc.paper.experiment import FROZEN, GAP, LEARNABLE, PLAIN, Experiment, Point, Printed
from timm_lc.paper.results import Cells, Line
from timm_lc.paper.tables import differences
from timm_lc.training.recipe import Recipe

__all__ = [
    'AGREES', 'DIFFERS', 'MISSING', 'OPEN', 'SHORT', 'Verdict', 'findings', 'incomparable', 'is_short',
    'verdict_of',
]  # fmt: skip

AGREES, DIFFERS, SHORT, OPEN, MISSING = 'agrees', 'differs', 'too short to tell', 'no number to compare', 'not run'
IMAGENET_EPOCHS = 300
POINTS, PERCENT = 0.5, 5.0  # what counts as equal where the paper prints no deviation


class Verdict(NamedTuple):
    """One of the five words above, and why."""

    word: str
    reason: str


def verdict_of(experiment: Experiment, lines: Sequence[Line], cells: Cells) -> Verdict:
    """Return whether the numbers of an experiment agree with the paper's, within two of its standard deviations.

    On images that are not the paper's, such as CIFAR-10 as JPEG, only differences of two networks are compared.
    """
    if not lines:
        return Verdict(MISSING, 'no run of ours')
    if short := is_short(experiment, lines):
        return Verdict(SHORT, short)
    others = incomparable(experiment, lines)
    known = [printed for printed in experiment.printed if printed.series == GAP or printed.key not in others]
    compared = [(printed, ours) for printed in known for ours in _ours(experiment, cells, printed)]
    if not compared and others:
        names = ', '.join(sorted({line.run['data'] for line in lines if _has_other_images(experiment, line)}))
        return Verdict(OPEN, f"{names} is not the paper's images: only differences of networks compare")
    if not compared:
        return Verdict(OPEN, 'none of the points with a number in print is measured' if experiment.printed else '')
    if 'timing' in experiment.untrained:
        return Verdict(OPEN, 'times and memory of another device than the paper used')
    off = [(_excess(experiment, printed, ours), printed, ours) for printed, ours in compared]
    far = [found for found in off if found[0] > 1]
    if not far:
        return Verdict(AGREES, f'{len(off)} number{"s"[: len(off) > 1]} within two deviations of the paper')
    _, printed, ours = max(far, key=lambda found: found[0])
    name = ' '.join(str(part) for part in (printed.series, printed.x) if part != '')
    return Verdict(DIFFERS, f'{len(far)} of {len(off)} numbers; the most {name}: {ours:,.5g}, paper {printed.low:,.5g}')


def incomparable(experiment: Experiment, lines: Iterable[Line]) -> set[str]:
    """Return the keys of the values that were measured on images that are not the paper's."""
    return {key for line in lines if _has_other_images(experiment, line) for key in line.values}


def _has_other_images(experiment: Experiment, line: Line) -> bool:
    """Return whether a network was trained on images that are not the paper's; a train.py run's have any name."""
    return line.is_trained and not experiment.by_train_script and line.run['data'] != (experiment.data or 'cifar10')


def is_short(experiment: Experiment, lines: Sequence[Line]) -> str:
    """Return in what runs fall short of the paper's training, '' if in nothing."""
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


def _ours(experiment: Experiment, cells: Cells, printed: Printed) -> list[float]:
    """Return our mean of what the paper prints, [] if it is not measured."""
    if printed.series == GAP:
        values: Sequence[float] = differences(experiment, cells, printed.facet, printed.x, printed.key)
    else:
        values = list(cells.get(Point(printed.facet, printed.series, printed.x), {}).get(printed.key, {}).values())
    return [mean_and_std(values)[0]] if values else []


def _excess(experiment: Experiment, printed: Printed, ours: float) -> float:
    """Return the distance from the paper's number or range over what counts as equal."""
    high = printed.low if printed.high is None else printed.high
    distance = abs(ours - min(max(ours, printed.low), high))
    relative = any(value.key == printed.key and value.relative for value in experiment.values)
    tolerance = PERCENT / 100 * abs(printed.low) if relative else max(POINTS, 2 * (printed.std or 0))
    return distance / tolerance


def _means(experiment: Experiment, cells: Cells, series: str, facet: str, key: str) -> dict[Any, float]:
    """Return our mean at each measured place, in the axis's order."""
    places = dict.fromkeys(variant.x for variant in experiment.variants)
    found = {x: cells.get(Point(facet, series, x), {}).get(key, {}) for x in places}
    return {x: mean_and_std(list(values.values()))[0] for x, values in found.items() if values}


def _facets(experiment: Experiment, cells: Cells) -> list[str]:
    return [f for f in dict.fromkeys(v.facet for v in experiment.variants) if any(p.facet == f for p in cells)]


def _crossing(experiment: Experiment, cells: Cells) -> list[str]:
    """Say from where on frozen random is ahead of learnable."""
    found = []
    for facet in _facets(experiment, cells):
        for value in experiment.values:
            frozen, learnable = (_means(experiment, cells, s, facet, value.key) for s in (FROZEN, LEARNABLE))
            both = [x for x in frozen if x in learnable]
            behind = [index for index, x in enumerate(both) if frozen[x] <= learnable[x]]
            ahead = both[behind[-1] + 1 :] if behind else both
            if len(both) > 1:
                points = [Point(facet, series, x) for series in (FROZEN, LEARNABLE) for x in both]
                once = all(len(cells[point][value.key]) == 1 for point in points)
                axis = experiment.x_label.split()[-1]
                where = f'from {axis} = {ahead[0]} on' if ahead else f'nowhere up to {axis} = {both[-1]}'
                parts = [part for part in (facet, value.title if len(experiment.values) > 1 else '') if part]
                seeds = ' (one run each)' if once else ''
                found.append(': '.join([*parts, f'frozen random is ahead of learnable {where}{seeds}']))
    return found


def _trend(experiment: Experiment, cells: Cells) -> list[str]:
    """Say how each series goes from the first place to the last."""
    found = []
    for facet in _facets(experiment, cells):
        for value in experiment.values:
            for series in (FROZEN, LEARNABLE, PLAIN):
                means = list(_means(experiment, cells, series, facet, value.key).values())
                if len(set(means)) > 1:  # not the plain network's level line
                    parts = [part for part in (facet, value.title if len(experiment.values) > 1 else '') if part]
                    ends = f'{series} goes from {means[0]:.3f} to {means[-1]:.3f}, within {min(means):.3f} and '
                    found.append(': '.join([*parts, f'{ends}{max(means):.3f}']))
    return found


def _change(experiment: Experiment, cells: Cells) -> list[str]:
    """Say how far accuracy is at each place from that at the first."""
    series = experiment.variants[0].series
    (first, base), *rest = _means(experiment, cells, series, '', 'accuracy').items()
    return [f'against {first}: ' + ', '.join(f'{mean - base:+.2f} at {x}' for x, mean in rest)] if rest else []


def _difference(experiment: Experiment, cells: Cells) -> list[str]:
    """Say the first and the largest difference of the pair."""
    places = dict.fromkeys(variant.x for variant in experiment.variants)
    found = {x: differences(experiment, cells, '', x, 'accuracy') for x in places}
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
            runs = cells.get(Point(facet, series, 1), {}).get('positions', {})
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
