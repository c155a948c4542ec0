"""The theory experiments: forms, rates and the measure of conditioning."""

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


def test_points_with_a_rate_of_their_own_stand_beside_those_of_the_recipe():
    def line(variant, accuracy):
        run = {**describe_run(variant.run(0, Recipe(epochs=5)), 'cifar10', None), 'images': [50000, 10000]}
        where = {'device': 'cpu', 'threads': 1, 'amp': False, 'python': '3', 'torch': '2', 'timm': '1'}
        return Line(variant.point, 0.0, run, where, {'accuracy': accuracy})

    experiment = EXPERIMENTS['theory3']
    chosen = [v for v in experiment.variants if v.facet == 'E = 8' and v.series == PLAIN]
    lines = [line(variant, 50 + index) for index, variant in enumerate(chosen)]
    page = '\n'.join(make_section(experiment, lines, lines[0].setting).markdown())
    for text in ('| recipe | 50.00 |', '| lr 0.001 | 51.00 |', '| lr 0.1 | 55.00 |'):
        assert text in page
    assert 'not shown' not in page


def test_figure_1_goes_on_to_4096():
    expansions = [v.x for v in EXPERIMENTS['theory2'].variants if v.series == FROZEN]
    assert expansions == [2**power for power in range(13)]


@pytest.mark.parametrize(('name', 'reach'), [('k = 3 frozen random 4', 4 / 9), ('k = 3 frozen random 16', 1)])
def test_conditioning_is_measured_without_training(name, reach):
    variant = next(v for v in EXPERIMENTS['theory5'].variants if v.name == name)
    values = UNTRAINED['conditioning'](variant, torch.device('cpu'))
    assert values['reach'] == pytest.approx(reach)
    assert values['smallest'] == 9
    assert 0 < values['log_condition'] < 6
