"""What the comparison of ways to adapt shows: a table for each task, one of every learning rate, and a picture."""

import statistics
from typing import Any

from timm_lc.analysis.intervals import paired_interval
from timm_lc.paper.plots import scatter
from timm_lc.training.adapting import FULL

__all__ = ['draw', 'rates', 'table']


def table(runs: list[dict[str, Any]]) -> str:
    """Return a table in Markdown for each task: mean and deviation, against full fine-tuning, and what it costs."""
    parts = []
    for task in dict.fromkeys(run['task'] for run in runs):
        best = _best(runs, task)
        lines = [
            f'### {task}\n',
            '| what learns | accuracy, % | against full fine-tuning | lr | weights | bytes of a file |',
            '|---|---|---|---|---|---|',
        ]
        for method, (lr, found) in best.items():
            values = [run['accuracy'] for run in found]
            spread = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
            lines.append(
                f'| {method} | {statistics.fmean(values):.2f}{spread} | {_against_full(best, found)} | {lr:g} '
                f'| {found[0]["weights"]:,} | {found[0]["bytes"]:,} |'
            )
        parts.append('\n'.join(lines))
    return '\n\n'.join(parts) + '\n'


def draw(runs: list[dict[str, Any]]) -> Any:
    """Return the figure: accuracy over bytes, a group for each task."""
    groups = []
    for style, task in enumerate(dict.fromkeys(run['task'] for run in runs)):
        best = _best(runs, task)
        points = {m: (f[0]['bytes'], statistics.fmean(run['accuracy'] for run in f)) for m, (_, f) in best.items()}
        adapters = [point for method, point in points.items() if method.startswith('adapter')]
        others = [point for method, point in points.items() if not method.startswith('adapter')]
        groups += [(f'{task}: adapters', adapters, style, True), (f'{task}: other ways', others, style, False)]
    return scatter(groups, 'bytes to keep for one more task', 'accuracy, %')


def rates(runs: list[dict[str, Any]]) -> str:
    """Return a table in Markdown for each task: the mean accuracy of each way at each learning rate."""
    lrs = sorted({run['lr'] for run in runs})
    parts = []
    for task in dict.fromkeys(run['task'] for run in runs):
        found = [run for run in runs if run['task'] == task]
        lines = [
            f'### {task}: accuracy in % at each learning rate\n',
            _row('what learns', *map('{:g}'.format, lrs)),
            '|---' * (len(lrs) + 1) + '|',
            *[_row(method, *_means(found, method, lrs)) for method in dict.fromkeys(run['method'] for run in found)],
        ]
        parts.append('\n'.join(lines))
    return '\n\n'.join(parts) + '\n'


def _row(*cells: str) -> str:
    return f'| {" | ".join(cells)} |'


def _means(runs: list[dict[str, Any]], method: str, lrs: list[float]) -> list[str]:
    """Return the mean accuracy of a method at each learning rate, '' where it has no run."""
    values = [[run['accuracy'] for run in runs if (run['method'], run['lr']) == (method, lr)] for lr in lrs]
    return [f'{statistics.fmean(found):.2f}' if found else '' for found in values]


def _best(runs: list[dict[str, Any]], task: str) -> dict[str, tuple[float, list[dict[str, Any]]]]:
    """Return for each method, of the learning rates with most seeds, that of the best mean, and its runs by seed."""
    best = {}
    for method in dict.fromkeys(run['method'] for run in runs if run['task'] == task):
        found: dict[float, list[dict[str, Any]]] = {}
        for run in runs:
            if (run['task'], run['method']) == (task, method):
                found.setdefault(run['lr'], []).append(run)
        lr = max(found, key=lambda lr: (len(found[lr]), statistics.fmean(run['accuracy'] for run in found[lr])))
        best[method] = lr, sorted(found[lr], key=lambda run: run['seed'])
    return best


def _against_full(best: dict[str, Any], found: list[dict[str, Any]]) -> str:
    """Return the mean difference from full fine-tuning over the same seeds, with its 95 % interval."""
    full = {run['seed']: run['accuracy'] for run in best.get(FULL, (0, []))[1]}
    differences = [run['accuracy'] - full[run['seed']] for run in found if run['seed'] in full]
    if not differences or found[0]['method'] == FULL:
        return ''
    interval = paired_interval(differences)
    bounds = f' ({interval[0]:+.1f} to {interval[1]:+.1f})' if interval else ''
    return f'{statistics.fmean(differences):+.2f}{bounds}'
