"""What a line of `runs.jsonl` must hold, whoever wrote it; `reproduce` stops at a run that diverges and writes none."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from timm_lc.arguments import check_count

__all__ = ['check_line']

_PARTS = {
    'facet': str, 'series': str, 'x': int | float | str, 'pruned': int | float,
    'run': dict, 'where': dict, 'values': dict,
}  # fmt: skip
_SEED = {'seed': int | None}
_TRAINED = {'model': str, 'model_kwargs': dict, 'recipe': dict, 'data': str, 'limit': int | None}
_WHERE = {'device': str, 'threads': int}
# Values of many numbers, for figures; all others are one
_MANY = ('filters', 'random', 'positions', 'pointwise', 'reconstructed', 'losses')


def check_line(line: Mapping[str, Any], place: str) -> None:
    """Refuse a line, as `Line.to_json` writes it, that tables and figures cannot be made of.

    Args:
        line: Object of the file.
        place: What names it in errors: the file, and which line.

    Raises:
        ValueError: If something is missing, of a wrong kind, or a value is not finite; it is named.
    """
    try:
        _check(line, _PARTS)
        _check_run(line['run'], line['where'])
        for name, value in line['values'].items():
            _check_value(name, value)
    except ValueError as error:
        raise ValueError(f'{place}: {error}') from None


def _check_run(run: Mapping[str, Any], where: Mapping[str, Any]) -> None:
    _check(run, _SEED, 'run.')
    if run['seed'] is not None:
        _check(run, _TRAINED, 'run.')
        _check(run['recipe'], {'epochs': int}, 'run.recipe.')
        check_count('run.recipe.epochs', run['recipe']['epochs'])
    if where or run['seed'] is None:  # train.py does not tell where
        _check(where, _WHERE, 'where.')


def _check(found: Mapping[str, Any], kinds: Mapping[str, Any], place: str = '') -> None:
    for name, kind in kinds.items():
        if name not in found:
            raise ValueError(f'`{place}{name}` is missing')
        if not isinstance(found[name], kind):
            expected = getattr(kind, '__name__', kind)
            raise ValueError(f'`{place}{name}` must be of type {expected}, got {found[name]!r}')


def _check_value(name: str, value: Any) -> None:
    if isinstance(value, list | tuple | dict) != (name in _MANY):
        raise ValueError(f'`values.{name}` must be {"numbers" if name in _MANY else "a number"}, got {value!r}')
    for number in _numbers(value):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f'`values.{name}` must be a number, got {number!r}')
        if not math.isfinite(number):
            raise ValueError(f'`values.{name}` must be finite, got {number}: a run that diverged is no result')


def _numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)
    else:
        yield value
