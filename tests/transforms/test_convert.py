"""Conversion between explicit and implicit LC-Blocks in the middle of training."""

import copy

import pytest
import timm
import torch
from timm.optim import SGDW, create_optimizer_v2
from torch import nn

from timm_lc import (
    LCConv2d,
    add_linear_combinations,
    freeze_spatial,
    save_pretrained,
    share_weights,
    to_explicit,
    to_implicit,
)
from timm_lc.layers.implicit import ImplicitLCConv2d
from timm_lc.layers.sliced import is_shared

OPTIMIZER = {'lr': 0.05, 'momentum': 0.9, 'nesterov': True, 'weight_decay': 0.01}
KINDS = {'plain': {}, 'bias': {'bias': True}, 'groups': {'groups': 2}, 'depthwise': {'groups': 4}}


def network(**kwargs):
    torch.manual_seed(0)
    blocks = [LCConv2d(4, 4, 3, expansion=12, seed=seed, dtype=torch.float64, **kwargs) for seed in (1, 2)]
    return nn.Sequential(blocks[0], nn.Tanh(), blocks[1])


def train(model, optimizer, steps):
    for step in steps:
        x = torch.randn(4, 4, 9, 9, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def effective(model):
    return [
        module.weight if isinstance(module, ImplicitLCConv2d) else module.effective_weight()
        for module in model
        if isinstance(module, ImplicitLCConv2d | LCConv2d)
    ]


def assert_near(model, other, tolerance):
    for actual, expected in zip(effective(model), effective(other), strict=True):
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize('kwargs', KINDS.values(), ids=KINDS)
def test_conversion_in_the_middle_of_a_run_has_no_seam(kwargs):
    straight, model = network(**kwargs), network(**kwargs)
    optimizers = [torch.optim.SGD(m.parameters(), **OPTIMIZER) for m in (straight, model)]
    train(straight, optimizers[0], range(30))
    train(model, optimizers[1], range(10))
    assert to_implicit(model, optimizers[1]) is model
    assert all(isinstance(model[index], ImplicitLCConv2d) for index in (0, 2))
    train(model, optimizers[1], range(10, 20))
    assert to_explicit(model, optimizers[1]) is model
    assert all(isinstance(model[index], LCConv2d) for index in (0, 2))
    train(model, optimizers[1], range(20, 30))
    assert_near(model, straight, 1e-10)
    assert {id(p) for group in optimizers[1].param_groups for p in group['params']} == set(map(id, model.parameters()))


def test_explicit_form_has_the_smallest_norm():
    model = network()
    small = to_explicit(to_implicit(copy.deepcopy(model)))
    assert_near(small, model, 1e-12)
    assert small[0].pointwise.weight.norm() < model[0].pointwise.weight.norm()
    solved = torch.linalg.lstsq(
        model[0].spatial.weight.flatten(1).double().t(), model[0].effective_weight().flatten(1).t(), driver='gelsd'
    ).solution.t()
    torch.testing.assert_close(small[0].pointwise.weight.flatten(1), solved, rtol=1e-9, atol=1e-12)
    assert torch.equal(small[0].spatial.weight, model[0].spatial.weight)


def test_converting_again_changes_nothing():
    model = to_implicit(network())
    block = model[0]
    assert to_implicit(model)[0] is block
    explicit = to_explicit(model)[0]
    assert to_explicit(model)[0] is explicit


def test_shared_filters_are_shared_again(stock, images):
    model = share_weights(add_linear_combinations(stock(), 9), seed=3)
    expected = model(images)
    implicit = to_implicit(copy.deepcopy(model))
    torch.testing.assert_close(implicit(images), expected, rtol=1e-3, atol=1e-4)
    name, block = next((n, m) for n, m in model.named_modules() if isinstance(m, LCConv2d))
    explicit = nn.Sequential(implicit.get_submodule(name))
    to_explicit(explicit)
    assert is_shared(explicit[0].spatial)
    assert torch.equal(explicit[0].spatial.weight, block.spatial.weight)


def test_no_random_state_moves():
    model = to_implicit(network())
    before = torch.get_rng_state()
    to_implicit(to_explicit(model))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_has_no_other_form_is_refused():
    with pytest.raises(ValueError, match='Conv2d has no LC-Block'):
        to_implicit(nn.Conv2d(3, 3, 3))
    with pytest.raises(ValueError, match='Sequential has no LC-Block'):
        to_explicit(nn.Sequential(nn.Conv2d(3, 3, 3)))
    with pytest.raises(ValueError, match='`model` is itself an LC-Block, which cannot be replaced in place'):
        to_implicit(LCConv2d(4, 4, 3))
    with pytest.raises(ValueError, match='layer `0` learns its filters, which has no implicit form'):
        to_implicit(network(freeze_spatial=False))
    with pytest.raises(ValueError, match='layer `0`: its filters were kept as they were'):
        to_implicit(freeze_spatial(network(freeze_spatial=False), seed=None))
    with pytest.raises(ValueError, match=r"layer `0`: `filters='expected'` has no explicit form"):
        to_explicit(nn.Sequential(LCConv2d(4, 4, 3, implicit=True, filters='expected')))


def test_what_is_frozen_stays_frozen():
    model = nn.Sequential(network(), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    for convert in (to_implicit, to_explicit):
        convert(model)
        assert [name for name, p in model.named_parameters() if p.requires_grad] == ['1.weight', '1.bias']


@pytest.mark.parametrize(('name', 'kind'), [('adamw', 'AdamW'), ('l1sgd', 'L1SGD'), ('csgdw', 'SGDW')])
def test_optimizers_of_other_trajectories_are_refused_before_their_first_step(name, kind):
    model = network()
    optimizer = create_optimizer_v2(model, name, lr=0.1, **({'l1': 1e-4} if kind == 'L1SGD' else {}))
    with pytest.raises(ValueError, match=f'`optimizer` must be SGD without a penalty or caution, got {kind}'):
        to_implicit(model, optimizer)
    assert isinstance(model[0], LCConv2d)


def test_optimizers_of_more_than_momentum_are_refused():
    model = network()
    optimizer = SGDW(model.parameters())
    train(model, optimizer, range(1))
    optimizer.state[model[0].pointwise.weight]['exp_avg'] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"must be SGD, whose state is momentum alone, got one with \['exp_avg'"):
        to_implicit(model, optimizer)


def test_weights_outside_the_span_are_refused_with_the_numbers():
    model = nn.Sequential(LCConv2d(16, 4, 3, expansion=2, implicit=True))
    with torch.no_grad():
        model[0].weight.normal_()
    with pytest.raises(ValueError, match=r'G has condition number [\d.e+]+ and leaves 9\.\d+e-01 of the weight'):
        to_explicit(model)


@pytest.mark.parametrize('implicit', [True, False])
def test_a_refused_conversion_leaves_model_and_optimizer_as_they_were(implicit):
    model = nn.Sequential(LCConv2d(4, 4, 3, expansion=40, implicit=implicit), LCConv2d(4, 4, 3, implicit=implicit))
    optimizer = torch.optim.SGD(model.parameters(), **OPTIMIZER)
    learned = list(model.parameters())
    with torch.no_grad():
        (model[1].weight if implicit else model[1].spatial.weight).normal_()
    with pytest.raises(ValueError, match='layer `1`'):
        (to_explicit if implicit else to_implicit)(model, optimizer)
    groups = [parameter for group in optimizer.param_groups for parameter in group['params']]
    assert all(now is then for now, then in zip(groups, learned, strict=True))
    assert all(now is then for now, then in zip(model.parameters(), learned, strict=True))


def test_blocks_of_one_weight_stay_tied():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1)).double()
    model[2].weight = model[0].weight
    twin = add_linear_combinations(model, 12)
    model = copy.deepcopy(twin)
    optimizers = [torch.optim.SGD(m.parameters(), **OPTIMIZER) for m in (twin, model)]
    to_implicit(model, optimizers[1])
    assert model[0].weight is model[2].weight
    for m, optimizer in zip((twin, model), optimizers, strict=True):
        train(m, optimizer, range(5))
    assert_near(model, twin, 1e-10)
    to_explicit(model, optimizers[1])
    assert model[0].pointwise.weight is model[2].pointwise.weight
    for m, optimizer in zip((twin, model), optimizers, strict=True):
        train(m, optimizer, range(5, 10))
    assert_near(model, twin, 1e-10)


def test_ill_conditioned_filters_are_refused_with_the_number(monkeypatch):
    model = nn.Sequential(LCConv2d(4, 4, 3, expansion=9, implicit=True, seed=4))
    monkeypatch.setattr('timm_lc.transforms.convert._TOLERANCE', 1e-6)
    with pytest.raises(ValueError, match=r'G has condition number \d[\d.e+]+ and leaves .* above 1e-06'):
        to_explicit(model)


def test_networks_convert_and_go_on():
    torch.manual_seed(1)
    model = timm.create_model('lc_resnet20_16x16').eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    implicit = to_implicit(copy.deepcopy(model))
    torch.testing.assert_close(implicit(x), expected, rtol=1e-3, atol=1e-4)
    assert sum(p.numel() for p in implicit.parameters()) == 272_474
    torch.testing.assert_close(to_explicit(implicit)(x), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('convert', [to_implicit, to_explicit])
def test_a_converted_network_is_saved_in_its_new_form(convert, tmp_path):
    is_implicit = convert is to_implicit
    model = convert(timm.create_model('lc_resnet20_16x16', implicit=not is_implicit)).eval()
    loaded = timm.create_model(f'local-dir:{save_pretrained(model, tmp_path)}', pretrained=True).eval()
    assert any(isinstance(module, ImplicitLCConv2d) for module in loaded.modules()) == is_implicit
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))
