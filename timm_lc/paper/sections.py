"""An experiment's results as a section of text: what was trained where, the table, remarks, the figure."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from timm_lc.paper.experiment import Experiment, Point
from timm_lc.paper.figures import draw
from timm_lc.paper.plots import save
from timm_lc.paper.repeating import how_to_repeat
from timm_lc.paper.results import Line, collect, setting_in, settings
from timm_lc.paper.tables import markdown, table
from timm_lc.paper.verdicts import Verdict, findings, incomparable, shortfall, verdict_of
from timm_lc.training.files import write_text
from timm_lc.training.recipe import Recipe

__all__ = ['Section', 'make_section', 'provenance', 'sections_of', 'write_sections']


@dataclasses.dataclass(frozen=True)
class Section:
    """One figure or table of the paper, as far as it was measured.

    Attributes:
        experiment: What it is of.
        lines: Results that it shows.
        rows: Header and rows of the table; [] where a figure of pictures shows all.
        figure: As matplotlib draws it, or None.
        measured: Points that have a value of ours.
        hidden: Number of results of other recipes or images, or of another length.
        verdict: Whether it agrees with the paper.
        findings: What ours shows where the paper speaks in words.
        name: Of its files: the experiment's id, with an ending where another section of the experiment has that.
    """

    experiment: Experiment
    lines: Sequence[Line]
    rows: list[list[str]]
    figure: Any
    measured: int
    hidden: int
    verdict: Verdict
    findings: Sequence[str]
    name: str

    @property
    def title(self) -> str:
        """What stands above it."""
        return f'{self.name}: {self.experiment.title}'

    @property
    def heading(self) -> str:
        """Its title, with what its runs fall short of."""
        short = shortfall(self.experiment, self.lines)
        return f'{self.title} ({short})' if short else self.title

    @property
    def verdict_line(self) -> str:
        """Its verdict, and why."""
        word, reason = self.verdict
        return f'**{word}**: {reason}' if reason else f'**{word}**'

    @property
    def remarks(self) -> list[str]:
        """What the paper says in words, notes of ours, and what is left out."""
        places = '; '.join(dict.fromkeys(printed.place for printed in self.experiment.printed))
        said = [f"The paper's numbers: {places}."] if places and self.rows else []
        said += [f'The paper, {text}.' for text in self.experiment.says]
        short = shortfall(self.experiment, self.lines)
        said += [f'Ours{f" after {short}" if short else ""}: {"; ".join(self.findings)}.'] if self.findings else []
        others = f'{self.hidden} result{"s are" if self.hidden > 1 else " is"}'
        left_out = [f'{others} of other recipes, lengths or images, not shown here.'] if self.hidden else []
        return [*said, *self.experiment.notes, *_form(self.lines), *left_out]

    def markdown(self) -> list[str]:
        """Return the lines of the table and the remarks, each after an empty one."""
        rows = ['', markdown(self.rows)] if self.rows else []
        return [*rows, *([''] if self.remarks else []), *(f'- {remark}' for remark in self.remarks)]


def sections_of(experiment: Experiment, lines: Sequence[Line]) -> list[Section]:
    """Return the section of the longest runs, then of each shorter setting that has points which none before shows."""
    sections: list[Section] = []
    shown: set[Point] = set()
    for setting in settings(experiment, lines) or ['']:
        if sections and shown >= {line.point for line in lines if setting_in(experiment, line) == setting}:
            continue
        name = experiment.id + ('-short' if sections else '') + (f'-{len(sections)}' if sections[1:] else '')
        sections.append(make_section(experiment, lines, setting, name))
        shown |= {line.point for line in sections[-1].lines if line.is_trained}
    return sections


def make_section(experiment: Experiment, lines: Sequence[Line], setting: str, name: str | None = None) -> Section:
    """Return the section of those lines that are of one setting, or untrained; `results.settings` lists them.

    `name` is that of its files, the experiment's id if None.
    """
    shown = [line for line in lines if setting_in(experiment, line) in ('', setting)]
    cells = collect(experiment, shown)
    rows = table(experiment, cells, incomparable(experiment, shown)) if experiment.values else []
    verdict, found = verdict_of(experiment, shown, cells), findings(experiment, cells)
    hidden = len(lines) - len(shown)
    figure, name = draw(experiment, cells), name or experiment.id
    return Section(experiment, shown, rows, figure, len(cells), hidden, verdict, found, name)


def write_sections(sections: Sequence[Section], output: Path) -> list[Path]:
    """Write all sections of an experiment below `output` / id, and remove those that are no more; return the tables."""
    paths = [_write_section(section, output) for section in sections]
    names = {section.name for section in sections}
    for experiment in {section.experiment.id for section in sections}:
        for path in (output / experiment).glob(f'{experiment}-short*'):
            if path.stem not in names:
                path.unlink()
    return paths


def _write_section(section: Section, output: Path) -> Path:
    """Write the table, which is returned, and the figure as PNG and SVG, below `output` / id."""
    folder = output / section.experiment.id
    path = folder / ('table.md' if section.name == folder.name else f'{section.name}.md')
    made = [f'- {fact}: {text}' for fact, text in provenance(section.lines)] or ['Nothing of ours is measured yet.']
    how = [text for paragraph in how_to_repeat(section.experiment, section.lines) for text in (paragraph, '')]
    text = [f'# {section.heading}', '', section.verdict_line, '', *how, *made, *section.markdown(), '']
    write_text(path, '\n'.join(text))
    if section.figure is not None:
        for suffix in ('png', 'svg'):
            save(section.figure, folder / f'{section.name}.{suffix}')
    return path


def provenance(lines: Iterable[Line]) -> list[tuple[str, str]]:
    """Return (name, text) of what results were made with: every recipe, data set, device and version among them."""
    lines = list(lines)
    trained = [line.run for line in lines if line.is_trained]
    places = [line.where for line in lines if line.where]
    seeds = sorted({run['seed'] for run in trained})
    several = '; mean ± standard deviation (runs)' if len(seeds) > 1 else ''
    found = [
        ('recipe', _distinct(map(_recipe, trained))),
        ('data', _distinct(map(_data, trained))),
        ('training seeds', ', '.join(map(str, seeds)) + several),
        ('hardware', _distinct(map(_device, places))),
        ('versions', _distinct(map(_versions, places))),
    ]
    return [(name, text) for name, text in found if text]


def _form(lines: Iterable[Line]) -> list[str]:
    """Say how many of the frozen networks trained in the implicit form."""
    runs = [line.run['model_kwargs'] for line in lines if line.is_trained]
    frozen = [kwargs.get('implicit', False) for kwargs in runs if kwargs.get('freeze_spatial', True)]
    if not any(frozen):
        return []
    which = 'Frozen networks' if all(frozen) else f'{sum(frozen)} of {len(frozen)} frozen networks'
    return [f'{which} trained in the implicit form, which SGD trains on the same trajectory (docs/theory.md).']


def _recipe(run: dict[str, Any]) -> str:
    recipe = run['recipe']
    usual = '' if recipe['epochs'] == Recipe.epochs or 'lr' not in recipe else f' (the paper: {Recipe.epochs})'
    parts = [f'{recipe["epochs"]} epoch{"s"[: recipe["epochs"] > 1]}{usual}']
    parts += [
        f'{text} {recipe[name]}'
        for name, text in (('batch_size', 'batch size'), ('lr', 'learning rate'))
        if name in recipe
    ]
    if 'batch_size' in recipe and recipe.get('drop_last', True):  # older results do not tell, and have left them out
        parts.append('incomplete last batches left out')
    return ', '.join(parts)


def _data(run: dict[str, Any]) -> str:
    images = f' ({" + ".join(f"{count:,}" for count in run["images"])} images)' if 'images' in run else ''
    return run['data'] + images


def _device(where: dict[str, Any]) -> str:
    threads, amp = where['threads'], ', bfloat16 autocast' if where.get('amp') else ''
    return f'{where["device"]}, {threads} CPU thread{"s"[: threads > 1]}{amp}'


def _versions(where: dict[str, Any]) -> str:
    return ', '.join(f'{name} {where[name]}' for name in ('python', 'torch', 'timm') if name in where)


def _distinct(texts: Iterable[str]) -> str:
    return '; '.join(dict.fromkeys(texts))
