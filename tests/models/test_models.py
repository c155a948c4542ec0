"""The registry of `lc_` models: names, configurations, counts and arguments."""

import dataclasses
import json
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

import timm_lc
from timm_lc.models import LCOptions
from timm_lc.models.lc_zoo import MODULES
from timm_lc.transforms.options import LC_ARGUMENTS

PAPER = ['lc_resnet18', 'lc_resnet50', 'lc_resnet50d', 'lc_resnext50_32x4d', 'lc_wide_resnet50_2', 'lc_mobilenetv2_100',
         'lc_mobilenetv3_large_100']  # fmt: skip
LOWRES = ['resnet14', 'resnet18', 'resnet34', 'resnet50', 'resnet101', 'wide_resnet50_2', 'mobilenetv2_100', 'resnet20']


@pytest.mark.parametrize(
    ('kwargs', 'total', 'learnable'),
    [
        ({'freeze_spatial': False}, 38_431_402, 38_431_402),
        ({}, 38_431_402, 4_166_314),
        ({'share_weights': True}, 8_884_906, 4_166_314),
        ({'share_weights': True, 'recycle': 16}, 4_461_226, 4_166_314),
    ],
)
def test_counts_of_lcresnet_20_16x128_are_the_papers_definitions(kwargs, total, learnable):
    with torch.device('meta'):
        counts = timm_lc.count_parameters(timm.create_model('lc_resnet20_16x128', **kwargs))
    assert (counts.total, counts.learnable) == (total, learnable)


@pytest.mark.parametrize(('kwargs', 'total'), [({}, 25_557_032), ({'share_weights': True}, 16_589_672)])
def test_counts_of_lc_resnet50_are_designs(kwargs, total):
    with torch.device('meta'):
        counts = timm_lc.count_parameters(timm.create_model('lc_resnet50', **kwargs))
    assert (counts.total, counts.learnable) == (total, 14_230_376)


def test_every_architecture_of_the_convolutional_modules_has_its_name():
    stock = [f'lc_{name}' for module in MODULES for name in timm.list_models(module=module)]
    assert len(stock) > 500
    assert set(stock) == set(timm.list_models(module='lc_zoo'))


def test_the_papers_cifar_names_are_registered():
    assert len(timm.list_models('lc_resnet*_*x*', module='lc_resnet_cifar')) == 6 * 4 * 8
    assert {f'lc_lowres_{name}' for name in LOWRES} == set(timm.list_models(module='lc_lowres'))


@pytest.mark.parametrize('name', [*PAPER, 'lc_resnet20_16x8', 'lc_lowres_resnet50', 'lc_vgg11'])
def test_configurations_describe_the_lc_model(name):
    cfg = timm.get_pretrained_cfg(name)
    assert cfg.architecture == name
    assert bool(cfg.has_weights) == (name == 'lc_resnet20_16x8')  # which ships trained
    assert timm.is_model(name)
    assert timm.model_entrypoint(name).__name__ == name
    if not name.startswith(('lc_resnet20', 'lc_lowres')):
        stock = timm.get_pretrained_cfg(name.removeprefix('lc_'))
        assert (cfg.mean, cfg.std, cfg.input_size) == (stock.mean, stock.std, stock.input_size)
        assert (cfg.classifier, cfg.pool_size) == (stock.classifier, stock.pool_size)


def test_data_configuration_of_cifar_names():
    config = timm.data.resolve_data_config({}, model=timm.create_model('lc_resnet20_16x1'))
    assert config['input_size'] == (3, 32, 32)
    assert config['crop_pct'] == 1.0


@pytest.mark.parametrize('kwargs', [{}, {'freeze_spatial': False}, {'expansion': 2}])
def test_models_save_their_own_name(kwargs, tmp_path):
    model = timm.create_model('lc_test_resnet', **kwargs)
    timm.models.save_for_hf(model, tmp_path, model_args=kwargs, safe_serialization=True)
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['architecture'] == 'lc_test_resnet'
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(image), model.eval()(image))


def test_pretrained_weights_are_refused_where_there_are_none():
    with pytest.raises(RuntimeError, match='No pretrained weights exist'):
        timm.create_model('lc_resnet18', pretrained=True)


@pytest.mark.parametrize('kwargs', [{}, {'share_weights': True, 'recycle': 4}, {'expansion': 2}])
def test_a_checkpoint_loads_with_other_classes_and_channels_as_the_stock_network_does(kwargs, tmp_path, stock_folders):
    torch.manual_seed(0)
    model = timm.create_model('lc_test_resnet', num_classes=10, **kwargs)
    timm.models.save_for_hf(model, tmp_path / 'lc', model_args={'num_classes': 10, **kwargs}, safe_serialization=True)
    timm.models.save_for_hf(
        timm_lc.fold(model), tmp_path / 'stock', model_args={'num_classes': 10}, safe_serialization=True
    )
    adapted, stock = (
        timm.create_model(f'local-dir:{tmp_path / kind}', pretrained=True, num_classes=0, in_chans=1).eval()
        for kind in ('lc', 'stock')
    )
    image = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(adapted(image), stock(image), rtol=1e-4, atol=1e-5)


def test_a_learnable_network_starts_from_the_frozen_filters():
    frozen, learnable = (timm.create_model('lc_test_resnet', freeze_spatial=freeze) for freeze in (True, False))
    pairs = [(m.weight, n.weight) for m, n in zip(frozen.modules(), learnable.modules(), strict=True)
             if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]  # fmt: skip
    assert len(pairs) > 4
    assert all(torch.equal(weight, other) for weight, other in pairs)
    assert all(isinstance(other, nn.Parameter) for _, other in pairs)


@pytest.mark.parametrize(('name', 'gain'), [('lc_vgg11', 6**0.5), ('lc_vgg11_bn', 1.0)])
def test_networks_without_norms_have_hes_scale(name, gain):
    first = timm.create_model(name).features[0]
    bound = gain / (3 * 9) ** 0.5
    assert 0.98 * bound < first.weight.abs().max() <= bound * 1.000001


def test_the_filters_seed_is_not_the_training_seed():
    nets = []
    for training_seed, seed in ((0, 0), (1, 0), (0, 1)):
        torch.manual_seed(training_seed)
        nets.append(timm.create_model('lc_resnet20_16x1', seed=seed))
    weights = [net.conv1.spatial.weight for net in nets]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(nets[0].fc.weight, nets[2].fc.weight)


@pytest.mark.parametrize(
    ('name', 'kwargs', 'message'),
    [
        ('lc_resnet18', {'expansion': 0}, '`expansion` must be a positive integer, got 0'),
        ('lc_resnet18', {'expansion': 1.5}, '`expansion` must be a positive integer, got 1.5'),
        ('lc_resnet18', {'share_weights': True, 'recycle': 0}, '`recycle` must be a positive integer, got 0'),
        ('lc_resnet18', {'share_weights': True, 'shared_length': -1}, '`shared_length` must be a positive integer'),
        ('lc_resnet18', {'recycle': 2}, 'need `share_weights=True`'),
        ('lc_resnet18', {'share_weights': True, 'freeze_spatial': False}, 'needs `freeze_spatial=True`'),
        ('lc_resnet18', {'freeze_spatial': 'no'}, "`freeze_spatial` must be True or False, got 'no'"),
        ('lc_resnet18', {'seed': 2**32}, r'`seed` must be an integer in \[0, 2\*\*32\)'),
        ('lc_resnet18', {'gain': -1}, '`gain` must be a positive number'),
        ('lc_resnet_cifar', {'depth': 21}, '`depth` must be 6n . 2'),
        ('lc_resnet_cifar', {'kernel_size': 4}, '`kernel_size` must be an odd integer'),
        ('lc_resnet_cifar', {'width': 0}, '`width` must be a positive integer'),
        ('lc_resnetv2_50x1_bit', {'expansion': 2}, 'has no LC-Block'),
        ('lc_efficientnet_cc_b0_4e', {}, 'is a CondConv2d'),
    ],
)
def test_bad_arguments_are_named(name, kwargs, message):
    if name == 'lc_efficientnet_cc_b0_4e' and not timm.is_model(name):
        name = next(iter(timm.list_models('lc_*_cc_*')))
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **kwargs)


def test_an_architecture_without_spatial_convolutions_says_so():
    class Pointwise(nn.Sequential):
        pass

    with pytest.raises(ValueError, match='Pointwise has no spatial convolution'):
        timm_lc.freeze_spatial(Pointwise(nn.Conv2d(3, 4, 1)))


def test_lcresnet_kernel_sizes_keep_the_resolution():
    model = timm.create_model('lc_resnet_cifar', depth=8, width=4, expansion=2, kernel_size=9).eval()
    assert model.forward_features(torch.randn(1, 3, 32, 32)).shape == (1, 16, 8, 8)
    assert model.layer1[0].conv1.spatial.weight.shape == (8, 4, 9, 9)


def test_options_are_the_arguments_that_fold_drops():
    assert tuple(field.name for field in dataclasses.fields(LCOptions)) == LC_ARGUMENTS


def test_importing_changes_nothing_else():
    code = (
        'import random, numpy, torch, timm, logging, warnings, os;'
        'before = set(timm.list_models()), torch.get_rng_state().sum(), random.getstate(), dict(os.environ),'
        'len(logging.root.handlers), len(warnings.filters);'
        'import timm_lc;'
        'after = {n for n in timm.list_models() if not n.startswith("lc_")}, torch.get_rng_state().sum(),'
        'random.getstate(), dict(os.environ), len(logging.root.handlers), len(warnings.filters);'
        'assert before == after'
    )
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120)
