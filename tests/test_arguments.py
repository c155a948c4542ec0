"""Counts are checked alike wherever they are given."""

import pytest

from timm_lc import LCConv2d, add_linear_combinations, share_weights
from timm_lc.arguments import check_count
from timm_lc.training.recipe import Recipe


@pytest.mark.parametrize('value', [0, -1, 1.5, 2.0, True, '3', None])
def test_only_positive_integers_count(value):
    with pytest.raises(ValueError, match=f'`steps` must be a positive integer, got {value!r}'):
        check_count('steps', value)


@pytest.mark.parametrize('value', [1.5, True])
def test_every_count_is_checked(stock, value):
    for name, use in (
        ('expansion', lambda: LCConv2d(3, 4, 3, expansion=value)),
        ('expansion', lambda: add_linear_combinations(stock(), value)),
        ('recycle', lambda: share_weights(stock(), recycle=value)),
        ('epochs', lambda: Recipe(epochs=value)),
    ):
        with pytest.raises(ValueError, match=f'`{name}` must be a positive integer, got {value}'):
            use()
