"""The page of `timm-lc bench`: ratios to the plain network first, then times beside their floors, memory and files."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from timm_lc.paper.bench_cases import FORMS, PLAIN
from timm_lc.paper.plots import Curve, Panel, curves, save
from timm_lc.paper.tables import NONE, markdown

__all__ = ['bench_page', 'draw_sweep']

MEBI = 2**20
PARTS = {
    'step': 'training step',
    'forward': 'forward',
    'both': 'forward + backward',
    'optimizer': 'optimizer step',
    'inference': 'inference',
    'create': '`create_model`',
}
MEMORY = {'model_memory': 'model', 'forward_peak': 'forward peak', 'both_peak': 'forward + backward peak'}
PEAK = 'both_peak'

Row = dict[str, Any]


def bench_page(report: dict[str, Any]) -> str:
    """Return what `measure_bench` found as Markdown."""
    where, how = report['where'], report['how']
    speeds = [how['amp'] or 'float32', *(['channels_last'] if how['channels_last'] else []), how['compile'] or 'eager']
    lines = [
        '# A training step, memory and files',
        '',
        f'`{report["command"]}`',
        '',
        f'- hardware: {where["device"]}, {where["threads"]} threads; '
        f'{where["multiply_adds_per_second"] / 1e9:,.1f} G multiply-adds/s in a matrix product, '
        f'{where["bytes_per_second"] / 1e9:,.1f} GB/s in a copy',
        f'- versions: python {where["python"]}, torch {where["torch"]}, timm {where["timm"]}',
        f'- {how["rounds"]} interleaved rounds, {", ".join(speeds)}: medians (quartiles)',
        '- memory is what a fresh process holds at once, in the network or at the peak of a pass, or a GPU allocates',
        f'- `import timm_lc` takes {report["import_seconds"]:.3f} s more than `import timm`',
    ]
    for model in dict.fromkeys(row['model'] for row in report['rows']):
        rows = [row for row in report['rows'] if row['model'] == model]
        lines += ['', f'## {model}, {" x ".join(map(str, rows[0]["shape"]))}', '']
        lines += [
            _section(rows, 'Over plain:', _ratios),
            '',
            _section(rows, 'Milliseconds, floors in italics:', _times),
        ]
        lines += ['', _section(rows, 'MiB:', _sizes)]
    return '\n'.join([*lines, ''])


def draw_sweep(points: Sequence[dict[str, Any]], report: dict[str, Any], stem: Path) -> list[Path]:
    """Write the time of a step and, where known, the peak memory over expansions as STEM.png and STEM.svg."""
    model = points[0]['model']
    plain = next(row for row in report['rows'] if (row['model'], row['row']) == (model, PLAIN))
    places = sorted({point['expansion'] for point in points})
    shown = {
        'training step [ms]': (lambda seconds, memory: 1e3 * seconds['step'], plain['seconds']['step']['median'] * 1e3),
        'peak memory [MiB]': (lambda seconds, memory: memory[PEAK] / MEBI, plain['memory'].get(PEAK, 0) / MEBI),
    }
    if PEAK not in plain['memory']:
        del shown['peak memory [MiB]']
    panels = []
    for label, (value, level) in shown.items():
        found = _curves(points, value)
        line = Curve(PLAIN, [(place, [level]) for place in places], style=len(FORMS))
        panels.append(Panel([*found, line], 'expansion E', label, log=True, log_y=True, places=places))
    figure, paths = curves(panels), [stem.with_suffix(suffix) for suffix in ('.png', '.svg')]
    for path in paths:
        save(figure, path)
    return paths


def _curves(
    points: Sequence[dict[str, Any]], value: Callable[[dict[str, float], dict[str, int]], float]
) -> list[Curve]:
    forms = [(style, form) for style, form in enumerate(FORMS) if any(point['form'] == form for point in points)]
    found = [(p['form'], p['expansion'], [value(p['seconds'], p['memory'])]) for p in points]
    return [Curve(form, [(e, values) for f, e, values in found if f == form], style=style) for style, form in forms]


def _section(rows: Sequence[Row], title: str, columns: Callable[[Row, Row], Iterator[tuple[str, str]]]) -> str:
    """Return a table with a line for each row of a model; `columns` yields (title, cell) of a row and the plain one."""
    plain = next((row for row in rows if row['row'] == PLAIN), rows[0])
    cells = [dict(columns(row, plain)) for row in rows]
    table = [['network', 'form', *cells[0]]]
    table += [[row['row'], row['form'] or NONE, *line.values()] for row, line in zip(rows, cells, strict=True)]
    return f'{title}\n\n{markdown(table)}'


def _ratios(row: Row, plain: Row) -> Iterator[tuple[str, str]]:
    for part, title in PARTS.items():
        yield title, f'{row["seconds"][part]["median"] / plain["seconds"][part]["median"]:.3g}'
    yield 'multiply-adds', f'{row["multiply_adds"]["both"] / plain["multiply_adds"]["both"]:.3g}'
    if PEAK in row['memory']:
        peak = row['memory'][PEAK]
        yield 'peak memory', f'{peak / plain["memory"][PEAK]:.3g}'
        yield 'less its fixed bytes', f'{(peak - row["fixed_bytes"]) / plain["memory"][PEAK]:.3g}'


def _times(row: Row, plain: Row) -> Iterator[tuple[str, str]]:
    for part, title in PARTS.items():
        times, floor = row['seconds'][part], row['floors'].get(part)
        spread = f' ({_ms(times["low"])} to {_ms(times["high"])})' if times['runs'] > 1 else ''
        yield title, _ms(times['median']) + spread + (f' *{_ms(floor)}*' if floor else '')
    for part, title in (('step', 'images/s trained'), ('inference', 'images/s inferred')):
        yield title, f'{row["shape"][0] / row["seconds"][part]["median"]:,.0f}'


def _sizes(row: Row, plain: Row) -> Iterator[tuple[str, str]]:
    for key, title in MEMORY.items():
        if key in row['memory']:
            yield title, f'{row["memory"][key] / MEBI:,.0f}'
    yield 'fixed', f'{row["fixed_bytes"] / MEBI:,.1f}'
    yield 'checkpoint', f'{row["checkpoint_bytes"] / MEBI:,.2f}'


def _ms(seconds: float) -> str:
    return f'{1e3 * seconds:,.{1 if seconds < 0.1 else 0}f}'
