"""An experiment as a figure."""

from typing import Any

from timm_lc.analysis.plots import Curve, Panel, curves
from timm_lc.experiments.experiment import Experiment, Printed, Value
from timm_lc.experiments.results import Cells
from timm_lc.experiments.tables import differences, series_of

__all__ = ['draw']


def draw(experiment: Experiment, cells: Cells) -> Any:
    """Return the figure, or None where there is nothing to draw.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    if not (experiment.kind and cells):
        return None
    try:
        return _DRAWINGS[experiment.kind](experiment, cells)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("figures need matplotlib: pip install 'timm_lc[plots]'") from error


def _facets(experiment: Experiment) -> list[str]:
    return list(dict.fromkeys(variant.facet for variant in experiment.variants))


def _places(experiment: Experiment) -> list[Any]:
    return list(dict.fromkeys(variant.x for variant in experiment.variants))


def _runs(cells: Cells, facet: str, x: Any, series: str, key: str) -> list[float]:
    return list(cells.get((facet, x, series), {}).get(key, {}).values())


def _band(printed: Printed) -> tuple[Any, float, float]:
    return printed.x, printed.low, printed.low if printed.high is None else printed.high


def _curves(experiment: Experiment, cells: Cells) -> Any:
    """Draw one panel for each facet and value, one curve for each series."""
    return curves([_panel(experiment, cells, facet, v) for facet in _facets(experiment) for v in experiment.values])


def _panel(experiment: Experiment, cells: Cells, facet: str, value: Value) -> Panel:
    lines = [
        Curve(
            series,
            [(x, _runs(cells, facet, x, series, value.key)) for x in _places(experiment)],
            style,
            [_band(p) for p in experiment.printed if (p.facet, p.series, p.value) == (facet, series, value.key)],
            line=experiment.kind == 'curves',
        )
        for style, series in enumerate(series_of(experiment))
    ]
    return Panel(lines, experiment.x_label, value.title, facet, experiment.log, _places(experiment))


def _gaps(experiment: Experiment, cells: Cells) -> Any:
    """Draw the differences of the pair, one curve for each facet."""
    key, places = experiment.values[0].key, _places(experiment)
    lines = [
        Curve(facet, [(x, differences(experiment, cells, facet, x, key)) for x in places], style)
        for style, facet in enumerate(_facets(experiment))
    ]
    first, second = experiment.pair or ('', '')
    label = f'{experiment.values[0].title}: {first} less {second}'
    return curves([Panel(lines, experiment.x_label, label, '', experiment.log, places, zero=True)])


_DRAWINGS = {'curves': _curves, 'dots': _curves, 'gaps': _gaps}
