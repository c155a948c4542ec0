"""Transforms of what `torch.compile` and parallel training made of a network: they are those of the network itself."""

import pytest
import timm
import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

import timm_lc

TRANSFORMS = {
    'freeze': lambda model: timm_lc.freeze_spatial(model, seed=5),
    'share': lambda model: timm_lc.share_weights(model, seed=5),
    'combine': lambda model: timm_lc.add_linear_combinations(model, 2, seed=5),
    'adapt': lambda model: timm_lc.add_adapters(model, 4, seed=5),
    'adapt and back': lambda model: timm_lc.remove_adapters(timm_lc.add_adapters(model, 4)),
    'implicit and back': lambda model: timm_lc.to_explicit(
        timm_lc.to_implicit(timm_lc.add_linear_combinations(model, 2))
    ),
}
WRAPPERS = {
    'compiled': lambda model: torch.compile(model, backend='eager'),
    'data parallel': nn.DataParallel,
    'both': lambda model: torch.compile(nn.DataParallel(model), backend='eager'),
}


def parts(model):
    return {name: tensor for tensors in (model.named_parameters(), model.named_buffers()) for name, tensor in tensors}


@pytest.mark.parametrize('wrap', WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize('transform', TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_wrapped_network_is_changed_as_the_network_itself(transform, wrap, stock):
    torch.manual_seed(0)
    expected = parts(transform(stock()))
    torch.manual_seed(0)
    inner = stock()
    wrapped = wrap(inner)
    assert transform(wrapped) is wrapped
    found = parts(inner)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize('wrap', WRAPPERS.values(), ids=WRAPPERS)
def test_the_network_in_a_wrapped_one_is_folded(wrap, images):
    model = timm.create_model('lc_test_resnet').eval()
    folded = timm_lc.fold(wrap(model))
    assert folded.pretrained_cfg['architecture'] == 'test_resnet'
    assert type(folded) is type(model)
    torch.testing.assert_close(folded(images), model(images))


def test_a_compiled_network_computes_with_its_new_filters(stock, images):
    compiled = torch.compile(stock(), backend='eager')
    compiled(images)
    timm_lc.freeze_spatial(compiled, seed=5)
    assert torch.equal(compiled(images), timm_lc.freeze_spatial(stock(), seed=5)(images))


@pytest.mark.parametrize('transform', TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize('is_compiled', [False, True])
def test_a_network_of_several_processes_is_refused(transform, is_compiled, stock, monkeypatch):
    monkeypatch.setattr(nn.parallel.DistributedDataParallel, '__init__', lambda self: nn.Module.__init__(self))
    wrapped = nn.parallel.DistributedDataParallel()
    wrapped.module = stock()
    wrapped = torch.compile(wrapped, backend='eager') if is_compiled else wrapped
    with pytest.raises(ValueError, match=r'`model` is in DistributedDataParallel, .* wrap it afterwards'):
        transform(wrapped)


@pytest.mark.parametrize('average', [AveragedModel, ModelEmaV2, ModelEmaV3])
def test_an_average_is_the_network_that_it_averages(average, stock, images, tmp_path):
    averaged = average(timm.create_model('lc_test_resnet').eval())
    timm_lc.save_pretrained(averaged, tmp_path)
    expected = averaged.module(images)
    assert torch.equal(timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()(images), expected)
    folded = timm_lc.fold(averaged)
    assert folded.pretrained_cfg['architecture'] == 'test_resnet'
    torch.testing.assert_close(folded(images), expected)
    found, wanted = timm_lc.freeze_spatial(average(stock()), seed=5).module, timm_lc.freeze_spatial(stock(), seed=5)
    assert all(torch.equal(tensor, parts(found)[name]) for name, tensor in parts(wanted).items())


def test_an_attribute_named_module_is_a_part_of_the_network(stock, tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())

    path = timm_lc.save_adapter(timm_lc.add_adapters(Net()), tmp_path / 'adapter.safetensors')
    assert path.is_file()
