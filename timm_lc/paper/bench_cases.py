"""The rows of `timm-lc bench`: a network plain, folded, by each of section 4.3's methods, and in each form."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from timm_lc.layers.lc_conv import LCConv2d
from timm_lc.paper.experiment import Variant
from timm_lc.paper.timing import build
from timm_lc.paper.variants import AMOUNT, RECYCLED
from timm_lc.spatial import pointwise_convolutions
from timm_lc.transforms.fold import fold
from timm_lc.transforms.options import LC_ARGUMENTS

__all__ = ['FORMS', 'IMPLICIT', 'ONE', 'PLAIN', 'TWO', 'Case', 'cases', 'expanded']

PLAIN, FOLDED = 'plain', 'folded'
FORMS = TWO, ONE, IMPLICIT = ('two convolutions', 'one convolution', 'implicit')
SET_BY_ROWS = {'freeze_spatial', 'share_weights', 'recycle', 'shared_length', 'implicit'}
METHODS: dict[str, dict[str, Any]] = {
    'baseline': {'freeze_spatial': False},
    'freezing': {},
    'sharing': {'share_weights': True},
    'recycled 1/16': RECYCLED,
    'pruning 0.7': RECYCLED,
}


@dataclass(frozen=True)
class Case:
    """A row: a network in a form, and how to build it."""

    row: str
    form: str
    build: Callable[[], nn.Module]

    @property
    def name(self) -> str:
        """Row and form."""
        return f'{self.row}, {self.form}' if self.form else self.row


def cases(name: str, **model_kwargs: Any) -> list[Case]:
    """Return the rows of a network: plain, folded, each method, and the frozen one in the other forms of LC-Blocks.

    Args:
        name: Of an `lc_` model.
        **model_kwargs: Arguments of `timm.create_model`, but those that the rows set.

    Raises:
        ValueError: If `name` is not an `lc_` model, or an argument is one that the rows set.
    """
    if not name.startswith('lc_'):
        raise ValueError(f'`models` must be lc_ models, got {name!r}')
    if given := SET_BY_ROWS & model_kwargs.keys():
        raise ValueError(f'`model_kwargs` must not set {", ".join(sorted(given))}: each row sets its own')
    with torch.device('meta'):
        model = timm.create_model(name, **model_kwargs)
    plain = functools.partial(_plain, name, model_kwargs)
    found = [Case(PLAIN, '', plain), Case(FOLDED, '', functools.partial(_folded, name, model_kwargs))]
    if any(isinstance(module, LCConv2d) for module in model.modules()):
        found += [case for form in (ONE, TWO, IMPLICIT) for case in _in_form(name, form, model_kwargs)]
    else:
        found += [_case(row, '', name, {**model_kwargs, **arguments}) for row, arguments in METHODS.items()]
    prunes = any(True for _ in pointwise_convolutions(model))
    return [case for case in found if prunes or 'pruning' not in case.row]


def expanded(name: str, form: str, expansion: int, **model_kwargs: Any) -> Case:
    """Return the frozen network with LC-Blocks of another expansion."""
    return _case('freezing', form, name, {**model_kwargs, 'expansion': expansion})


def _in_form(name: str, form: str, model_kwargs: dict[str, Any]) -> list[Case]:
    """Return each method as one convolution, or the frozen network in another form: two convolutions take seconds."""
    rows = METHODS if form == ONE else {'freezing': {}}
    return [_case(row, form, name, {**model_kwargs, **arguments}) for row, arguments in rows.items()]


def _case(row: str, form: str, name: str, model_kwargs: dict[str, Any]) -> Case:
    arguments = {**model_kwargs, 'implicit': True} if form == IMPLICIT else model_kwargs
    amount = AMOUNT if 'pruning' in row else 0.0
    variant = Variant('', row, name, arguments, amount=amount, two_convolutions=form == TWO)
    return Case(row, form, functools.partial(build, variant))


def _plain(name: str, model_kwargs: dict[str, Any]) -> nn.Module:
    """Return the network that `name` is made of."""
    given = {key: value for key, value in model_kwargs.items() if key not in LC_ARGUMENTS}
    base = name.removeprefix('lc_')
    if timm.is_model(base):
        return timm.create_model(base, **given)
    with torch.device('meta'):
        plain, geometry = getattr(timm.create_model(name, **given), 'plain_form', (name, {}))
    return timm.create_model(plain, **{**given, **geometry}, expansion=None, freeze_spatial=False)


def _folded(name: str, model_kwargs: dict[str, Any]) -> nn.Module:
    return fold(timm.create_model(name, **model_kwargs))
