"""Figure 3's networks against torchvision's, changed as the authors' public code has them."""

import pytest
import timm
import torch
import torchvision
from torch import nn

import timm_lc

RESNETS = ['resnet14', 'resnet18', 'resnet34', 'resnet50', 'resnet101', 'wide_resnet50_2']
DEEPEST = {'resnet14': 8, 'mobilenetv2_100': 8}


@pytest.fixture
def oracle():
    """Return a builder of torchvision's network with the authors' stem, strides and stages."""

    def oracle(name):
        torch.manual_seed(0)
        if name == 'mobilenetv2_100':
            model = torchvision.models.mobilenet_v2(num_classes=10)
            model.features[0][0].stride = model.features[2].conv[1][0].stride = (1, 1)
            return model.eval()
        model = getattr(torchvision.models, name.replace('resnet14', 'resnet18'))(num_classes=10)
        model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        if name == 'resnet14':
            model.layer4, model.fc = nn.Identity(), nn.Linear(256, 10)
        return model.eval()

    return oracle


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize('name', [*RESNETS, 'mobilenetv2_100'])
def test_counts_are_those_of_torchvisions_network(name, oracle):
    with torch.device('meta'):
        learnable = timm_lc.count_parameters(timm.create_model(f'lc_lowres_{name}', freeze_spatial=False))
        frozen = timm_lc.count_parameters(timm.create_model(f'lc_lowres_{name}'))
        stock = oracle(name)
    spatial = sum(m.weight.numel() for m in stock.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1)
    assert learnable.learnable == learnable.total == frozen.total == count(stock)
    assert frozen.learnable == count(stock) - spatial


@pytest.mark.parametrize('name', ['resnet14', 'resnet18', 'resnet50', 'wide_resnet50_2'])
def test_resnets_compute_what_torchvisions_do(name, oracle, images):
    stock, model = oracle(name), timm.create_model(f'lc_lowres_{name}', freeze_spatial=False).eval()
    model.load_state_dict(stock.state_dict(), strict=False)  # ours also tells of which seed filters began
    torch.testing.assert_close(model(images), stock(images), rtol=1e-4, atol=1e-5)


def test_mobilenet_computes_what_torchvisions_does(oracle, images):
    stock, model = oracle('mobilenetv2_100'), timm.create_model('lc_lowres_mobilenetv2_100', freeze_spatial=False)
    pairs = zip(_tensors(model), _tensors(stock), strict=True)  # the same layers in the same order, named otherwise
    with torch.no_grad():
        for ours, theirs in pairs:
            ours.copy_(theirs)
    torch.testing.assert_close(model.eval()(images), stock(images), rtol=1e-4, atol=1e-5)


def _tensors(model):
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    for layer in layers:
        yield from layer.parameters(recurse=False)
        if isinstance(layer, nn.BatchNorm2d):
            yield from (layer.running_mean, layer.running_var)


def test_mobilenet_drops_a_fifth_before_its_classifier():
    assert timm.create_model('lc_lowres_mobilenetv2_100').drop_rate == 0.2
    assert timm.create_model('lc_lowres_mobilenetv2_100', drop_rate=0.0).drop_rate == 0.0


@pytest.mark.parametrize('name', [*RESNETS, 'mobilenetv2_100'])
def test_features_shrink_as_reported(name):
    features = timm.create_model(f'lc_lowres_{name}', features_only=True).eval()
    outputs = features(torch.randn(1, 3, 32, 32))
    assert [32 // output.shape[-1] for output in outputs] == features.feature_info.reduction()
    assert [output.shape[1] for output in outputs] == features.feature_info.channels()
    assert features.feature_info.reduction()[-1] == DEEPEST.get(name, 16)


def test_resnets_start_from_pytorchs_default_initialisation():
    model = timm.create_model('lc_lowres_resnet50')
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.detach()
            bound = weight[0].numel() ** -0.5  # uniform within it
            assert weight.abs().max() <= bound * 1.000001
            assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.06)
