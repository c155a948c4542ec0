"""The rows of `timm-lc bench`, what is measured of them, and their page."""

import pytest
import timm
import torch

from timm_lc import count_parameters
from timm_lc.layers.lc_conv import LCConv2d
from timm_lc.paper.bench import Settings, measure_bench, measure_sweep
from timm_lc.paper.bench_cases import IMPLICIT, ONE, PLAIN, TWO, cases, expanded
from timm_lc.paper.bench_page import bench_page

METHODS = ['baseline', 'freezing', 'sharing', 'recycled 1/16', 'pruning 0.7']
CPU = torch.device('cpu')


def settings(**changes):
    return Settings(CPU, **{'batch_size': 2, 'image_size': 8, 'rounds': 2, **changes})


@pytest.fixture(scope='module')
def report():
    rows = (PLAIN, 'freezing', 'pruning 0.7')
    chosen = [case for case in cases('lc_resnet20_16x2') if case.row in rows and case.form != IMPLICIT]
    return measure_bench({'lc_resnet20_16x2': chosen}, settings(), 'timm-lc bench')


def test_rows_are_each_method_and_form():
    found = [(case.row, case.form) for case in cases('lc_resnet20_16x2')]
    others = [('freezing', TWO), ('freezing', IMPLICIT)]
    assert found == [('plain', ''), ('folded', ''), *((row, ONE) for row in METHODS), *others]


def test_rows_of_a_network_without_blocks_have_no_form():
    found = [(case.row, case.form) for case in cases('lc_resnet18')]
    assert found == [('plain', ''), ('folded', ''), *((row, '') for row in METHODS)]


def test_rows_of_a_network_without_pointwise_convolutions_prune_nothing():
    assert 'pruning 0.7' not in [case.row for case in cases('lc_vgg11')]


@pytest.mark.parametrize(('name', 'stock'), [('lc_resnet20_16x2', 'lc_lowres_resnet20'), ('lc_resnet18', 'resnet18')])
def test_plain_and_folded_are_the_stock_network(name, stock):
    plain, folded, *_ = (case.build() for case in cases(name, num_classes=7)[:2])
    kwargs = {} if stock == 'resnet18' else {'freeze_spatial': False}
    wanted = timm.create_model(stock, num_classes=7, **kwargs).state_dict()
    for model in (plain, folded):
        assert {key: value.shape for key, value in model.state_dict().items()} == {
            key: value.shape for key, value in wanted.items()
        }
        assert not any(isinstance(module, LCConv2d) for module in model.modules())


def test_pruned_row_is_the_recycled_network_with_fewer_weights():
    found = [case for case in cases('lc_resnet20_16x2') if case.form == ONE]
    recycled, pruned = (case.build() for case in found[-2:])
    counts = count_parameters(recycled), count_parameters(pruned)
    assert counts[1].total == counts[0].total
    pointwise = sum(m.pointwise.weight.numel() for m in recycled.modules() if isinstance(m, LCConv2d))
    shortcuts = 16 * 32 + 32 * 64
    assert counts[0].nonzero - counts[1].nonzero == pytest.approx(0.7 * (pointwise + shortcuts), abs=1)


def test_two_convolutions_compute_the_same():
    one, two = (expanded('lc_resnet20_16x2', form, 4).build().eval() for form in (ONE, TWO))
    two.load_state_dict(
        {name: value for (name, _), value in zip(two.state_dict().items(), one.state_dict().values(), strict=True)}
    )
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(two(images), one(images), rtol=1e-4, atol=1e-5)


def test_implicit_form_has_the_plain_networks_parameters():
    plain, *_, implicit = cases('lc_resnet20_16x2')
    plain, implicit = plain.build(), implicit.build()
    assert count_parameters(implicit).learnable == count_parameters(plain).learnable


def test_rows_of_a_stock_network_are_refused():
    with pytest.raises(ValueError, match="`models` must be lc_ models, got 'resnet18'"):
        cases('resnet18')


def test_arguments_that_rows_set_are_refused():
    with pytest.raises(ValueError, match='`model_kwargs` must not set recycle, share_weights: each row sets its own'):
        cases('lc_resnet20_16x2', share_weights=True, recycle=4)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'batch_size': 0}, '`batch_size` must be a positive integer, got 0'),
        ({'image_size': -1}, '`image_size` must be a positive integer, got -1'),
        ({'rounds': 0}, '`rounds` must be a positive integer, got 0'),
        ({'max_seconds': 0.0}, '`max_seconds` must be a positive number, got 0'),
        ({'max_memory': float('nan')}, '`max_memory` must be a positive number, got nan'),
    ],
)
def test_impossible_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        settings(**changes)


def test_devices_without_a_known_clock_are_refused():
    with pytest.raises(ValueError, match='`device` must be a CPU or a CUDA GPU, whose clocks are read, got meta'):
        Settings(torch.device('meta'))


def test_report_holds_times_floors_memory_and_files_of_each_row(report):
    assert [(row['row'], row['form']) for row in report['rows']] == [
        ('plain', ''), ('freezing', ONE), ('pruning 0.7', ONE), ('freezing', TWO),
    ]  # fmt: skip
    plain, freezing, pruning, two = report['rows']
    for row in report['rows']:
        parts = row['seconds']
        assert set(parts) == {'forward', 'both', 'optimizer', 'step', 'inference', 'create'}
        assert all(
            0 < times['low'] <= times['median'] <= times['high'] and times['runs'] == 2 for times in parts.values()
        )
        assert parts['forward']['median'] < parts['both']['median'] < parts['step']['median']
        assert 0 < row['memory']['model_memory'] < row['memory']['forward_peak'] <= row['memory']['both_peak']
    assert pruning['checkpoint_bytes'] < freezing['checkpoint_bytes'] < two['checkpoint_bytes']
    assert two['checkpoint_bytes'] == 4 * count_parameters(timm.create_model('lc_resnet20_16x2')).total
    assert plain['fixed_bytes'] == 0 < freezing['fixed_bytes'] == two['fixed_bytes']
    assert min(row['multiply_adds']['both'] for row in (freezing, pruning, two)) > plain['multiply_adds']['both']


def test_page_has_ratios_to_plain_first(report):
    lines = bench_page(report).splitlines()
    assert '`timm-lc bench`' in lines
    ratios = lines[lines.index('Over plain:') + 2 :]
    assert ratios[2].startswith('| plain | – | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 |')  # noqa: RUF001
    plain, freezing = (report['rows'][index]['seconds']['step']['median'] for index in (0, 1))
    assert ratios[3].startswith(f'| freezing | one convolution | {freezing / plain:.3g} |')
    assert lines.index('Over plain:') < lines.index('Milliseconds, floors in italics:') < lines.index('MiB:')


def test_sweep_ends_where_the_next_point_would_exceed_a_bound(report):
    found = measure_sweep('lc_resnet20_16x2', [ONE], [1, 2, 10**6], settings(), report['rows'][0])
    assert [(point['form'], point['expansion']) for point in found] == [(ONE, 1), (ONE, 2)]
    assert all(point['seconds']['step'] > 0 and point['memory']['both_peak'] > 0 for point in found)
