"""LC-Blocks with an operation between their two convolutions, against plain functions."""

import pytest
import timm
import torch
import torch.nn.functional as F

import timm_lc
from timm_lc import add_linear_combinations
from timm_lc.layers.lc_pair import BETWEEN, LCPair


def apply(name, x):
    """Return an operation on activations in training, by its definition."""
    if 'bn' in name:
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
        x = (x - mean) / (var + 1e-5).sqrt()
    return x.clamp(min=0) if 'relu' in name else x


@pytest.mark.parametrize('between', BETWEEN)
@pytest.mark.parametrize('freeze_spatial', [True, False])
def test_pair_is_two_convolutions_with_the_operation_between(between, freeze_spatial):
    block = timm_lc.LCConv2d(3, 5, 3, stride=2, padding=1, expansion=4, bias=True, freeze_spatial=freeze_spatial)
    filters, weight, bias = block.spatial.weight, block.pointwise.weight, block.pointwise.bias
    pair, x = LCPair(block, between).train(), torch.randn(2, 3, 9, 9)
    expected = F.conv2d(apply(between, F.conv2d(x, filters, stride=2, padding=1)), weight, bias)
    torch.testing.assert_close(pair(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('between', BETWEEN)
def test_network_has_the_explicit_networks_filters_and_saves_and_loads(between, images, tmp_path):
    kwargs = {'depth': 8, 'width': 4, 'expansion': 2}
    explicit = timm.create_model('lc_resnet_cifar', **kwargs)
    model = timm.create_model('lc_resnet_cifar', **kwargs, between=between).eval()
    assert torch.equal(model.layer1[0].conv1.spatial.weight, explicit.layer1[0].conv1.spatial.weight)
    assert not model.layer1[0].conv1.spatial.weight.requires_grad
    timm_lc.save_pretrained(model, tmp_path)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert torch.equal(loaded(images), model(images))


def test_learnable_pair_learns_its_filters():
    model = timm.create_model('lc_resnet_cifar', depth=8, width=4, expansion=2, between='relu', freeze_spatial=False)
    assert model.conv1.spatial.weight.requires_grad


def test_pair_is_a_block_already():
    model = timm.create_model('lc_resnet20_16x2', between='relu')
    before = str(model)
    assert str(add_linear_combinations(model, 2)) == before
    with pytest.raises(ValueError, match='has LC-Blocks of 2'):
        add_linear_combinations(model, 4)


def test_pair_does_not_fold():
    model = timm.create_model('lc_resnet_cifar', depth=8, width=4, expansion=2, between='relu')
    with pytest.raises(ValueError, match='layer `conv1` has an operation between its two convolutions'):
        timm_lc.fold(model)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'expansion': 2, 'between': 'gelu'}, "`between` must be one of relu, bn, bn_relu, got 'gelu'"),
        ({'between': 'relu'}, "`between` needs `expansion`, .* got 'relu' alone"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('lc_resnet_cifar', depth=8, width=4, **kwargs)
