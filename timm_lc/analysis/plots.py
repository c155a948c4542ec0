"""Drawings in the paper's style: frozen and learnable in two colours, mean and spread over runs.

Each function returns a matplotlib figure that no window or global state knows of; `save` writes it.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from timm_lc.analysis.statistics import mean_and_std

__all__ = ['COLORS', 'Curve', 'Panel', 'curves', 'save', 'svg']

COLORS = (
    '#d1495b',
    '#30638e',
    '#edae49',
    '#3c887e',
    '#6d597a',
    '#8d8d8d',
)  # told apart in grey and by the colour-blind
MARKERS = 'osD^vP'
DPI = 160
STYLE: dict[Any, Any] = {
    'font.size': 11,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.color': '#e4e4e4',
    'axes.axisbelow': True,
    'svg.fonttype': 'path',
    'svg.hashsalt': 'timm_lc',
}


@dataclass(frozen=True)
class Curve:
    """A line of a panel: the runs' values at each place.

    Args:
        label: Legend; '' for none.
        points: (place, value of each run).
        style: Index of colour and marker.
        printed: (place, low, high) of what the paper prints.
        line: Whether to join the means.
    """

    label: str
    points: Sequence[tuple[Any, Sequence[float]]]
    style: int = 0
    printed: Sequence[tuple[Any, float, float]] = ()
    line: bool = True


@dataclass(frozen=True)
class Panel:
    """Axes with curves.

    Args:
        curves: To draw.
        x_label: Under the axis.
        y_label: Beside it.
        title: Above; '' for none.
        log: Whether the axis is logarithmic, base 2.
        places: Every place on the axis, in order; names stand at equal distances.
        zero: Whether to mark the height 0.
        vertical: Places of vertical lines.
    """

    curves: Sequence[Curve]
    x_label: str
    y_label: str
    title: str = ''
    log: bool = False
    places: Sequence[Any] = field(default_factory=list)
    zero: bool = False
    vertical: Sequence[float] = ()


def curves(panels: Sequence[Panel], columns: int = 2) -> Any:
    """Return a figure of panels side by side: means, one standard deviation as a band, each run as a dot."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(6.2 * columns, 4.2 * rows)
    for index, panel in enumerate(panels):
        _panel(figure.add_subplot(rows, columns, index + 1), panel)
    return figure


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of a size in inches."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        return Figure(figsize=(width, height), layout='constrained')


def save(figure: Any, path: Path) -> None:
    """Write a figure, as the suffix says, with the same bytes each time."""
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {'Date': None} if path.suffix == '.svg' else {}
    with mpl.rc_context(STYLE):
        figure.savefig(path, dpi=DPI, metadata=metadata)


def svg(figure: Any) -> str:
    """Return a figure as an SVG element, to stand in a page."""
    import matplotlib as mpl

    text = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(text, format='svg', metadata={'Date': None})
    return text.getvalue()[text.getvalue().index('<svg') :]


def _panel(axes: Any, panel: Panel) -> None:
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        positions = _positions(axes, panel)
        if panel.zero:
            axes.axhline(0, color='#555555', linewidth=1)
        for place in panel.vertical:
            axes.axvline(place, color='#bbbbbb', linewidth=1, linestyle=':')
        for curve in panel.curves:
            _curve(axes, curve, positions)
        axes.set(xlabel=panel.x_label, ylabel=panel.y_label, title=panel.title)
        axes.grid(visible=True)
        for side in ('top', 'right'):
            axes.spines[side].set_visible(False)
        if any(curve.label for curve in panel.curves):
            axes.legend(frameon=False)


def _positions(axes: Any, panel: Panel) -> Mapping[Any, float]:
    """Set the ticks; return where each place stands on the axis."""
    if any(isinstance(place, str) for place in panel.places):
        axes.set_xticks(range(len(panel.places)), panel.places, rotation=30, ha='right')
        return {place: index for index, place in enumerate(panel.places)}
    if panel.log:
        axes.set_xscale('log', base=2)
    if len(panel.places) <= 12:
        axes.set_xticks(panel.places, [f'{place:g}' for place in panel.places])
        axes.minorticks_off()
    return {place: float(place) for place in panel.places}


def _curve(axes: Any, curve: Curve, positions: Mapping[Any, float]) -> None:
    color, marker = COLORS[curve.style % len(COLORS)], MARKERS[curve.style % len(MARKERS)]
    points = [(positions[place], values) for place, values in curve.points if values]
    x = np.array([position for position, _ in points], float)
    spreads = [mean_and_std(values) for _, values in points]
    means = np.array([mean for mean, _ in spreads])
    stds = np.array([std or 0.0 for _, std in spreads])
    axes.plot(x, means, color=color, marker=marker, linestyle='-' if curve.line else '', label=curve.label or None)
    if stds.any():
        axes.fill_between(x, means - stds, means + stds, color=color, alpha=0.18, linewidth=0) if curve.line else (
            axes.errorbar(x, means, stds, color=color, linestyle='', capsize=3)
        )
    for position, values in points:
        if len(values) > 1:
            axes.plot([position] * len(values), values, '.', color=color, alpha=0.5, markersize=4)
    for place, low, high in curve.printed:
        axes.plot([positions[place]] * 2, [low, high], marker=marker, color=color, fillstyle='none', markersize=11)
