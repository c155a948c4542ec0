"""Rank and condition of G against numpy's own decompositions of the filters."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from timm_lc import LCConv2d, freeze_spatial
from timm_lc.analysis.conditioning import condition, conditioning_page
from timm_lc.cli import main
from timm_lc.filters import EXPECTED, ORTHOGONAL, FilterRecord, layer_stream


@pytest.mark.parametrize(
    ('rows', 'out_channels', 'groups'), [(8, 4, 1), (40, 8, 1), (96, 8, 1), (80, 8, 2), (12, 4, 4)]
)
def test_condition_is_that_of_the_filters(rows, out_channels, groups):
    record = FilterRecord((rows, 4, 3, 3), 3, 5)
    found = condition(record, out_channels, groups)
    matrices = record.filters().astype(np.float64).reshape(groups, rows // groups, 36)
    assert found.rank == sum(np.linalg.matrix_rank(matrix) for matrix in matrices)
    assert found.size == 36 * groups
    assert found.reach == found.rank / found.size
    singular = [np.linalg.svd(matrix, compute_uv=False) for matrix in matrices]
    assert found.condition == pytest.approx(max((values[0] / values[-1]) ** 2 for values in singular), rel=1e-6)
    assert found.smallest == np.ceil(36 / (out_channels / groups))


def test_condition_counts_what_the_implicit_form_costs():
    low, full = condition(FilterRecord((8, 4, 3, 3)), 4, 1), condition(FilterRecord((40, 4, 3, 3)), 8, 1)
    assert (low.numbers, low.multiply_adds) == (8 * 36, 2 * 4 * 8 * 36)  # dW W^T, then times W
    assert (full.numbers, full.multiply_adds) == (36 * 36, 8 * 36 * 36)
    for found, arguments in ((low, (4, 4, 3, 1, 0, 1, 1)), (full, (4, 8, 3, 1, 0, 1, 1))):
        expansion = 2 if found is low else 5
        assert LCConv2d(*arguments, expansion=expansion, implicit=True).gram.numel() == found.numbers


@pytest.mark.parametrize('kernel_size', [3, 5, 7, 9])
def test_a_block_reaches_all_filters_from_k_squared_on_at_equal_widths(kernel_size):
    def record(expansion):
        return FilterRecord((8 * expansion, 8, kernel_size, kernel_size))

    edge = kernel_size**2
    assert condition(record(edge), 8, 1).reach == 1
    assert condition(record(edge), 8, 1).smallest == edge
    assert condition(record(edge - 1), 8, 1).reach == pytest.approx(1 - 1 / edge)


@pytest.mark.parametrize(('kernel_size', 'expansion'), [(3, 2), (3, 16), (3, 64), (5, 32), (5, 64)])
def test_condition_follows_the_law_of_random_matrices(kernel_size, expansion):
    """Compare with Marchenko and Pastur (1967): ((sqrt(E) + k) / (sqrt(E) - k))^2 at equal widths, or k^2 < E."""
    found = condition(FilterRecord((32 * expansion, 32, kernel_size, kernel_size), 1, 2), 32, 1)
    law = ((expansion**0.5 + kernel_size) / (expansion**0.5 - kernel_size)) ** 2
    assert found.condition == pytest.approx(law, rel=0.25)


def test_orthogonal_and_expected_sets_are_perfectly_conditioned():
    record = FilterRecord((40, 4, 3, 3), filter_set=ORTHOGONAL)
    assert condition(record, 4, 1).condition == pytest.approx(1, abs=1e-5)
    found = condition(FilterRecord((40, 4, 3, 3), filter_set=EXPECTED), 4, 1)
    assert (found.reach, found.condition, found.numbers) == (1, 1, 1)


@pytest.mark.parametrize('implicit', [False, True])
def test_page_lists_each_block_and_all(implicit):
    with torch.device('meta'):
        model = timm.create_model('lc_resnet20_16x2', implicit=implicit)
    lines = conditioning_page(model).splitlines()
    assert len(lines) == 2 + sum(p.endswith(('conv1', 'conv2')) for p, _ in model.named_modules())
    record = FilterRecord((32, 3, 3, 3), 0, layer_stream('conv1.spatial'))
    values = np.linalg.svd(record.filters().reshape(32, 27), compute_uv=False)
    assert lines[1].split()[:5] == ['conv1', '27', 'of', '27', '100.0%']
    assert float(lines[1].split()[5]) == pytest.approx((values[0] / values[-1]) ** 2, rel=0.01)
    assert lines[-1].split()[0] == 'all'
    assert '22.2%' in lines[-1]  # 2 of 9


def test_recycled_filters_repeat_whatever_the_expansion():
    record = FilterRecord((40, 4, 3, 3), period=10 * 36)
    found = condition(record, 4, 1)
    assert (found.rank, found.smallest) == (10, 0)
    with torch.device('meta'):
        model = timm.create_model('lc_resnet20_16x2', share_weights=True, recycle=4)
    *_, last, every = conditioning_page(model).splitlines()
    assert (last.split()[6], every.split()[3]) == ('-', '-')


def test_networks_without_blocks_of_a_seed_have_no_page():
    assert conditioning_page(nn.Conv2d(3, 3, 3)) == ''
    learnable = nn.Sequential(LCConv2d(4, 4, 3, freeze_spatial=False))
    assert conditioning_page(learnable) == ''
    assert conditioning_page(freeze_spatial(learnable, seed=None)) == ''


def test_info_prints_the_page(capsys):
    assert main(['info', 'lc_resnet20_16x1']) == 0
    assert 'rank of G' in capsys.readouterr().out
