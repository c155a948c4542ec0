"""The first screen of the report: does the paper reproduce, in three lines, and a verdict for each figure and table."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from timm_lc.analysis.intervals import mean_and_std
from timm_lc.paper.catalogue import EXPERIMENTS
from timm_lc.paper.experiment import FROZEN, LEARNABLE, PLAIN
from timm_lc.paper.printed_second import BY_DATA, HOURS
from timm_lc.paper.results import Line, collect, runs_of
from timm_lc.paper.sections import Section
from timm_lc.paper.verdicts import AGREES, DIFFERS, MISSING, OPEN, SHORT, UNCLEAR, shortfall

__all__ = ['answer', 'headline', 'hours', 'untimed', 'verdicts']

_HEADLINES = ('v2-fig4a', 'fig1')
_BLOCKS, _OURS = re.compile(r'_\d+x\d+$'), 'experiments of ours'
_PAPER = {name: experiment for name, experiment in EXPERIMENTS.items() if not experiment.is_ours}


def headline(sections: Sequence[Section]) -> Section | None:
    """Return the section whose figure stands on the first screen: accuracy over the expansion, the longest trained."""
    known = [each for name in _HEADLINES for each in sections if each.experiment.id == name and each.figure is not None]
    return min(known, key=lambda each: (shortfall(each.experiment, each.lines) != '', not each.findings), default=None)


def answer(sections: Sequence[Section]) -> list[str]:
    """Return three lines: the headline's numbers, how many figures and tables agree, and what short runs show."""
    words = Counter(section.verdict.word for section in sections if section.name in _PAPER)
    words[MISSING] += len(_PAPER) - words.total()
    order = (AGREES, DIFFERS, UNCLEAR, SHORT, OPEN, MISSING)
    counts = ', '.join(f'{words[word]} {word}' for word in order if words[word])
    judged = '' if words[AGREES] or words[DIFFERS] else 'Open: none can be judged yet. '
    lines = [_numbers(sections), f'{judged}Of {words.total()} figures and tables of both versions: {counts}.']
    shown = headline(sections)
    if shown is not None and shown.findings:
        short = shortfall(shown.experiment, shown.lines)
        says = '; '.join(shown.experiment.says)
        lines.append(
            f'{"After " + short if short else "At full length"}, {"; ".join(shown.findings)}. The paper, {says}.'
        )
    return lines


def verdicts(sections: Sequence[Section], links: Mapping[str, str]) -> list[list[str]]:
    """Return a row for each figure and table of both versions; `links` are the texts of the names of sections."""
    known = {section.name: section for section in sections}
    rows = [['', 'figure or table', 'verdict', 'why', 'points measured', 'training runs']]
    for name, experiment in _PAPER.items():
        if name not in known:
            rows.append([name, experiment.title, MISSING, '', f'0 of {len(experiment.variants)}', '0'])
            continue
        section = known[name]
        linked = ', '.join(link for each, link in links.items() if each == name or each.startswith(f'{name}-short'))
        measured = f'{section.measured} of {len(experiment.variants)}'
        runs = len({_content(line) for line in section.lines if line.is_trained})
        rows.append([linked, experiment.title, *section.verdict, measured, str(runs)])
    return rows


def hours(results: Mapping[str, Sequence[Line]]) -> list[list[str]]:
    """Return the second version's table 4, hours of an A100, and ours of all results by experiment, each run once."""
    ours: Counter[str] = Counter()
    runs = {_content(line): (name, line) for name, line in _trained(results) if 'seconds' in line.where}
    devices = dict.fromkeys(line.where['device'] for _, line in runs.values())
    for name, line in runs.values():
        ours[_category(name, line)] += line.where['seconds'] / 3600
    rows = [['', 'the paper (version 2, table 4), hours of an A100', f'ours, {", ".join(devices)}']]
    rows += [[name, f'{HOURS[name]:,.1f}' if name in HOURS else '', _hours(ours[name])] for name in (*HOURS, _OURS)]
    return rows if runs else [row[:2] for row in rows[:-1]]


def untimed(results: Mapping[str, Sequence[Line]]) -> int:
    """Return the number of runs whose time no result tells."""
    trained = [line for _, line in _trained(results)]
    return len({_content(line) for line in trained} - {_content(line) for line in trained if 'seconds' in line.where})


def _trained(results: Mapping[str, Sequence[Line]]) -> list[tuple[str, Line]]:
    """Return the lines of trained networks, the paper's experiments last, whose rows they then stand in."""
    names = sorted(results, key=lambda name: name in _PAPER)
    return [(name, line) for name in names for line in results[name] if line.is_trained]


def _hours(found: float) -> str:
    return f'{found:,.2f}' if found else ''


def _numbers(sections: Sequence[Section]) -> str:
    """Return plain, learnable and frozen random at E = 128, ours at full length beside the paper's."""
    section = next((section for section in sections if section.experiment.id == _HEADLINES[0]), None)
    names = (PLAIN, LEARNABLE, FROZEN)
    paper = ', '.join(
        f'{name} {mean:.2f} ± {std:.2f}' for name, (mean, std) in zip(names, BY_DATA['CIFAR-10'], strict=True)
    )
    about = f'The paper (version 2, table 1), CIFAR-10, 75 epochs, E = 128: {paper} %.'
    if section is None or shortfall(section.experiment, section.lines):
        return f"{about} Ours: no run of the paper's whole recipe is finished, so whether this reproduces is open."
    cells = collect(section.experiment, section.lines)
    found = {name: runs_of(cells, '', name, 128, 'accuracy') for name in names}
    ours = [f'{name} {_spread(values)}' for name, values in found.items() if values]
    data = ', '.join(dict.fromkeys(line.run['data'] for line in section.lines if line.is_trained))
    return f'{about} Ours, {data}: {", ".join(ours) or "none of the three"} %.'


def _spread(values: Mapping[int, float]) -> str:
    mean, std = mean_and_std(list(values.values()))
    return f'{mean:.2f}' + (f' ± {std:.2f} ({len(values)} runs)' if std is not None else ' (one run)')


def _content(line: Line) -> str:
    return str(sorted((key, str(value)) for key, value in line.run.items() if key != 'images'))


def _category(name: str, line: Line) -> str:
    """Return the row of table 4 that a run belongs to, or that of experiments of ours."""
    if name not in _PAPER:
        return _OURS
    data: dict[str, Any] = {'cifar100': 'CIFAR-100', 'svhn': 'SVHN', 'fashion_mnist': 'Fashion-MNIST'}
    kind = (
        'LC-Blocks' if _BLOCKS.search(line.run['model']) or line.run['model_kwargs'].get('expansion') else 'baselines'
    )
    found = data.get(line.run['data'])
    return f'{found}, LC-Blocks' if found else f'CIFAR-10, {kind}'
