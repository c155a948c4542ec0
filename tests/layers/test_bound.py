"""A network's memory comes back with the last name for it, as of stock networks: nothing of ours ties it in a cycle."""

import copy
import gc
import pickle
import weakref

import pytest
import timm
import torch
from torch import nn

from timm_lc import add_adapters, fold, freeze_spatial, share_weights

BUILDS = {
    'stock': lambda: timm.create_model('resnet18'),
    'frozen': lambda: timm.create_model('lc_resnet18'),
    'kept': lambda: freeze_spatial(timm.create_model('resnet18'), seed=None),
    'shared': lambda: share_weights(timm.create_model('resnet18')),
    'expanded': lambda: timm.create_model('lc_resnet20_16x2'),
    'learnable': lambda: timm.create_model('lc_resnet20_16x2', freeze_spatial=False),
    'implicit': lambda: timm.create_model('lc_resnet20_16x2', implicit=True),
    'adapted': lambda: add_adapters(timm.create_model('resnet18'), rank=2),
    'folded': lambda: fold(timm.create_model('lc_resnet20_16x2')),
    'copied': lambda: copy.deepcopy(timm.create_model('lc_resnet18')),
}


@pytest.fixture
def uncollected():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize('build', BUILDS.values(), ids=BUILDS)
def test_a_network_is_freed_with_its_last_name(build, uncollected):
    model = build()
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    parts = [weakref.ref(module) for module in model.modules()]
    del model
    assert [part() for part in parts] == [None] * len(parts)


@pytest.mark.parametrize('duplicate', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_methods_of_a_copy_are_its_own(duplicate):
    model = freeze_spatial(timm.create_model('resnet18'))
    other = duplicate(model)
    before = other.conv1.weight.clone()
    with torch.no_grad():
        other.conv1.weight.zero_()
        model.conv1.weight.fill_(1)
    other.init_weights()
    assert torch.equal(other.conv1.weight, before)
    assert (model.conv1.weight == 1).all()


def test_a_shallow_copy_says_that_its_module_is_gone():
    conv = freeze_spatial(nn.Sequential(nn.Conv2d(3, 4, 3)))[0]
    left = copy.copy(conv)
    del conv
    with pytest.raises(ReferenceError, match='`_apply` belongs to a module that is gone'):
        left.half()
    with pytest.raises(ReferenceError, match='`init_weights`'):
        copy.copy(freeze_spatial(timm.create_model('resnet18'))).init_weights()
