"""An experiment as a figure."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from timm_lc.paper.experiment import GAP, LEARNABLE, Experiment, Point, Printed, Value
from timm_lc.paper.imagenet import stock_results
from timm_lc.paper.plots import Curve, Histogram, Panel, curves, heat_maps, histograms, mosaics, scatter
from timm_lc.paper.results import Cells, runs_of
from timm_lc.paper.tables import differences

__all__ = ['draw']


def draw(experiment: Experiment, cells: Cells) -> Any:
    """Return the figure, or None where there is nothing to draw."""
    return _DRAWINGS[experiment.kind](experiment, cells) if experiment.kind and cells else None


def _curves(experiment: Experiment, cells: Cells) -> Any:
    """Draw one panel for each measured facet and value, one curve for each series; nothing of one place on an axis."""
    if experiment.kind == 'curves' and len({point.x for point in cells}) < 2:
        return None
    known = [facet for facet in experiment.facets if any(facet == point.facet for point in cells)]
    return curves([_panel(experiment, cells, facet, value) for facet in known for value in experiment.values])


def _panel(experiment: Experiment, cells: Cells, facet: str, value: Value) -> Panel:
    lines = [
        Curve(
            series,
            [(x, list(runs_of(cells, facet, series, x, value.key).values())) for x in experiment.places],
            style,
            [_band(p) for p in experiment.printed if (p.facet, p.series, p.key) == (facet, series, value.key)],
            line=experiment.kind == 'curves',
        )
        for style, series in enumerate(experiment.series)
    ]
    places, vertical = experiment.places, experiment.vertical
    return Panel(lines, experiment.x_label, value.title, facet, experiment.log, places, vertical=vertical)


def _gaps(experiment: Experiment, cells: Cells) -> Any:
    """Draw the differences of the pair, one curve for each facet; nothing where none is measured."""
    key, places = experiment.values[0].key, experiment.places
    lines = [
        Curve(
            facet,
            [(x, differences(experiment, cells, facet, x, key)) for x in places],
            style,
            [_band(p) for p in experiment.printed if (p.facet, p.series) == (facet, GAP)],
        )
        for style, facet in enumerate(experiment.facets)
    ]
    if not any(found for line in lines for _, found in line.points):
        return None
    first, second = experiment.pair or ('', '')
    label = f'{experiment.values[0].title}:\n{first} less {second}'
    return curves([Panel(lines, experiment.x_label, label, '', experiment.log, places, zero=True)])


def _losses(experiment: Experiment, cells: Cells) -> Any:
    """Draw the training loss over the epochs, one panel for each place, one curve for each series."""
    panels = []
    for x in experiment.places:
        found = [runs_of(cells, '', series, x, 'losses') for series in experiment.series]
        lines = [
            Curve(series, list(enumerate(zip(*runs.values(), strict=True), 1)), style)
            for style, (series, runs) in enumerate(zip(experiment.series, found, strict=True))
        ]
        epochs = sorted({epoch for line in lines for epoch, _ in line.points})
        title = f'{experiment.x_label} = {x}'
        panels += [Panel(lines, 'epoch', 'training loss', title, places=epochs)] if epochs else []
    return curves(panels) if panels else None


def _filters(experiment: Experiment, cells: Cells) -> Any:
    """Draw filters of the first layer, rows by expansion; random and learned ones around them in figure 12."""
    around = 'random' in experiment.measures
    panels = []
    for facet in experiment.facets:
        for series in experiment.series[: 1 if around else None]:
            points = [(x, cells.get(Point(facet, series, x), {})) for x in experiment.places]
            rows = [(f'x{x}', _picture(found['filters'])) for x, found in points if 'filters' in found]
            if around and rows:
                random = [('Random', _picture(found['random'])) for _, found in points if 'random' in found]
                rows = [*random[:1], *rows]
                learned = cells.get(Point(facet, LEARNABLE, 1), {})
                rows += [('Learned', _picture(learned['filters']))] if learned else []
            panels += [(', '.join(part for part in (facet, '' if around else series) if part), rows)] if rows else []
    return mosaics(panels) if panels else None


def _positions(experiment: Experiment, cells: Cells) -> Any:
    """Draw the variance of each kernel element, the mean over runs: learned at the left, combined random right."""
    rows = []
    for facet in experiment.facets:
        series = reversed(experiment.series)
        found = [(name, runs_of(cells, facet, name, 1, 'positions')) for name in series]
        row = [(name, np.mean([np.array(matrix) for matrix in runs.values()], 0)) for name, runs in found if runs]
        rows += [(facet, row)] if row else []
    return heat_maps(rows, 'variance (1 over the layer)')


def _distributions(experiment: Experiment, cells: Cells) -> Any:
    """Draw pointwise weights, a row for each expansion and a column for each of five layers."""
    found = {
        x: [(style, runs_of(cells, '', series, x, 'pointwise')) for style, series in enumerate(experiment.series)]
        for x in experiment.places
    }
    known = {x: [(style, _first(runs)) for style, runs in both if runs] for x, both in found.items()}
    every = list(next(layers for both in known.values() for _, layers in both))
    layers = [every[round(index)] for index in np.linspace(0, len(every) - 1, min(5, len(every)))]
    rows = [
        (
            f'x{x}',
            [
                [Histogram(each[layer]['counts'], each[layer]['range'], style) for style, each in both]
                for layer in layers
            ],
        )
        for x, both in known.items()
        if both
    ]
    return histograms(rows, [layer.removesuffix('.pointwise') for layer in layers], experiment.series)


def _reconstruction(experiment: Experiment, cells: Cells) -> Any:
    """Draw learned filters as made up of n random ones."""
    found = next(iter(cells.values()))
    errors = {value.key: next(iter(found[value.key].values())) for value in experiment.values}
    pictures = [
        (f'{count} random, error {errors[f"error_{count}"]:.2f}', _picture({0: picture}))
        for count, picture in _first(found['reconstructed']).items()
    ]
    return mosaics([('', [*pictures, ('learned', _picture(found['filters']))])])


def _scatter(experiment: Experiment, cells: Cells) -> Any:
    """Draw accuracy over learnable parameters: ours, the paper's hollow, on ImageNet timm's other networks in grey."""
    value = experiment.values[0]
    groups = [('other networks of timm', stock_results(), 5, True)] if experiment.by_train_script else []
    for style, series in enumerate(experiment.series):
        found = {x: cells.get(Point('', series, x), {}) for x in experiment.places}
        size = {x: _first(values['learnable']) / 1e6 for x, values in found.items() if 'learnable' in values}
        ours = [(size[x], accuracy) for x in size for accuracy in found[x].get(value.key, {}).values()]
        paper = [(size[p.x], p.low) for p in experiment.printed if p.series == series and p.x in size]
        groups += [(f'{series}, the paper', paper, style, False), (series, ours, style, True)]
    return scatter(groups, 'learnable parameters [M]', value.title)


_DRAWINGS = {
    'curves': _curves,
    'dots': _curves,
    'gaps': _gaps,
    'losses': _losses,
    'filters': _filters,
    'positions': _positions,
    'distributions': _distributions,
    'reconstruction': _reconstruction,
    'scatter': _scatter,
}


def _band(printed: Printed) -> tuple[Any, float, float]:
    ends: Iterable[float] = (printed.low, printed.low if printed.high is None else printed.high)
    finite = [end for end in ends if math.isfinite(end)]
    return printed.x, finite[0], finite[-1]


def _first(runs: dict[int, Any]) -> Any:
    """Return the value of the first training seed."""
    return runs[min(runs)]


def _picture(runs: dict[int, Any]) -> np.ndarray:
    return np.array(_first(runs))
