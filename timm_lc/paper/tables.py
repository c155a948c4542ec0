"""An experiment as a Markdown table: ours beside the paper's, the deviation, intervals of paired differences."""

import dataclasses
import math
from collections.abc import Container, Sequence
from typing import Any

from timm_lc.analysis.intervals import mean_and_std, paired_interval
from timm_lc.paper.experiment import GAP, Experiment, Point, Printed, Value, Variant
from timm_lc.paper.results import Cells, runs_of

__all__ = ['differences', 'markdown', 'table']

NONE = '–'  # noqa: RUF001


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Return a table, its header first, as Markdown."""
    header, *rows = table
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in [header, ['---'] * len(header), *rows])


def table(experiment: Experiment, cells: Cells, incomparable: Container[str] = ()) -> list[list[str]]:
    """Return the header, and a row for each point that we measured or the paper prints: mean ± deviation over runs.

    Values of the keys in `incomparable` show no deviation from the paper's, nor do differences if it has `GAP`.
    """
    columns = [(series, value) for value in experiment.values for series in experiment.series]
    header = [*(['panel'] if _has_facets(experiment) else []), experiment.x_label]
    rows = [[*([facet] if _has_facets(experiment) else []), str(x)] for facet, x in _points(experiment, cells)]
    for series, value in columns:
        _add_column(experiment, cells, series, value, value.key not in incomparable, header, rows)
    for value in experiment.values if experiment.pair else ():
        _add_gap(experiment, cells, value, GAP not in incomparable, header, rows)
    return _without_empty_columns([header, *rows])


def _without_empty_columns(table: list[list[str]]) -> list[list[str]]:
    """Return a table less the columns that have no value in any row."""
    filled = [index for index, column in enumerate(zip(*table[1:], strict=True)) if set(column) != {NONE}]
    return [[row[index] for index in filled] for row in table] if table[1:] else table


def _points(experiment: Experiment, cells: Cells) -> list[tuple[str, Any]]:
    """Return, in the experiment's order, each (facet, x) that has a value of ours or of the paper's.

    A network that is the same at each place, as plain over E, makes rows only where no other row tells its value.
    """
    valued: list[Point | Printed] = [*cells, *experiment.printed]
    same = _constant(experiment)
    known = {(each.facet, each.x) for each in valued if (each.facet, each.series) not in same}
    for constant in same:
        ours = {(point.facet, point.x) for point in cells if (point.facet, point.series) == constant}
        known |= set() if ours & known else ours
    return list(dict.fromkeys((v.facet, v.x) for v in experiment.variants if (v.facet, v.x) in known))


def _constant(experiment: Experiment) -> list[tuple[str, str]]:
    """Return (facet, series) of what is one network at several places."""
    networks: dict[tuple[str, str], list[Variant]] = {}
    for variant in experiment.variants:
        networks.setdefault((variant.facet, variant.series), []).append(dataclasses.replace(variant, x=0))
    return [key for key, (first, *others) in networks.items() if others and all(other == first for other in others)]


def differences(experiment: Experiment, cells: Cells, facet: str, x: Any, key: str) -> list[float]:
    """Return the first series of the pair less the second, for each training seed that both have."""
    if experiment.pair is None:
        return []
    first, second = (runs_of(cells, facet, series, x, key) for series in experiment.pair)
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def _add_column(
    experiment: Experiment,
    cells: Cells,
    series: str,
    value: Value,
    compares: bool,
    header: list[str],
    rows: list[list[str]],
) -> None:
    """Append, in place, a column of ours, and where the paper prints any its own, with the deviation if it compares."""
    several = len(experiment.values) > 1
    title = ', '.join([part for part in (series, value.title if several or not series else '') if part])
    printed = _printed(experiment, series, value)
    header += [title, *([f'paper: {title}', *(['deviation'] if compares else [])] if printed else [])]
    for row, (facet, x) in zip(rows, _points(experiment, cells), strict=True):
        found = cells.get(Point(facet, series, x), {})
        ours = list(found.get(value.key, {}).values())
        row.append(_spread(ours, value, found.get(f'{value.key}_std', {}).get(0)))
        if printed:
            row += _beside(ours, printed.get((facet, x)), value)[: 2 if compares else 1]


def _add_gap(
    experiment: Experiment, cells: Cells, value: Value, compares: bool, header: list[str], rows: list[list[str]]
) -> None:
    """Append, in place, the difference of the paired series and its interval."""
    several = f', {value.title}' if len(experiment.values) > 1 else ''
    printed = _printed(experiment, GAP, value)
    header += [f'difference{several}', '95 % interval']
    header += ['paper: difference', 'deviation'][: 2 if compares else 1] if printed else []
    for row, (facet, x) in zip(rows, _points(experiment, cells), strict=True):
        ours = differences(experiment, cells, facet, x, value.key)
        interval = paired_interval(ours) if ours else None
        signed = f'{mean_and_std(ours)[0]:+.{value.digits}f}' if ours else NONE
        row += [signed, ' to '.join(f'{end:+.{value.digits}f}' for end in interval) if interval else NONE]
        if printed:
            row += _beside(ours, printed.get((facet, x)), value, '+')[: 2 if compares else 1]


def _printed(experiment: Experiment, series: str, value: Value) -> dict[tuple[str, Any], Printed]:
    return {(p.facet, p.x): p for p in experiment.printed if p.series == series and p.key == value.key}


def _spread(values: Sequence[float], value: Value, within: float | None = None) -> str:
    """Return mean ± standard deviation (runs), the last two where there are several runs; or that within one run."""
    if not values:
        return NONE
    mean, std = mean_and_std(values)
    if within is not None:
        return f'{mean:,.{value.digits}f} ± {within:.{value.digits}f}'
    return f'{mean:,.{value.digits}f}' + (f' ± {std:,.{value.digits}f} ({len(values)})' if std is not None else '')


def _beside(ours: Sequence[float], paper: Printed | None, value: Value, sign: str = '') -> list[str]:
    """Return the paper's number, and how far the mean of ours is from it or from its range."""
    if paper is None:
        return [NONE, NONE]
    low, high = paper.low, paper.low if paper.high is None else paper.high
    text = _range(low, high, f'{sign},.{value.digits}f')
    digits = 3 if value.relative else value.digits  # as printed
    text += f' ± {paper.std:.{digits}f}' if paper.std is not None else ''
    if not ours:
        return [text, NONE]
    mean = mean_and_std(ours)[0]
    nearest = min(max(mean, low), high)
    if value.relative:
        ratio = mean / nearest
        return [text, f'{ratio:,.0f} times' if ratio >= 10 else f'{100 * (ratio - 1):+.1f} %']
    return [text, f'{mean - nearest:+.{value.digits}f}']


def _range(low: float, high: float, form: str) -> str:
    if low == high:
        return format(low, form)
    if math.isinf(low):
        return f'at most {high:{form}}'
    return f'{low:{form}} to {high:{form}}'


def _has_facets(experiment: Experiment) -> bool:
    return any(variant.facet for variant in experiment.variants)
