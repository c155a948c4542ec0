"""Drawings in the paper's style: frozen and learnable in two colours, mean and spread over runs.

Each function returns a matplotlib figure that no window or global state knows of; `save` writes it.
"""

import importlib.util
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from timm_lc.analysis.intervals import mean_and_std
from timm_lc.training.files import whole

__all__ = [
    'COLORS',
    'Curve',
    'Histogram',
    'Panel',
    'curves',
    'heat_maps',
    'histograms',
    'mosaics',
    'require_plots',
    'save',
    'scatter',
    'svg',
]

COLORS = ('#d1495b', '#30638e', '#edae49', '#3c887e', '#6d597a', '#8d8d8d')
MARKERS = 'osD^vP'
STYLE: dict[Any, Any] = {
    'font.size': 11,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.axisbelow': True,
    'grid.color': '#e4e4e4',
    'svg.hashsalt': 'timm_lc',
    'svg.fonttype': 'none',  # text stays text: smaller, and can be searched
}


@dataclass(frozen=True)
class Curve:
    """A line of a panel: the runs' values at each place.

    Args:
        label: Legend; '' for none.
        points: (place, value of each run).
        style: Index of colour and marker.
        printed: (place, low, high) of what the paper prints, drawn hollow.
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
        places: Every place on the axis, in order. Names stand at equal distances, names that are numbers at their
            own, on a scale that is linear up to the smallest.
        zero: Whether to mark the height 0.
        vertical: Places of vertical lines.
        log_y: Whether the height is logarithmic, base 10.
    """

    curves: Sequence[Curve]
    x_label: str
    y_label: str
    title: str = ''
    log: bool = False
    places: Sequence[Any] = field(default_factory=list)
    zero: bool = False
    vertical: Sequence[float] = ()
    log_y: bool = False


@dataclass(frozen=True)
class Histogram:
    """Counts in equal bins over [-limit, limit]."""

    counts: Sequence[int]
    limit: float
    style: int = 0


def require_plots() -> None:
    """Raise `ModuleNotFoundError` if a library is missing that figures, their intervals and pages need."""
    for library, package in (('matplotlib', 'matplotlib'), ('scipy', 'scipy'), ('markdown_it', 'markdown-it-py')):
        if importlib.util.find_spec(library) is None:
            raise ModuleNotFoundError(f"figures need {package}: pip install 'timm_lc[plots]'")


def curves(panels: Sequence[Panel]) -> Any:
    """Return a figure of panels one below the other: means, one standard deviation as a band, each run as a dot."""
    figure, grid = _subplots(len(panels), 1, (6.2, 4.2 * len(panels)))
    handles: dict[str, Any] = {}
    for axes, panel in zip(grid.flat, panels, strict=True):
        _panel(axes, panel)
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if any(curve.printed for panel in panels for curve in panel.curves):
        handles['the paper'] = _hollow('the paper')
    if handles:  # below the axes, where no data can be
        figure.legend(handles.values(), handles.keys(), loc='outside lower center', ncols=3, frameon=False)
    return figure


def mosaics(panels: Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]]) -> Any:
    """Return a figure of filters as pictures.

    Args:
        panels: (title, rows) of each; a row is (label, filters (n, C, k_h, k_w)), its colours scaled by its largest
            weight, grey for 0. Three channels are red, green and blue, others are averaged.
    """
    height = max(0.8 + 0.42 * len(panel_rows) for _, panel_rows in panels)
    figure, grid = _subplots(len(panels), 1, (7.2, height * len(panels)))
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (title, panel_rows) in zip(grid.flat, panels, strict=False):
        axes.set_axis_on()
        tiles = [_tiles(filters) for _, filters in panel_rows]
        axes.imshow(np.concatenate(tiles), interpolation='nearest')
        centres = np.cumsum([0, *(len(tile) for tile in tiles)])[:-1] + len(tiles[0]) / 2 - 0.5
        axes.set_yticks(centres, [label for label, _ in panel_rows])
        axes.set_xticks([])
        axes.set(title=title)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def heat_maps(rows: Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]], label: str) -> Any:
    """Return a figure of matrices: rows of (title, matrix), in one scale of colours."""
    values = np.concatenate([matrix.ravel() for _, row in rows for _, matrix in row])
    width = max(len(row) for _, row in rows)
    figure, grid = _subplots(len(rows), width, (2.4 * width + 1, 2.5 * len(rows)))
    for axes in grid.flat:
        axes.set_axis_off()
    for row_axes, (name, row) in zip(grid, rows, strict=True):
        for axes, (title, matrix) in zip(row_axes, row, strict=False):
            image = axes.imshow(matrix, vmin=values.min(), vmax=values.max(), cmap='viridis')
            axes.set_title(f'{name}\n{title}')
    figure.colorbar(image, ax=grid, label=label, shrink=0.8)
    return figure


def histograms(
    rows: Sequence[tuple[str, Sequence[Sequence[Histogram]]]], columns: Sequence[str], legend: Sequence[str]
) -> Any:
    """Return a figure of cells, each with histograms drawn over one another; a column has one horizontal axis.

    Args:
        rows: (label, histograms of each column's cell).
        columns: Titles.
        legend: Name of each style.
    """
    figure, grid = _subplots(len(rows), len(columns), (1.5 * len(columns) + 0.5, 0.9 * len(rows) + 1), layout=None)
    for (label, cells), row_axes in zip(rows, grid, strict=True):
        row_axes[0].set_ylabel(label, rotation=0, ha='right', va='center')
        for axes, cell in zip(row_axes, cells, strict=True):
            for histogram in cell:
                density = np.array(histogram.counts) / (sum(histogram.counts) * 2 * histogram.limit)
                edges = np.linspace(-histogram.limit, histogram.limit, len(density) + 1)
                axes.stairs(density, edges, color=COLORS[histogram.style], fill=True, alpha=0.5)
    for index, title in enumerate(columns):
        widest = max((item.limit for _, cells in rows for item in cells[index]), default=1.0)
        for axes in grid[:, index]:
            axes.set(xlim=(-widest, widest), xticks=[], yticks=[])
        grid[0, index].set_title(title, fontsize=9)
        grid[-1, index].set_xlabel(f'±{widest:.2g}')
    handles = [_patch(COLORS[style], name) for style, name in enumerate(legend)]
    figure.legend(handles=handles, loc='upper left', bbox_to_anchor=(figure.subplotpars.left, 0.06), frameon=False)
    return figure


def scatter(groups: Sequence[tuple[str, Sequence[tuple[float, float]], int, bool]], x_label: str, y_label: str) -> Any:
    """Return a figure of points over a logarithmic axis; a group is (label, points, style, filled)."""
    figure, grid = _subplots(1, 1, (8.0, 5.5))
    axes = grid[0, 0]
    for label, points, style, filled in groups:
        if points:
            face = COLORS[style] if filled else 'none'
            axes.scatter(*zip(*points, strict=True), s=36, marker=MARKERS[style], c=face, ec=COLORS[style], label=label)
    axes.set(xscale='log', xlabel=x_label, ylabel=y_label)
    axes.xaxis.set_major_formatter('{x:g}')
    axes.xaxis.set_minor_formatter('{x:g}')
    axes.tick_params(axis='x', which='both', rotation=30)
    axes.grid(visible=True)
    figure.legend(loc='outside lower center', ncols=2, frameon=False)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure, as the suffix says, with the same bytes each time; it appears only when whole."""
    import matplotlib as mpl

    with whole(path) as partial, mpl.rc_context(STYLE):
        figure.savefig(partial, dpi=130, bbox_inches='tight', metadata={'Date': None} if path.suffix == '.svg' else {})


def svg(figure: Any) -> str:
    """Return a figure as an SVG element, to stand in a page: in that page's font, places in tenths of a point."""
    import matplotlib as mpl

    text = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(text, format='svg', bbox_inches='tight', metadata={'Date': None})
    element = text.getvalue()[text.getvalue().index('<svg') :]
    places = re.sub(r' [dxy]="[^"]*"', lambda found: _shortened(found[0]), element)
    known = set(re.findall(r'#([\w.-]+)', places))
    short = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in known else '', places)
    needless = r'<metadata>.*?</metadata>|font-family: [^;"]*(; )?| transform="rotate\(-0 [^"]*"|(?<=>)\s+(?=<)'
    return re.sub(needless, '', short, flags=re.DOTALL)


def _shortened(attribute: str) -> str:
    """Return an attribute of SVG with numbers in tenths, and no spaces around the commands of a path."""
    return re.sub(r'\s*\b([A-Za-z])\s', r'\1', re.sub(r'\.0\d*|(\.\d)\d*', r'\1', attribute).replace('\n', ''))


def _subplots(rows: int, columns: int, size: tuple[float, float], layout: Any = 'constrained') -> tuple[Any, Any]:
    """Return an empty figure of a size in inches, and its axes (rows, columns)."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout=layout)
        return figure, figure.subplots(rows, columns, squeeze=False)


def _patch(color: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=color, alpha=0.5, label=label)


def _hollow(label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle='', marker='o', color='#555555', fillstyle='none', markersize=11, label=label)


def _tiles(filters: np.ndarray) -> np.ndarray:
    """Return filters (n, C, k_h, k_w) side by side as one picture, white between them."""
    pixels = 0.5 + filters / (2 * max(np.abs(filters).max(), 1e-12))
    colours = pixels if pixels.shape[1] == 3 else np.repeat(pixels.mean(1, keepdims=True), 3, 1)
    framed = np.pad(colours, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=1.0)
    return np.concatenate(list(framed.transpose(0, 2, 3, 1)), axis=1)  # (k_h + 1, n*(k_w + 1), 3)


def _panel(axes: Any, panel: Panel) -> None:
    positions = _positions(axes, panel)
    if panel.zero:
        axes.axhline(0, color='#555555', linewidth=1)
    for place in panel.vertical:
        axes.axvline(place, color='#bbbbbb', linewidth=1, linestyle=':')
    for curve in panel.curves:
        _curve(axes, curve, positions)
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label, title=panel.title, yscale='log' if panel.log_y else 'linear')
    axes.grid(visible=True)


def _positions(axes: Any, panel: Panel) -> Mapping[Any, float]:
    """Set the ticks; return where each place stands on the axis."""
    numbers = {place: float(place) for place in panel.places if isinstance(place, str) and _is_number(place)}
    if numbers and len(numbers) == len(panel.places):
        axes.set_xscale('symlog', linthresh=min(value for value in numbers.values() if value), linscale=0.4)
        axes.set_xticks(list(numbers.values()), numbers.keys(), rotation=30, ha='right')
        axes.minorticks_off()
        return numbers
    if any(isinstance(place, str) for place in panel.places):
        axes.set_xticks(range(len(panel.places)), panel.places, rotation=30, ha='right')
        return {place: index for index, place in enumerate(panel.places)}
    if panel.log:
        axes.set_xscale('log', base=2)
    if len(panel.places) <= 10:
        axes.set_xticks(panel.places, [f'{place:g}' for place in panel.places])
        axes.minorticks_off()
    return {place: float(place) for place in panel.places}


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _curve(axes: Any, curve: Curve, positions: Mapping[Any, float]) -> None:
    color, marker = COLORS[curve.style % len(COLORS)], MARKERS[curve.style % len(MARKERS)]
    points = [(positions[place], values) for place, values in curve.points if values]
    if not points and not curve.printed:
        return
    x = np.array([position for position, _ in points], float)
    spreads = [mean_and_std(values) for _, values in points]
    means, stds = np.array([mean for mean, _ in spreads]), np.array([std or 0.0 for _, std in spreads])
    axes.plot(x, means, color=color, marker=marker, linestyle='-' if curve.line else '', label=curve.label or None)
    if curve.line:
        axes.fill_between(x, means - stds, means + stds, color=color, alpha=0.18, linewidth=0)
    else:
        axes.errorbar(x, means, stds, color=color, linestyle='', capsize=3)
    for position, values in points:
        axes.plot([position] * len(values), values, '.', color=color, alpha=0.5, markersize=4)
    for place, low, high in curve.printed:
        axes.plot([positions[place]] * 2, [low, high], marker=marker, color=color, fillstyle='none', markersize=11)
