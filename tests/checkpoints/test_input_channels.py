"""Checkpoints in networks of other input channels: stems of 3 are adapted as timm adapts them, others are refused."""

import pytest
import timm
import torch
from torch import nn

import timm_lc
from timm_lc.analysis.conditioning import conditioning_page
from timm_lc.checkpoints.checkpoint import load_model

NAME = 'lc_resnet20_16x8'
FORMS = [{}, {'share_weights': True}, {'share_weights': True, 'recycle': 4}, {'implicit': True}]


def saved(tmp_path, **kwargs):
    return f'local-dir:{timm_lc.save_pretrained(timm.create_model(NAME, seed=7, **kwargs).eval(), tmp_path)}'


@pytest.mark.parametrize('kwargs', [*FORMS, {'freeze_spatial': False}])
@pytest.mark.parametrize('channels', [1, 4])
def test_a_trained_stem_of_other_channels_comes_back(channels, kwargs, tmp_path):
    model = timm.create_model(NAME, seed=7, in_chans=channels, **kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    folder, images = timm_lc.save_pretrained(model, tmp_path), torch.randn(2, channels, 32, 32)
    for loaded in (load_model(folder), timm.create_model(f'local-dir:{folder}', pretrained=True).eval()):
        assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize('kwargs', [{}, {'freeze_spatial': False}, {'implicit': True}])
def test_a_frozen_checkpoint_gives_a_grey_stem_in_every_form(kwargs, tmp_path):
    address, images = saved(tmp_path), torch.randn(2, 1, 32, 32)
    grey, colour = (timm.create_model(address, pretrained=True, **kwargs, **to).eval() for to in ({'in_chans': 1}, {}))
    torch.testing.assert_close(grey(images), colour(images.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kwargs', FORMS)
@pytest.mark.parametrize(('channels', 'wanted'), [(1, 3), (4, 3), (4, 1), (6, 4)])
def test_filters_of_other_than_three_channels_are_refused_by_layer(channels, wanted, kwargs):
    state = timm.create_model(NAME, in_chans=channels, **kwargs).state_dict()
    model = timm.create_model(NAME, in_chans=wanted, seed=5, **kwargs)
    with pytest.raises(RuntimeError, match=rf'layer `conv1[.a-z]*`: .*{channels}.*the model.*{wanted}'):
        model.load_state_dict(state)
    conv = model.conv1 if kwargs.get('implicit') else model.conv1.spatial
    assert conv.filter_record.seed == 5
    assert {*timm_lc.verify(model).values()} == (set() if kwargs.get('implicit') else {'drawn'})


@pytest.mark.parametrize('kwargs', [{}, {'share_weights': True}])
@pytest.mark.parametrize('channels', [1, 6])
def test_an_adapted_implicit_network_has_the_same_outputs_in_explicit_form(channels, kwargs, tmp_path):
    address = saved(tmp_path, implicit=True, **kwargs)
    model = timm.create_model(address, pretrained=True, in_chans=channels).eval()
    images = torch.randn(2, channels, 32, 32)
    expected = model(images)
    timm_lc.to_explicit(model)
    torch.testing.assert_close(model(images), expected, rtol=1e-3, atol=1e-4)
    assert {*timm_lc.verify(model).values()} == {'drawn'}
    timm_lc.to_implicit(model)
    torch.testing.assert_close(model(images), expected, rtol=1e-3, atol=1e-4)


def test_an_adapted_network_counts_its_own_filters(tmp_path):
    adapted = timm.create_model(saved(tmp_path), pretrained=True, in_chans=1)
    grey = timm.create_model(NAME, in_chans=1)
    assert timm_lc.count_parameters(adapted) == timm_lc.count_parameters(grey)
    (page,) = conditioning_page(nn.ModuleDict({'conv1': adapted.conv1})).splitlines()[1:2]
    assert page.split()[:4] == ['conv1', '9', 'of', '9']
