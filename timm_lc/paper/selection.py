"""Which points of an experiment `--only` and `--values` leave, and the shortest of both that leave given ones."""

import re
import shlex
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from timm_lc.paper.experiment import Point, Variant

__all__ = ['Selection', 'select', 'selection_of']


class Selection(NamedTuple):
    """Arguments of `timm-lc reproduce`: a regular expression for names, and places on the axis; empty are all."""

    only: str = ''
    values: tuple[str, ...] = ()

    @property
    def options(self) -> list[str]:
        """As a shell reads them."""
        only = [f'--only {shlex.quote(self.only)}'] if self.only else []
        return only + ([f'--values {shlex.quote(",".join(self.values))}'] if self.values else [])


def select(variants: Sequence[Variant], selection: Selection) -> list[Variant]:
    """Return the variants that a selection leaves."""
    only, values = selection
    return [each for each in variants if re.search(only, each.name) and (not values or str(each.x) in values)]


def selection_of(variants: Sequence[Variant], points: AbstractSet[Point]) -> Selection | None:
    """Return the shortest known selection that leaves exactly these points, None if none is known."""
    places = tuple(dict.fromkeys(str(each.x) for each in variants if each.point in points))
    found = [Selection(_only(select(variants, Selection(values=values)), points), values) for values in ((), places)]
    exact = [each for each in found if {variant.point for variant in select(variants, each)} == points]
    return min(exact, key=lambda each: len(' '.join(each.options)), default=None)


def _only(variants: Sequence[Variant], points: AbstractSet[Point]) -> str:
    """Return a regular expression of alternatives that match names of these points alone, most points first."""
    rest = {each.point for each in variants if each.point in points}
    if len(rest) == len(variants):
        return ''
    matched = {
        text: {each.point for each in variants if re.search(text, each.name)} for text in _texts(variants, points)
    }
    within = {text: found for text, found in matched.items() if found <= points}
    alternatives: list[str] = []
    while rest and within:
        text = max(within, key=lambda text: (len(within[text] & rest), -len(text)))
        alternatives.append(text)
        rest -= within.pop(text)
    return '|'.join(alternatives)


def _texts(variants: Sequence[Variant], points: AbstractSet[Point]) -> Iterator[str]:
    """Yield what may match names of these points: panel, legend or both, whole or at places whose points all belong."""
    facets, legends = (
        {'': None} | dict.fromkeys(getattr(each, part) for each in variants) for part in ('facet', 'series')
    )
    for facet in facets:
        for series in legends:
            row = [each for each in variants if facet in ('', each.facet) and series in ('', each.series)]
            name = ' '.join(_literal(part) for part in (facet, series) if part)
            outside = {str(each.x) for each in row if each.point not in points}
            places = dict.fromkeys(str(each.x) for each in row if str(each.x) not in outside)
            if name and places:
                at = '|'.join(map(_literal, places))
                at = f'({at})' if len(places) > 1 else at
                yield from (name, f'^{name}', f'{name} {at}$', f'^{name} {at}$', f'{name}.* {at}$')


def _literal(text: str) -> str:
    """Return a regular expression of a text; unlike that of `re.escape` it has no more backslashes than it needs."""
    return re.sub(r'[.^$*+?{}\[\]\\|()]', r'\\\g<0>', text)
