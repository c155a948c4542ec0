"""Orthonormal rows, and the filter set made of them."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import timm_lc.orthogonal
from timm_lc import LCConv2d, add_linear_combinations, freeze_spatial, share_weights
from timm_lc.filters import EXPECTED, ORTHOGONAL, FilterRecord, check_filters, random_values
from timm_lc.models import LCOptions
from timm_lc.orthogonal import orthonormal_rows

# (rows, C_in/groups, k_h, k_w), groups: fewer rows than columns, as many, more, half panels, depthwise
SHAPES = [((8, 16, 3, 3), 1), ((144, 16, 3, 3), 1), ((70, 4, 3, 3), 2), ((400, 8, 3, 3), 1), ((96, 1, 3, 3), 32)]


def gram(filters, groups):
    rows = filters.reshape(groups, filters.shape[0] // groups, -1).astype(np.float64)
    return np.swapaxes(rows, 1, 2) @ rows


@pytest.mark.parametrize(('m', 'n'), [(1, 1), (3, 7), (32, 33), (65, 65), (100, 400)])
def test_orthonormal_rows_are_those_of_the_qr_decomposition(m, n):
    matrix = np.float64(random_values(1, 2, 2 * m * n)).reshape(2, m, n)
    for rows, drawn in zip(orthonormal_rows(matrix), matrix, strict=True):
        q, r = np.linalg.qr(drawn.T)
        np.testing.assert_allclose(rows, (q * np.sign(np.diag(r))).T, atol=1e-9)


def test_orthonormal_rows_stay_orthonormal_where_the_rows_are_nearly_dependent():
    matrix = np.float64(random_values(1, 2, 64 * 64)).reshape(64, 64)
    matrix[40] = matrix[:40].sum(0) + 1e-6 * matrix[40]
    rows = orthonormal_rows(matrix)
    np.testing.assert_allclose(rows @ rows.T, np.eye(64), atol=1e-11)


def test_orthonormal_rows_leave_their_argument_alone():
    matrix = np.float64(random_values(1, 2, 40)).reshape(4, 10)
    before = matrix.copy()
    orthonormal_rows(matrix)
    np.testing.assert_array_equal(matrix, before)


@pytest.mark.parametrize('kernels', ['Prescott', 'Nehalem', 'Haswell'])
def test_orthonormal_rows_have_the_same_bits_with_other_kernels_and_threads(kernels):
    program = (
        'import runpy, sys, zlib, numpy as np\n'
        'made = runpy.run_path(sys.argv[1])["orthonormal_rows"]\n'
        'drawn = np.random.Philox(key=[5, 6]).random_raw(100 * 300).reshape(100, 300) / 2.0**63 - 1\n'
        'print(zlib.crc32(made(drawn).tobytes()))'
    )
    environment = {**os.environ, 'OPENBLAS_CORETYPE': kernels, 'OPENBLAS_NUM_THREADS': '3', 'OMP_NUM_THREADS': '3'}
    command = [sys.executable, '-c', program, str(Path(timm_lc.orthogonal.__file__))]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    drawn = np.random.Philox(key=[5, 6]).random_raw(100 * 300).reshape(100, 300) / 2.0**63 - 1
    assert int(printed) == zlib.crc32(orthonormal_rows(drawn).tobytes())


@pytest.mark.parametrize(
    ('record', 'crc'),
    [
        (FilterRecord((8, 16, 3, 3), seed=1, stream=77, filter_set=ORTHOGONAL), 0x7B7F58EF),
        (FilterRecord((70, 4, 3, 3), seed=7, stream=5, gain=2.5, filter_set=ORTHOGONAL, groups=2), 0x6C9BD3D7),
        (FilterRecord((400, 8, 3, 3), seed=2**32 - 1, stream=9, filter_set=ORTHOGONAL), 0x40E018B1),
    ],
)
def test_orthogonal_filters_are_these_for_ever(record, crc):
    assert zlib.crc32(record.filters().astype('<f4').tobytes()) == crc


@pytest.mark.parametrize('gain', [1.0, 3**0.5])
@pytest.mark.parametrize(('shape', 'groups'), SHAPES)
def test_orthogonal_filters_have_a_projector_for_a_gram_matrix(shape, groups, gain):
    filters = FilterRecord(shape, 3, 4, gain=gain, filter_set=ORTHOGONAL, groups=groups).filters()
    assert filters.dtype == np.float32
    assert filters.shape == shape
    rows, fan = shape[0] // groups, filters[0].size
    for matrix in gram(filters, groups):
        values = np.linalg.eigvalsh(matrix)[::-1]
        expected = gain**2 / 3 * max(1, rows / fan)  # c = E*C_out / (3 C_in k^2) beyond the rank
        np.testing.assert_allclose(values[: min(rows, fan)], expected, rtol=1e-5)
        np.testing.assert_allclose(values[rows:], 0, atol=1e-6)


@pytest.mark.parametrize(('shape', 'groups'), SHAPES)
def test_orthogonal_filters_span_what_the_uniform_ones_span(shape, groups):
    record = FilterRecord(shape, 3, 4, filter_set=ORTHOGONAL, groups=groups)
    both = [each.filters().reshape(groups, shape[0] // groups, -1) for each in (record, FilterRecord(shape, 3, 4))]
    for orthogonal, uniform in zip(*both, strict=True):
        rank = min(orthogonal.shape)
        assert np.linalg.matrix_rank(np.concatenate([orthogonal, uniform]), tol=1e-4) == rank


@pytest.mark.parametrize('groups', [1, 2])
def test_record_of_orthogonal_filters_survives_the_round_trip(groups):
    record = FilterRecord((8, 3, 3, 3), 5, 6, gain=2.0, filter_set=ORTHOGONAL, groups=groups)
    assert FilterRecord.decode(record.encode(record.filters()))[0] == record


def test_record_of_groups_that_do_not_divide_the_filters_raises():
    with pytest.raises(ValueError, match=r'damaged filter record: no filters have shape \(8, 3, 3, 3\)'):
        FilterRecord.decode(FilterRecord((8, 3, 3, 3), filter_set=ORTHOGONAL, groups=3).encode(None))


def test_expected_filters_do_not_exist():
    with pytest.raises(ValueError, match=r"`filters='expected'` has no filters: it needs `implicit=True`"):
        FilterRecord((8, 3, 3, 3), filter_set=EXPECTED).filters()


@pytest.mark.parametrize('filters', ['gaussian', None, 1])
def test_check_filters_refuses_what_is_no_filter_set(filters):
    with pytest.raises(ValueError, match="`filters` must be one of 'uniform', 'orthogonal', 'expected', got ") as error:
        check_filters(filters)
    assert repr(filters) in str(error.value)


def test_lc_block_of_orthogonal_filters_has_a_projector_and_loads_by_its_record():
    block = LCConv2d(4, 4, 3, groups=2, expansion=3, filters='orthogonal', seed=8)
    for matrix in gram(block.spatial.weight.numpy(), 2):
        np.testing.assert_allclose(3 * matrix @ matrix, matrix, atol=1e-6)
    other = LCConv2d(4, 4, 3, groups=2, expansion=3)
    other.load_state_dict(block.state_dict())
    assert torch.equal(other.spatial.weight, block.spatial.weight)
    assert torch.equal(other.spatial.record, block.spatial.record)


@pytest.mark.parametrize('expansion', [None, 2])
@pytest.mark.parametrize('freeze', [True, False])
def test_models_take_orthogonal_filters(freeze, expansion, stock):
    model = LCOptions(freeze_spatial=freeze, expansion=expansion, filters='orthogonal', seed=2).apply(stock())
    name = 'conv1.3' if expansion is None else 'conv1.3.spatial'
    weight = model.get_submodule(name).weight.detach().flatten(1).double()
    assert len(weight) <= weight.shape[1]
    torch.testing.assert_close(3 * weight @ weight.t(), torch.eye(len(weight)).double(), atol=1e-6, rtol=0)


def test_expected_filters_are_refused_where_filters_are_needed(stock):
    words = r"`filters='expected'` has no filters: it needs `implicit=True`"
    with pytest.raises(ValueError, match=words):
        freeze_spatial(stock(), filters='expected')
    with pytest.raises(ValueError, match=words):
        add_linear_combinations(stock(), 2, filters='expected')
    with pytest.raises(ValueError, match=words):
        LCConv2d(4, 4, 3, filters='expected')


def test_shared_filters_are_uniform(stock):
    with pytest.raises(ValueError, match="`share_weights=True` needs `filters='uniform'`, got 'orthogonal'"):
        LCOptions(share_weights=True, filters='orthogonal')
    model = share_weights(freeze_spatial(stock(), filters='orthogonal'))
    assert all(m.filter_record.is_shared for m in model.modules() if hasattr(m, 'filter_record'))
