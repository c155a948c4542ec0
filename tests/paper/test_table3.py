"""Table 3's columns, of a network in both forms."""

import pytest
import torch

from timm_lc.paper import timing
from timm_lc.paper.check_line import check_line
from timm_lc.paper.experiment import Variant
from timm_lc.paper.results import Line


@pytest.mark.parametrize('two', [False, True])
def test_measure_timing_gives_the_columns_of_table_3(two, monkeypatch):
    monkeypatch.setattr(timing, 'ROUNDS', 2)
    monkeypatch.setattr(timing, 'SHAPE', (2, 3, 8, 8))
    variant = Variant('', '', 'lc_resnet20_16x2', two_convolutions=two)
    found = timing.measure_timing(variant, torch.device('cpu'))
    assert 0 < found['forward_ms'] < found['both_ms']
    assert {'forward_ms_std', 'both_ms_std'} <= set(found)
    assert found['model_memory'] < found['forward_peak'] <= found['both_peak']
    learned = sum(p.numel() for p in timing.build(variant).parameters())
    filters = 9 * 2 * sum(
        (3 * 16, *[16 * 16] * 6, 16 * 32, *[32 * 32] * 5, 32 * 64, *[64 * 64] * 5)
    )  # fmt: skip
    expected = 4 * (learned + filters) if two else 4 * learned
    # our file also holds statistics of norms, records and a header
    assert expected <= found['checkpoint'] * 2**20 <= expected + (0 if two else 60_000)


def test_a_step_measured_once_has_no_deviation(monkeypatch):
    monkeypatch.setattr(timing, 'MAX_SECONDS', 0.0)
    monkeypatch.setattr(timing, 'SHAPE', (2, 3, 8, 8))
    variant = Variant('', '', 'lc_resnet20_16x1')
    values = timing.measure_timing(variant, torch.device('cpu'))
    assert {'forward_ms', 'both_ms'} <= set(values)
    assert not {'forward_ms_std', 'both_ms_std'} & set(values)
    check_line(Line.of(variant, None, {'device': 'x', 'threads': 1}, values).to_json(), 'here')
