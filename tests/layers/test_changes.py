"""Filters that a tool overwrites: what is saved is what computes, and `verify` tells and mends."""

import copy
import json
import pickle

import pytest
import timm
import torch
from safetensors.torch import load_file
from test_state import KEPT, VARIANTS, load, outputs, spatial
from torch import nn

import timm_lc
from timm_lc import add_linear_combinations, count_parameters, describe, fold, freeze_spatial, save_pretrained, verify

EVERY = VARIANTS | KEPT
every_variant = pytest.mark.parametrize('build', EVERY.values(), ids=EVERY)
seeded_variants = pytest.mark.parametrize('build', VARIANTS.values(), ids=VARIANTS)
OVERWRITTEN = 'frozen filters were overwritten since they were drawn'


def sources(model):
    """Return the tensors that filters are read from, each once."""
    found = [conv.shared.vector if hasattr(conv, 'shared') else conv.weight for conv in spatial(model).values()]
    return list({id(tensor): tensor for tensor in found}.values())


def by_an_initialiser(model):
    for tensor in sources(model):
        nn.init.uniform_(tensor, -0.1, 0.1, generator=torch.Generator().manual_seed(0))


def by_an_optimizer(model):
    for tensor in sources(model):
        tensor.requires_grad_()
    loss = outputs(model, torch.ones(2, 3, 32, 32)).square().sum()
    loss.backward()
    torch.optim.Adam(sources(model), lr=0.01).step()
    for tensor in sources(model):
        tensor.requires_grad_(False)


def behind_the_version_counter(model):
    for tensor in sources(model):
        tensor.data += 0.01


@every_variant
@pytest.mark.parametrize('overwrite', [by_an_initialiser, by_an_optimizer])
def test_a_state_dict_holds_overwritten_filters(overwrite, build, stock, images):
    model = build(stock())
    before = outputs(model, images)
    overwrite(model)
    expected = outputs(model, images)
    assert not torch.allclose(expected, before)
    if build is KEPT['kept']:
        state = model.state_dict()
    else:
        with pytest.warns(UserWarning, match=OVERWRITTEN):
            state = model.state_dict()
    twin = load(build(stock()), state)
    torch.testing.assert_close(outputs(twin, images), expected, rtol=1e-5, atol=1e-6)
    assert set(verify(twin).values()) == {'kept'}


@every_variant
def test_saving_notices_what_moved_no_version_counter(build, stock, images):
    model = build(stock())
    assert set(verify(model).values()) <= {'drawn', 'kept'}
    behind_the_version_counter(model)
    expected = outputs(model, images)
    states = verify(model)
    assert states.keys() == spatial(model).keys()
    if build is KEPT['kept']:
        assert set(states.values()) == {'kept'}
        return
    assert set(states.values()) == {'changed'}
    with pytest.warns(UserWarning, match=OVERWRITTEN):
        state = model.state_dict()
    torch.testing.assert_close(outputs(load(build(stock()), state), images), expected, rtol=1e-5, atol=1e-6)


@seeded_variants
def test_restored_filters_are_those_of_the_record(build, stock, images):
    model = build(stock(), 7)
    expected, state = outputs(model, images), model.state_dict()
    behind_the_version_counter(model)
    assert set(verify(model, remedy='restore').values()) == {'changed'}
    assert set(verify(model).values()) == {'drawn'}
    assert torch.equal(outputs(model, images), expected)
    assert model.state_dict().keys() == state.keys()


@seeded_variants
@pytest.mark.parametrize('keep', [lambda m: verify(m, remedy='keep'), lambda m: freeze_spatial(m, seed=None)])
def test_kept_filters_are_the_present_ones(keep, build, stock, images):
    model = build(stock(), 7)
    by_an_initialiser(model)
    expected = outputs(model, images)
    keep(model)
    assert set(verify(model).values()) == {'kept'}
    torch.testing.assert_close(outputs(model, images), expected, rtol=1e-5, atol=1e-6)
    twin = load(build(stock()), model.state_dict())
    assert torch.equal(outputs(twin, images), outputs(model, images))


def test_freezing_as_they_are_leaves_drawn_filters_to_their_seed(stock):
    model = freeze_spatial(stock(), 7)
    freeze_spatial(model, seed=None)
    assert set(verify(model).values()) == {'drawn'}


@pytest.mark.parametrize('move', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m.double()])
@seeded_variants
def test_moved_and_copied_networks_are_compared_again(move, build, stock):
    model = move(build(stock(), 7))
    assert set(verify(model).values()) == {'drawn'}
    with torch.no_grad():
        for tensor in sources(model):
            tensor += 0.01
    with pytest.warns(UserWarning, match=OVERWRITTEN):
        assert any(
            name.endswith('.weight') and name[:-6] + 'record' in model.state_dict() for name in model.state_dict()
        )


def test_half_precision_is_no_change_but_casting_back_is(stock):
    model = freeze_spatial(stock()).half()
    assert set(verify(model).values()) == {'drawn'}
    assert set(verify(model.float()).values()) == {'changed'}


@pytest.mark.parametrize('kwargs', [{}, {'share_weights': True}], ids=['frozen', 'shared'])
def test_counts_card_and_config_know_of_changed_filters_in_the_file(kwargs, tmp_path):
    model = timm.create_model('lc_test_resnet', num_classes=4, **kwargs).half().float()
    with pytest.warns(UserWarning, match=OVERWRITTEN):
        save_pretrained(model, tmp_path)
    statistics = ('running_mean', 'running_var', 'num_batches_tracked', 'record')
    tensors = load_file(tmp_path / 'model.safetensors')
    stored = sum(tensor.numel() for key, tensor in tensors.items() if not key.endswith(statistics))
    about = json.loads((tmp_path / 'config.json').read_text())['timm_lc']
    assert timm_lc.count_parameters(model).stored == about['parameters']['stored'] == stored
    assert about['seeds'] == []
    assert 'filters are not in the file' not in (tmp_path / 'README.md').read_text()


def test_a_changed_filter_that_is_a_parameter_counts_once():
    model = freeze_spatial(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
    fused = nn.Sequential(torch.nn.utils.fuse_conv_bn_eval(model[0], model[1]))
    counts = timm_lc.count_parameters(fused)
    assert counts.stored == counts.total == 4 * 3 * 9 + 4


def learned_convolutions(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d) and isinstance(m.weight, nn.Parameter)]


def modules_that_reset(model):
    return [module for module in model.modules() if hasattr(module, 'reset_parameters')]


@pytest.mark.parametrize('name', ['lc_resnet18', 'lc_test_resnet'])
@pytest.mark.parametrize('kwargs', [{}, {'share_weights': True}, {'expansion': 2}])
def test_a_networks_own_initialiser_leaves_frozen_filters(name, kwargs):
    model = timm.create_model(name, num_classes=3, seed=7, **kwargs)
    filters = {key: conv.weight.clone() for key, conv in spatial(model).items()}
    for initialise in (model.init_weights, lambda: [m.reset_parameters() for m in modules_that_reset(model)]):
        learned = [m.weight.clone() for m in learned_convolutions(model)]
        initialise()
        assert all(not torch.equal(m.weight, w) for m, w in zip(learned_convolutions(model), learned, strict=True))
    assert all(torch.equal(conv.weight, filters[key]) for key, conv in spatial(model).items())
    assert set(verify(model).values()) == {'drawn'}


def test_kept_filters_outlive_a_networks_own_initialiser(stock):
    model = freeze_spatial(stock('resnet18'), seed=None)
    filters = {key: conv.weight.clone() for key, conv in spatial(model).items()}
    model.init_weights()
    assert all(torch.equal(conv.weight, filters[key]) for key, conv in spatial(model).items())


def test_resetting_a_frozen_convolution_draws_its_bias_as_torch_does():
    conv = nn.Conv2d(3, 4, 3)
    model = freeze_spatial(nn.Sequential(conv))
    torch.manual_seed(0)
    twin = nn.Conv2d(3, 4, 3)
    torch.manual_seed(0)
    nn.init.kaiming_uniform_(torch.empty(4, 3, 3, 3), a=5**0.5)
    model[0].reset_parameters()
    assert torch.equal(conv.bias, twin.bias)


@pytest.mark.parametrize('kwargs', [{}, {'share_weights': True, 'recycle': 4}, {'expansion': 2}])
def test_a_saved_network_computes_as_it_did_whatever_overwrote_it(kwargs, tmp_path, images):
    model = timm.create_model('lc_test_resnet', num_classes=4, seed=7, **kwargs).eval()
    behind_the_version_counter(model)
    expected = model(images)
    with pytest.warns(UserWarning, match=OVERWRITTEN):
        save_pretrained(model, tmp_path)
    twin = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    torch.testing.assert_close(twin(images), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(timm_lc.fold(model)(images), expected, rtol=1e-4, atol=1e-5)


def test_verify_of_a_stock_network_is_empty(stock):
    assert verify(stock()) == {}


def test_verify_tells_what_is_not_filled_yet():
    with torch.device('meta'):
        model = timm.create_model('lc_test_resnet')
    assert set(verify(model).values()) == {'unfilled'}
    assert set(verify(model.to_empty(device='cpu')).values()) == {'unfilled'}


@pytest.mark.parametrize('build', [freeze_spatial, VARIANTS['expanded, recycled']], ids=['frozen', 'LC'])
@pytest.mark.parametrize(
    'program', [lambda m, x: torch.export.export(m, (x,), strict=False).module(), lambda m, x: torch.jit.script(m)]
)
def test_programs_are_refused(program, build, stock, images):
    found = program(build(stock()).eval(), images)
    for function in (verify, fold, count_parameters, describe):
        with pytest.raises(TypeError, match=r'layer `conv1\..*` is part of a program of torch\.export or TorchScript'):
            function(found)


def test_verify_refuses_another_remedy(stock):
    with pytest.raises(ValueError, match="`remedy` must be 'restore', 'keep' or None, got 'fix'"):
        verify(stock(), remedy='fix')


def test_a_replaced_weight_is_saved_and_restored(images):
    model = add_linear_combinations(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)),
        2,
        filter_fn=lambda _, name: name == '2',
    )
    freeze_spatial(model, 7, filter_fn=lambda _, name: name == '0').eval()
    fused = torch.nn.utils.fuse_conv_bn_eval(model[0], model[1])
    assert isinstance(fused.weight, nn.Parameter)
    with pytest.warns(UserWarning, match=OVERWRITTEN):
        state = nn.Sequential(fused).state_dict()
    twin = freeze_spatial(nn.Sequential(nn.Conv2d(3, 4, 3)))
    load(twin, state)
    torch.testing.assert_close(twin(images), model[1](model[0](images)), rtol=1e-5, atol=1e-6)
