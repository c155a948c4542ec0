"""What `describe` and `print` say of each layer."""

import copy

import pytest
import timm
import torch
from torch import nn

import timm_lc


@pytest.fixture
def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Conv1d(4, 4, 1))


def states(model):
    return {layer.name: (layer.role, layer.state, layer.seed) for layer in timm_lc.describe(model).layers}


def test_roles_states_and_seeds_of_any_network(network):
    network[3].weight.requires_grad_(False)
    plain = {
        '0': ('spatial', 'learnable', None),
        '2': ('pointwise', 'learnable', None),
        '3': ('convolution', 'not learnable', None),
    }
    assert states(network) == plain
    timm_lc.freeze_spatial(network, seed=5)
    assert states(network) == {**plain, '0': ('spatial', 'frozen, seed=5', 5)}
    assert states(timm_lc.freeze_spatial(nn.Conv2d(3, 4, 3), seed=None)) == {'': ('spatial', 'kept', None)}


def test_lc_blocks_are_told_from_single_convolutions(network):
    timm_lc.add_linear_combinations(network, 2, seed=1)
    assert states(network)['0.spatial'] == ('LC-Block spatial', 'frozen, seed=1', 1)
    assert states(network)['0.pointwise'] == ('LC-Block pointwise', 'learnable', None)
    assert timm_lc.describe(network).layers[0].shape == (16, 3, 3, 3)


def test_a_recycled_vector_shows_its_period():
    model = timm_lc.share_weights(timm.create_model('test_resnet'), seed=2, recycle=4)
    longest = max(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1)
    found = [layer for layer in timm_lc.describe(model).layers if 'period' in layer.state]
    assert found
    assert {layer.state for layer in found} == {f'shared, seed=2, period={longest // 4}'}


def test_totals_are_the_counts(network):
    counts = timm_lc.count_parameters(timm_lc.freeze_spatial(network))
    assert counts.learnable == 36 + 20
    text = str(timm_lc.describe(network))
    assert text.splitlines()[1].split() == [
        '0',
        'spatial',
        '3x3',
        '8',
        'x',
        '3',
        'x',
        '3',
        'x',
        '3',
        'frozen,',
        'seed=0',
    ]
    assert text.endswith(f'parameters: {36 + 20} learnable, {36 + 20 + 216} total, {36 + 20} stored')


def test_print_shows_what_is_frozen(network):
    geometry = '3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False'
    assert repr(timm_lc.freeze_spatial(network, seed=7)[0]) == f'Conv2d({geometry}, frozen, seed=7)'
    assert repr(copy.deepcopy(network)[0]) == f'Conv2d({geometry}, frozen, seed=7)'
    assert f'{geometry}, shared, seed=3\n' in repr(timm_lc.share_weights(network, seed=3)[0])
    assert repr(timm_lc.freeze_spatial(nn.Conv2d(3, 4, 3), seed=None)).endswith('stride=(1, 1), kept)')


def test_print_shows_what_a_checkpoint_brought(network):
    state = timm_lc.freeze_spatial(copy.deepcopy(network), seed=9).state_dict()
    timm_lc.freeze_spatial(network).load_state_dict(state)
    assert 'frozen, seed=9' in repr(network)


def test_print_of_an_lc_block_shows_its_expansion():
    text = repr(timm_lc.LCConv2d(3, 4, 3, expansion=8, seed=2))
    assert 'expansion=8' in text
    assert 'frozen, seed=2' in text


def test_print_leaves_scripting_and_thawing_alone(network):
    frozen = timm_lc.freeze_spatial(network[:3])
    assert torch.jit.script(frozen)(torch.ones(1, 3, 4, 4)).shape == (1, 4, 4, 4)
    assert 'frozen' not in repr(timm_lc.fold(frozen))


def test_implicit_blocks_and_other_filter_sets_are_told(network):
    block = timm_lc.LCConv2d(3, 4, 3, expansion=2, seed=6, implicit=True)
    assert states(nn.Sequential(block)) == {'0': ('implicit spatial', 'learnable as by filters of seed=6', 6)}
    timm_lc.freeze_spatial(network, seed=1, filters='orthogonal')
    assert states(network)['0'] == ('spatial', 'frozen, seed=1, filters=orthogonal', 1)
    assert 'frozen, seed=1, filters=orthogonal)' in repr(network)
