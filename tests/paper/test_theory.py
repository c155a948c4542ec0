"""The theory experiments: forms, rates and the measure of conditioning."""

import numpy as np
import pytest
import torch

from timm_lc.paper.catalogue import EXPERIMENTS
from timm_lc.paper.experiment import FROZEN, LEARNABLE, PLAIN
from timm_lc.paper.measures import UNTRAINED
from timm_lc.paper.results import Line
from timm_lc.paper.runs import describe_run
from timm_lc.paper.sections import make_section
from timm_lc.training.recipe import Recipe

THEORY = [experiment for name, experiment in EXPERIMENTS.items() if name.startswith('theory')]


def test_frozen_networks_run_in_the_implicit_form():
    for experiment in THEORY:
        for variant in experiment.variants:
            is_frozen = variant.series not in (PLAIN, LEARNABLE, 'explicit')
            assert variant.model_kwargs.get('implicit', False) == is_frozen, (experiment.id, variant.name)


def test_the_control_tunes_plain_and_frozen_over_the_same_rates():
    variants = EXPERIMENTS['theory3'].variants
    for facet in ('E = 8', 'E = 128'):
        rates = {
            series: [v.run(0, Recipe()).recipe.lr for v in variants if v.facet == facet and v.series == series and v.lr]
            for series in (PLAIN, FROZEN)
        }
        assert rates[PLAIN] == rates[FROZEN] == [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]
    plain = next(v for v in variants if v.series == PLAIN and not v.lr)
    assert plain.run(0, Recipe(lr=0.5)).recipe.lr == 0.5


def line_of(variant, **values):
    run = {**describe_run(variant.run(0, Recipe(epochs=5)), 'cifar10', None), 'images': [50000, 10000]}
    where = {'device': 'cpu', 'threads': 1, 'amp': False, 'python': '3', 'torch': '2', 'timm': '1'}
    return Line(variant.point, 0.0, run, where, values)


def test_losses_of_two_forms_are_drawn_over_the_epochs():
    experiment = EXPERIMENTS['theory1']
    chosen = [variant for variant in experiment.variants if variant.x == 8]
    lines = [line_of(v, accuracy=50.0, losses=[2.0 + i, 1.0 + i]) for i, v in enumerate(chosen)]
    (axes,) = make_section(experiment, lines, lines[0].setting).figure.axes
    assert axes.get_title() == 'LC expansion E = 8'
    drawn = {tuple(curve.get_ydata()) for curve in axes.get_lines()}
    assert {(2.0, 1.0), (3.0, 2.0)} <= drawn


def test_points_with_a_rate_of_their_own_stand_beside_those_of_the_recipe():
    experiment = EXPERIMENTS['theory3']
    chosen = [v for v in experiment.variants if v.facet == 'E = 8' and v.series == PLAIN]
    lines = [line_of(variant, accuracy=50 + index) for index, variant in enumerate(chosen)]
    page = '\n'.join(make_section(experiment, lines, lines[0].setting).markdown())
    for text in ('| recipe | 50.00 |', '| lr 0.001 | 51.00 |', '| lr 0.1 | 55.00 |'):
        assert text in page
    assert 'not shown' not in page


def test_figure_1_goes_on_to_4096():
    expansions = [v.x for v in EXPERIMENTS['theory2'].variants if v.series == FROZEN]
    assert expansions == [2**power for power in range(13)]


def test_rates_are_those_of_the_factor_over_squared_norms():
    """Uniform weights of plain and of implicit blocks have |W|^2 = C_out / 3 and C_out / 9 (equation 8, P_0)."""
    plain, frozen, expected = (
        next(v for v in EXPERIMENTS['theory6'].variants if (v.facet, v.series) == ('E = 128', series))
        for series in (PLAIN, FROZEN, 'expected')
    )
    start, frozen_start, limit_start = (
        UNTRAINED['rate'](v, torch.device('cpu'))['rate_at_start'] for v in (plain, frozen, expected)
    )
    channels = [16] * 7 + [32] * 6 + [64] * 6
    assert start == pytest.approx(np.exp(np.mean(np.log([3 / c for c in channels]))), rel=0.02)
    inputs = [3, *channels[:-1]]
    factors = [128 * c / (c_in * 9) for c_in, c in zip(inputs, channels, strict=True)]  # 3 c
    assert limit_start / start == pytest.approx(np.exp(np.mean(np.log(factors))), rel=0.02)
    assert frozen_start / start == pytest.approx(limit_start / start, rel=0.02)


@pytest.mark.parametrize(('name', 'reach'), [('k = 3 frozen random 4', 4 / 9), ('k = 3 frozen random 16', 1)])
def test_conditioning_is_measured_without_training(name, reach):
    variant = next(v for v in EXPERIMENTS['theory5'].variants if v.name == name)
    values = UNTRAINED['conditioning'](variant, torch.device('cpu'))
    assert values['reach'] == pytest.approx(reach)
    assert values['smallest'] == 9
    assert 0 < values['log_condition'] < 6
