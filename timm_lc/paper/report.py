"""All results of a folder as one page, in Markdown and as HTML that holds its figures: `timm-lc report`."""

import html
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm_lc.paper.catalogue import EXPERIMENTS
from timm_lc.paper.overview import answer, headline, hours, untimed, verdicts
from timm_lc.paper.plots import require_plots, svg
from timm_lc.paper.results import RUNS, Line, Results
from timm_lc.paper.sections import Section, provenance, sections_of, write_sections
from timm_lc.paper.tables import markdown
from timm_lc.paper.verdicts import SHORT
from timm_lc.training.files import write_text

__all__ = ['write_report']

TITLE = 'Does the paper reproduce?'
ABOUT = (
    'Rethinking 1x1 Convolutions: Can we train CNNs with Frozen Random Filters? (Gavrikov and Keuper, January 2023), '
    'and its second version, The Power of Linear Combinations: Learning with Random Convolutions (June 2023), whose '
    "figures and tables are those named v2-. Columns headed 'paper' are what its text and tables print, 'deviation' is "
    "ours less the paper's; hollow marks in figures are the paper's too. Of an experiment with results of several "
    "recipes, those of the paper's but for the epochs come first, of these those of most epochs, then of most images, "
    'then of most points; another recipe is shown only where there is nothing else, and is never judged. Shorter runs '
    'stand beside longer ones only if they have points that those lack. Random filters are the same in all '
    'runs (filter seed 0); training seeds draw learned weights, order and augmentation.'
)
SHORT_RUNS = 'Short runs, which decide nothing'
HEAD = f"""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{TITLE}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
img, svg {{ max-width: 100%; height: auto; }}
h2 {{ margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1rem; font-size: 1.2rem; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; font-size: .85rem; }}
td {{ font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .6rem; border-bottom: 1px solid #e4e4e4; text-align: right; }}
th {{ vertical-align: bottom; }} th:first-child, td:first-child {{ text-align: left; }}
table:first-of-type :is(th, td):is(:nth-child(2), :nth-child(3), :nth-child(4)) {{ text-align: left; }}
li {{ font-size: .9rem; color: #444; }}
</style>"""


def write_report(directory: Path) -> list[Path]:
    """Write `report.md` and `report.html` of all results below `directory`, and each table anew; return both paths.

    Raises:
        ValueError: If there are no results, or another version wrote them.
    """
    require_plots()
    known = ((name, Results(directory / name).lines) for name in EXPERIMENTS)
    results = {name: lines for name, lines in known if lines}
    if not results:
        raise ValueError(f'`DIR` must hold results of `timm-lc reproduce`, such as fig1/{RUNS}, got {directory}')
    sections = [each for name, lines in results.items() for each in sections_of(EXPERIMENTS[name], lines)]
    write_sections(sections, directory)
    text = _markdown(sections, results)
    drawings = {_picture(section): svg(section.figure) for section in sections if section.figure is not None}
    pages = {'report.md': text, 'report.html': _html(text, drawings)}
    for name, text in pages.items():
        write_text(directory / name, text)
    return [directory / name for name in pages]


def _markdown(sections: Sequence[Section], results: Mapping[str, Sequence[Line]]) -> str:
    links = {section.name: f'[{section.name}](#{_anchor(section.heading)})' for section in sections}
    of_all, shown = _provenance(sections), headline(sections)
    lines = [f'# {TITLE}', '', *(f'- {text}' for text in answer(sections))]
    if shown is not None:
        lines += ['', f'![{shown.heading}]({_picture(shown)})']
    lines += ['', markdown(verdicts(sections, links)), '', ABOUT, '', *(f'- {name}: {text}' for name, text in of_all)]
    short = [section for section in sections if section.verdict.word == SHORT]
    for section in [section for section in sections if section.verdict.word != SHORT]:
        lines += _section(section, of_all)
    lines += ['', f'# {SHORT_RUNS}'] if short else []
    for section in short:
        lines += _section(section, of_all)
    lines += ['', '# Hours', '', markdown(hours(results)), '']
    lines += [f'- Not counted: {count} runs whose time no result tells.', ''] if (count := untimed(results)) else []
    return '\n'.join(lines)


def _section(section: Section, of_all: Sequence[tuple[str, str]]) -> list[str]:
    """Return the lines of a section, less what holds for all."""
    own = [f'- {name}: {text}' for name, text in _provenance([section]) if (name, text) not in of_all]
    lines = ['', f'## {section.heading}', '', section.verdict_line, *([''] if own else []), *own]
    if section.figure is not None:
        lines += ['', f'![{section.title}]({_picture(section)})']
    return [*lines, *section.markdown()]


def _provenance(sections: Sequence[Section]) -> list[tuple[str, str]]:
    return provenance(line for section in sections for line in section.lines)


def _picture(section: Section) -> str:
    return f'{section.experiment.id}/{section.name}.png'


def _anchor(title: str) -> str:
    """Return how Markdown pages name a heading."""
    kept = ''.join(letter for letter in title.lower() if letter.isalnum() or letter in ' -_')
    return kept.replace(' ', '-')


def _html(text: str, drawings: Mapping[str, str]) -> str:
    """Return a Markdown page as HTML: each picture is the drawing of its path, each heading can be linked to."""
    from markdown_it import MarkdownIt
    from markdown_it.renderer import RendererHTML

    def draw(renderer: RendererHTML, tokens: Sequence[Any], index: int, options: Any, env: Any) -> str:
        token = tokens[index]
        return f'<span role="img" aria-label="{html.escape(token.content)}">{drawings[token.attrs["src"]]}</span>'

    parser = MarkdownIt('commonmark', {'html': False}).enable('table')
    parser.add_render_rule('image', draw)
    tokens = parser.parse(text)
    for opening, inline in itertools.pairwise(tokens):
        if opening.type == 'heading_open':
            opening.attrSet('id', _anchor(inline.content))
    return f'{HEAD}\n{parser.renderer.render(tokens, parser.options, {})}</html>\n'
