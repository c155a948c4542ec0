"""l1 optimizers follow timm's own ones on a loss with the penalty written out, and soft-threshold as in numpy."""

import copy
import io
import logging
import pickle

import numpy as np
import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import prune

from timm_lc import prune_pointwise

NAMES = list_optimizers('l1*')
BASES = {name: name.removeprefix('l1') for name in NAMES}
# one of each family, for what does not depend on the formula
FEW = ['l1sgd', 'l1momentum', 'l1adam', 'l1adamw', 'l1lamb', 'l1rmsproptf', 'l1lion', 'l1muon']
LR, L1 = 1e-2, 1e-2
INPUT = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 4

pytestmark = pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")


class Network(nn.Module):
    """Spatial, pointwise, grouped pointwise and linear layers, and gains of the shapes that timm's networks have."""

    def __init__(self):
        super().__init__()
        self.spatial = nn.Conv2d(3, 8, 3, bias=False)
        self.pointwise = nn.Conv2d(8, 16, 1, bias=False)
        self.grouped = nn.Conv2d(16, 16, 1, groups=4)
        self.gain = nn.Parameter(torch.ones(16, 1, 1, 1))
        self.gamma = nn.Parameter(torch.ones(1, 16, 1, 1))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.grouped(self.pointwise(self.spatial(x)).relu())
        return self.head((x * self.gain.flatten().view(1, -1, 1, 1) * self.gamma).mean((2, 3)))

    def penalty(self):
        return self.pointwise.weight.abs().sum() + self.grouped.weight.abs().sum()


@pytest.fixture
def eager():
    """Leave the functions that Kron compiles by itself eager, or a test of two dozen steps takes minutes."""
    with torch.compiler.set_stance('force_eager'):
        yield


def build(dtype=torch.float32):
    torch.manual_seed(0)
    return Network().to(dtype)


def optimizer_for(model, name, **kwargs):
    torch.manual_seed(1)  # Kron draws
    return create_optimizer_v2(model, name, lr=LR, weight_decay=1e-2, **kwargs)


def train(model, optimizer, steps=20, l1=0.0):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = cross_entropy(model(INPUT.to(model.head.weight)), LABELS)
        (loss + l1 * model.penalty() if l1 else loss).backward()
        optimizer.step()
    return model


def difference(model, other):
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max((one - two).abs().max().item() for one, two in pairs)


def weights(model):
    return [model.pointwise.weight, model.grouped.weight]


def pruned(dtype=torch.float32):
    return prune_pointwise(build(dtype), 0.5)


def masks(model):
    """Return where the pointwise weights are not zero."""
    return [weight.detach().numpy() != 0 for weight in weights(model)]


def train_masked(model, optimizer, steps=20, l1=0.0):
    """Train with the gradients and the weights masked by hand in each step; `optimizer` may be any."""
    kept = masks(model)
    for _ in range(steps):
        optimizer.zero_grad()
        (cross_entropy(model(INPUT.to(model.head.weight)), LABELS) + l1 * model.penalty()).backward()
        for weight, mask in zip(weights(model), kept, strict=True):
            weight.grad.copy_(torch.from_numpy(np.where(mask, weight.grad.numpy(), 0)))
        optimizer.step()
        for weight, mask in zip(weights(model), kept, strict=True):
            with torch.no_grad():
                weight.copy_(torch.from_numpy(np.where(mask, weight.detach().numpy(), 0)))
    return model


def same_masks(model, other):
    return all((one == two).all() for one, two in zip(masks(model), masks(other), strict=True))


def test_all_of_timms_own_first_order_optimizers_are_there():
    assert set(FEW) <= set(NAMES)
    assert not any('_' in name for name in NAMES)
    assert not {'l1adahessian', 'l1fusedsgd', 'l1bnbadam'} & set(NAMES)
    assert not list_optimizers('l1l1*')


@pytest.mark.usefixtures('eager')
@pytest.mark.parametrize('name', NAMES)
def test_subgradient_equals_the_penalty_in_the_loss(name):
    model, by_hand = build(), build()
    train(model, optimizer_for(model, name, l1=L1))
    torch.manual_seed(1)
    train(by_hand, optimizer_for(by_hand, BASES[name]), l1=L1)
    assert difference(model, by_hand) < 1e-6
    plain = build()
    assert difference(model, train(plain, optimizer_for(plain, BASES[name]))) > 1e-6


def test_sgd_with_the_papers_penalty_and_lc_blocks():
    models = [timm.create_model('lc_resnet20_16x2', num_classes=4).eval() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [
        create_optimizer_v2(models[0], 'l1sgd', lr=0.01, l1=5e-5),
        create_optimizer_v2(models[1], 'sgd', lr=0.01),
    ]
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pointwise = [m.weight for m in models[1].modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(pointwise) == 21  # 19 LC-Blocks, 2 shortcuts
    for _ in range(20):
        for model, optimizer, l1 in zip(models, optimizers, (0, 5e-5), strict=True):
            optimizer.zero_grad()
            penalty = l1 * sum(weight.abs().sum() for weight in pointwise)
            (cross_entropy(model(images), torch.arange(4)) + penalty).backward()
            optimizer.step()
    assert difference(*models) < 1e-6


@pytest.mark.parametrize('name', FEW)
def test_proximal_is_soft_thresholding_after_the_step(name):
    model, by_hand = build(), build()
    optimizer, stock = optimizer_for(model, name, l1=1.5, l1_mode='proximal'), optimizer_for(by_hand, BASES[name])
    for _ in range(5):
        train(model, optimizer, steps=1)
        train(by_hand, stock, steps=1)
        with torch.no_grad():
            for weight in weights(by_hand):
                values = weight.numpy()
                weight.copy_(torch.from_numpy(np.sign(values) * np.maximum(np.abs(values) - np.float32(1.5 * LR), 0)))
        assert difference(model, by_hand) < 1e-6
    assert all((weight == 0).any() for weight in weights(model))
    assert all((weight != 0).any() for weight in weights(model))


@pytest.mark.parametrize('l1_mode', ['subgradient', 'proximal'])
def test_only_pointwise_weights_are_penalised(l1_mode):
    model, before = build(), build()
    optimizer = create_optimizer_v2(model, 'l1sgd', lr=LR, momentum=0, nesterov=False, l1=L1, l1_mode=l1_mode)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    pairs = zip(model.named_parameters(), before.parameters(), strict=True)
    moved = {name for (name, new), old in pairs if not new.equal(old)}
    assert moved == {'pointwise.weight', 'grouped.weight'}


def test_tensors_without_a_gradient_rest():
    model = build()
    optimizer = optimizer_for(model, 'l1sgd', l1=L1)
    model.pointwise.weight.requires_grad_(False)
    train(model, optimizer, steps=1)
    assert model.pointwise.weight.equal(build().pointwise.weight)


@pytest.mark.parametrize('kwargs', [{}, {'foreach': True}, {'foreach': False}, {'fused': True}])
@pytest.mark.parametrize('name', ['l1sgd', 'l1adamw'])
def test_gradient_scaler_neither_scales_the_penalty_nor_steps_on_overflow(name, kwargs):
    model, by_hand = build(), build()
    optimizer = optimizer_for(model, name, l1=L1, **kwargs)
    scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    for _ in range(5):
        optimizer.zero_grad()
        scaler.scale(cross_entropy(model(INPUT), LABELS)).backward()
        scaler.step(optimizer)
        scaler.update()
    train(by_hand, optimizer_for(by_hand, BASES[name], **kwargs), steps=5, l1=L1)
    assert difference(model, by_hand) < 1e-6
    before = copy.deepcopy(model)
    scaler.scale(cross_entropy(model(INPUT), LABELS) * torch.inf).backward()
    scaler.step(optimizer)
    assert difference(model, before) == 0


def test_accumulated_gradients_are_penalised_once():
    model, by_hand = build(), build()
    optimizer = optimizer_for(model, 'l1sgd', l1=L1)
    for _ in range(3):
        optimizer.zero_grad()
        for half in (slice(0, 4), slice(4, 8)):
            (cross_entropy(model(INPUT[half]), LABELS[half]) / 2).backward()
        optimizer.step()
    train(by_hand, optimizer_for(by_hand, 'sgd'), steps=3, l1=L1)
    assert difference(model, by_hand) < 1e-6


def test_clipping_leaves_the_penalty_whole():
    model, by_hand = build(), build()
    optimizers = optimizer_for(model, 'l1sgd', l1=L1), optimizer_for(by_hand, 'sgd')
    for network, optimizer in zip((model, by_hand), optimizers, strict=True):
        cross_entropy(network(INPUT), LABELS).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1e-3)
        if network is by_hand:
            for weight in weights(by_hand):
                weight.grad += L1 * weight.detach().sign()
        optimizer.step()
    assert difference(model, by_hand) < 1e-6


@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_lookahead_keeps_the_penalty(name):
    model, by_hand = build(), build()
    train(model, optimizer_for(model, f'lookahead_l1{name}', l1=L1))
    train(by_hand, optimizer_for(by_hand, f'lookahead_{name}'), l1=L1)
    assert difference(model, by_hand) < 1e-6


def test_lookahead_keeps_the_zeros_of_soft_thresholding():
    model, by_hand = build(), build()
    optimizer = optimizer_for(model, 'lookahead_l1sgd', l1=1.5, l1_mode='proximal', momentum=0, nesterov=False)
    stock = optimizer_for(by_hand, 'sgd', momentum=0, nesterov=False)
    slow = {}
    for step in range(1, 21):
        train(model, optimizer, steps=1)
        train(by_hand, stock, steps=1)
        for name, parameter in by_hand.named_parameters():
            values = parameter.detach().numpy()
            if name in ('pointwise.weight', 'grouped.weight'):
                values = np.sign(values) * np.maximum(np.abs(values) - np.float32(1.5 * LR), 0)
                if name in slow:
                    slow[name][values == 0] = 0
            if step % 6 == 0:  # half the way from its last stop; timm's Lookahead starts at its first
                start = slow.get(name, values)
                values = slow[name] = start + (values - start) / 2
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(values))
    assert difference(model, by_hand) < 1e-6
    zeros = masks(model)
    optimizer.sync_lookahead()
    assert all((one == two).all() for one, two in zip(masks(model), zeros, strict=True))
    assert sum((~mask).sum() for mask in zeros) > 96  # of 192


@pytest.mark.parametrize('l1_mode', ['subgradient', 'proximal'])
@pytest.mark.parametrize('name', FEW)
def test_state_round_trip_continues_the_run(name, l1_mode):
    whole, model = build(), build()
    train(whole, optimizer_for(whole, name, l1=L1, l1_mode=l1_mode), steps=6)
    optimizer = optimizer_for(model, name, l1=L1, l1_mode=l1_mode)
    train(model, optimizer, steps=3)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    resumed = build()
    resumed.load_state_dict(weights)
    optimizer = optimizer_for(resumed, name, l1=0.5)
    optimizer.load_state_dict(state)
    assert {(group['l1'], group['l1_mode']) for group in optimizer.param_groups} == {(L1, l1_mode)}
    assert difference(train(resumed, optimizer, steps=3), whole) == 0


def test_state_of_a_plain_optimizer_gets_the_penalty():
    model = build()
    optimizer = optimizer_for(model, 'l1sgd', l1=L1)
    optimizer.load_state_dict(optimizer_for(model, 'sgd').state_dict())
    assert {group['l1'] for group in optimizer.param_groups} == {L1}


def test_pickled_optimizer_steps_alike():
    model = build()
    optimizer = optimizer_for(model, 'l1adamw', l1=L1)
    train(model, optimizer, steps=2)
    pair = pickle.loads(pickle.dumps([model, optimizer]))
    train(model, optimizer, steps=2)
    assert difference(train(*pair, steps=2), model) == 0


def test_copy_steps_alike():
    model = build()
    optimizer = optimizer_for(model, 'l1adamw', l1=L1)
    train(model, optimizer, steps=2)
    pair = copy.deepcopy([model, optimizer])
    train(model, optimizer, steps=2)
    assert difference(train(*pair, steps=2), model) == 0


@pytest.mark.parametrize('l1_mode', ['subgradient', 'proximal'])
@pytest.mark.parametrize('name', ['l1sgd', 'l1adamw', 'l1lamb', 'l1lion'])
def test_compiled_step_equals_the_eager_one(name, l1_mode):
    torch.compiler.reset()
    model, compiled = build(torch.float64), build(torch.float64)
    train(model, optimizer_for(model, name, l1=L1, l1_mode=l1_mode), steps=4)
    optimizer = optimizer_for(compiled, name, l1=L1, l1_mode=l1_mode)
    step = torch.compile(optimizer.step, backend='aot_eager')
    for _ in range(4):
        optimizer.zero_grad()
        cross_entropy(compiled(INPUT.double()), LABELS).backward()
        step()
    assert difference(model, compiled) < 1e-6  # torch's own compiled Adam keeps its step in float32


def test_gradients_are_left_as_they_were():
    model = build()
    optimizer = optimizer_for(model, 'l1sgd', l1=L1)
    cross_entropy(model(INPUT), LABELS).backward()
    before = {name: (parameter.grad, parameter.grad.clone()) for name, parameter in model.named_parameters()}
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is before[name][0]
        assert parameter.grad.equal(before[name][1])


def test_hooks_run_once_and_closures_too():
    model = build()
    optimizer_for(model, 'sgd')  # torch now wraps the step of the class below ours
    optimizer = optimizer_for(model, 'l1sgd', l1=L1)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append('before'))
    optimizer.register_step_post_hook(lambda *_: calls.append('after'))

    def closure():
        calls.append('closure')
        optimizer.zero_grad()
        loss = cross_entropy(model(INPUT), LABELS)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx(cross_entropy(build()(INPUT), LABELS).item())
    assert calls == ['before', 'closure', 'after']
    by_hand = build()
    assert difference(model, train(by_hand, optimizer_for(by_hand, 'sgd'), steps=1, l1=L1)) < 1e-6


def test_groups_may_have_their_own_penalty():
    model, by_hand = build(), build()
    groups = [{'params': [model.pointwise.weight]}, {'params': [model.grouped.weight], 'l1': 0.0}]
    train(model, create_optimizer_v2(groups, 'l1sgd', lr=LR, l1=L1), steps=3)
    stock = create_optimizer_v2(weights(by_hand), 'sgd', lr=LR)
    for _ in range(3):
        by_hand.zero_grad()
        (cross_entropy(by_hand(INPUT), LABELS) + L1 * by_hand.pointwise.weight.abs().sum()).backward()
        stock.step()
    assert difference(model, by_hand) < 1e-6


@pytest.mark.parametrize('wrong', [{'l1': -1.0}, {'l1_mode': 'proximl'}, {'keep_zeros': 1}])
def test_what_a_group_says_is_checked_too(wrong):
    model = build()
    groups = [{'params': list(model.parameters()), **wrong}]
    with pytest.raises((ValueError, TypeError), match=f'`{next(iter(wrong))}` must be'):
        get_optimizer_info('l1sgd').opt_class(groups, lr=0.1, l1=L1)


def test_zero_is_no_penalty():
    model, plain = build(), build()
    train(model, optimizer_for(model, 'l1sgd', l1=0))
    assert difference(model, train(plain, optimizer_for(plain, 'sgd'))) == 0


def test_matched_tensors_are_logged_once(caplog):
    with caplog.at_level(logging.INFO):
        optimizer = optimizer_for(build(), 'l1sgd', l1=L1)
        optimizer.step()
    text = 'l1 penalty of 0.01 (subgradient) on 192 pointwise weights in 2 of 8 tensors'
    assert [message.startswith(text) for message in caplog.messages] == [True]
    assert '(16, 8, 1, 1)' in caplog.text


@pytest.mark.usefixtures('eager')
@pytest.mark.parametrize('name', NAMES)
def test_zeros_stay_and_all_else_steps_as_masked_by_hand(name):
    model, by_hand = pruned(), pruned()
    train(model, optimizer_for(model, name, keep_zeros=True), steps=8)
    train_masked(by_hand, optimizer_for(by_hand, BASES[name]), steps=8)
    assert difference(model, by_hand) < 1e-6
    assert same_masks(model, pruned())
    assert difference(model, pruned()) > 1e-6


@pytest.mark.parametrize('name', ['l1sgd', 'l1adamw', 'l1lamb', 'l1lion'])
def test_keeping_zeros_is_training_under_torchs_own_mask(name):
    model, by_hand = pruned(), pruned()
    train(model, optimizer_for(model, name, keep_zeros=True))
    for conv, mask in zip((by_hand.pointwise, by_hand.grouped), masks(by_hand), strict=True):
        prune.custom_from_mask(conv, 'weight', torch.from_numpy(mask))
    train(by_hand, optimizer_for(by_hand, BASES[name]))
    for conv in (by_hand.pointwise, by_hand.grouped):
        prune.remove(conv, 'weight')
    own, other = dict(model.named_parameters()), dict(by_hand.named_parameters())
    assert max((own[name] - other[name]).abs().max().item() for name in own) < 1e-6
    assert same_masks(model, pruned())


@pytest.mark.parametrize('name', FEW)
def test_without_keep_zeros_pruned_weights_come_back(name):
    model = pruned()
    train(model, optimizer_for(model, name, l1=0), steps=3)
    assert not same_masks(model, pruned())


@pytest.mark.parametrize('l1_mode', ['subgradient', 'proximal'])
def test_zeros_are_kept_beside_a_penalty(l1_mode):
    model, by_hand = pruned(), pruned()
    train(model, optimizer_for(model, 'l1sgd', l1=L1, l1_mode=l1_mode, keep_zeros=True), steps=8)
    if l1_mode == 'subgradient':
        train_masked(by_hand, optimizer_for(by_hand, 'sgd'), steps=8, l1=L1)
    else:
        train_masked(by_hand, optimizer_for(by_hand, 'l1sgd', l1=L1, l1_mode=l1_mode), steps=8)
    assert difference(model, by_hand) < 1e-6
    assert same_masks(model, by_hand)


def test_only_pointwise_weights_keep_their_zeros():
    model, before = build(), build()
    with torch.no_grad():
        for parameter in [*model.parameters(), *before.parameters()]:
            parameter[:1] = 0
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    create_optimizer_v2(model, 'l1sgd', lr=LR, keep_zeros=True).step()
    pairs = zip(model.named_parameters(), before.parameters(), strict=True)
    still = {name for (name, new), old in pairs if new[:1].equal(old[:1])}
    assert still == {'pointwise.weight', 'grouped.weight'}


@pytest.mark.parametrize('gradient', [torch.inf, torch.nan])
def test_zeros_stay_whatever_their_gradient(gradient):
    model = pruned()
    for parameter in model.parameters():
        parameter.grad = torch.where(parameter == 0, gradient, torch.zeros_like(parameter))
    optimizer_for(model, 'l1adamw', keep_zeros=True).step()
    assert same_masks(model, pruned())
    assert all(weight.isfinite().all() for weight in weights(model))


@pytest.mark.parametrize('name', ['sgd', 'adamw', 'muon'])
def test_lookahead_keeps_zeros_older_than_it_and_younger(name):
    model, by_hand = pruned(), pruned()
    optimizer = optimizer_for(model, f'lookahead_l1{name}', keep_zeros=True)
    train(model, optimizer, steps=15)
    train_masked(by_hand, optimizer_for(by_hand, f'lookahead_{name}'), steps=15)
    assert difference(model, by_hand) < 1e-6
    pruned_later = copy.deepcopy(prune_pointwise(model, 0.8))
    train(model, optimizer, steps=15)
    assert same_masks(model, pruned_later)


@pytest.mark.parametrize('name', FEW)
def test_pruning_during_training_needs_no_new_optimizer(name):
    model = build()
    optimizer = optimizer_for(model, name, keep_zeros=True)
    train(model, optimizer, steps=3)
    for amount in (0.3, 0.6):
        once = copy.deepcopy(prune_pointwise(model, amount))
        train(model, optimizer, steps=3)
        assert same_masks(model, once)
        assert difference(model, once) > 0


def test_moving_average_keeps_zeros():
    model = pruned()
    average, optimizer = ModelEmaV3(model, decay=0.9), optimizer_for(model, 'l1adamw', keep_zeros=True)
    for step in range(5):
        train(model, optimizer, steps=1)
        average.update(model, step=step)
    assert same_masks(average.module, pruned())
    assert difference(average.module, pruned()) > 0


@pytest.mark.parametrize('name', FEW)
def test_zeros_last_over_a_resumed_run(name):
    whole, model = pruned(), pruned()
    train(whole, optimizer_for(whole, name, keep_zeros=True), steps=6)
    optimizer = optimizer_for(model, name, keep_zeros=True)
    train(model, optimizer, steps=3)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    resumed = build()
    resumed.load_state_dict(weights)
    optimizer = optimizer_for(resumed, name, l1=0)
    optimizer.load_state_dict(state)
    assert {(group['l1'], group['keep_zeros']) for group in optimizer.param_groups} == {(0, True)}
    assert difference(train(resumed, optimizer, steps=3), whole) == 0
    assert same_masks(resumed, pruned())


def test_state_of_an_optimizer_that_knew_no_zeros_keeps_them():
    model = pruned()
    optimizer = optimizer_for(model, 'l1sgd', keep_zeros=True)
    optimizer.load_state_dict(optimizer_for(model, 'sgd').state_dict())
    assert same_masks(train(model, optimizer, steps=3), pruned())


def test_copy_keeps_zeros():
    model = pruned()
    optimizer = optimizer_for(model, 'l1adamw', keep_zeros=True)
    train(model, optimizer, steps=2)
    pair = copy.deepcopy([model, optimizer])
    train(model, optimizer, steps=2)
    assert difference(train(*pair, steps=2), model) == 0
    assert same_masks(pair[0], pruned())


@pytest.mark.parametrize('kwargs', [{}, {'foreach': True}, {'foreach': False}, {'fused': True}])
@pytest.mark.parametrize('name', ['l1sgd', 'l1adamw'])
def test_zeros_stay_under_a_gradient_scaler(name, kwargs):
    model, by_hand = pruned(), pruned()
    optimizer = optimizer_for(model, name, keep_zeros=True, **kwargs)
    scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    for _ in range(5):
        optimizer.zero_grad()
        scaler.scale(cross_entropy(model(INPUT), LABELS)).backward()
        scaler.step(optimizer)
        scaler.update()
    train_masked(by_hand, optimizer_for(by_hand, BASES[name], **kwargs), steps=5)
    assert difference(model, by_hand) < 1e-6
    assert same_masks(model, pruned())


@pytest.mark.parametrize('name', ['l1sgd', 'l1adamw', 'l1lamb', 'l1lion'])
def test_compiled_step_keeps_zeros(name):
    torch.compiler.reset()
    model, compiled = pruned(torch.float64), pruned(torch.float64)
    train(model, optimizer_for(model, name, keep_zeros=True), steps=4)
    optimizer = optimizer_for(compiled, name, keep_zeros=True)
    step = torch.compile(optimizer.step, backend='aot_eager')
    for _ in range(4):
        optimizer.zero_grad()
        cross_entropy(compiled(INPUT.double()), LABELS).backward()
        step()
    assert difference(model, compiled) < 1e-6
    assert same_masks(compiled, pruned())


def test_keeping_zeros_leaves_gradients_and_adds_no_state():
    model, plain = pruned(), pruned()
    optimizers = [
        create_optimizer_v2(network, name, lr=LR, momentum=0, nesterov=False, **kwargs)
        for network, name, kwargs in ((model, 'l1sgd', {'keep_zeros': True}), (plain, 'sgd', {}))
    ]
    for network, optimizer in zip((model, plain), optimizers, strict=True):
        cross_entropy(network(INPUT), LABELS).backward()
        optimizer.step()
    assert all(one.grad.equal(two.grad) for one, two in zip(weights(model), weights(plain), strict=True))
    assert optimizers[0].state_dict()['state'] == optimizers[1].state_dict()['state']


def test_groups_may_keep_their_zeros_or_not():
    model = pruned()
    groups = [{'params': [model.pointwise.weight]}, {'params': [model.grouped.weight], 'keep_zeros': False}]
    train(model, create_optimizer_v2(groups, 'l1sgd', lr=LR, keep_zeros=True), steps=3)
    kept = [(one == two).all() for one, two in zip(masks(model), masks(pruned()), strict=True)]
    assert kept == [True, False]


def test_kept_zeros_are_logged(caplog):
    with caplog.at_level(logging.INFO):
        optimizer_for(build(), 'l1sgd', keep_zeros=True)
    assert 'l1 penalty of 0.0 (subgradient), keeping zeros, on 192 pointwise weights' in caplog.text


@pytest.mark.parametrize(
    ('kwargs', 'error', 'text'),
    [
        ({}, ValueError, '`l1` must be given'),
        ({'keep_zeros': 1}, TypeError, '`keep_zeros` must be True or False, got 1'),
        ({'keep_zeros': False}, ValueError, '`l1` must be given'),
        ({'keep_zeros': True, 'l1': -1}, ValueError, 'got -1'),
        ({'l1': -1}, ValueError, '`l1` must be finite and at least 0, got -1'),
        ({'l1': float('nan')}, ValueError, 'got nan'),
        ({'l1': 'much'}, TypeError, "`l1` must be a number, got 'much'"),
        ({'l1': True}, TypeError, 'got True'),
        ({'l1': 1, 'l1_mode': 'lasso'}, ValueError, "one of subgradient, proximal, got 'lasso'"),
    ],
)
def test_bad_arguments_are_named(kwargs, error, text):
    with pytest.raises(error, match=text):
        optimizer_for(build(), 'l1sgd', **kwargs)


def test_a_network_without_pointwise_convolutions_is_an_error():
    with pytest.raises(ValueError, match='none of 2 tensors is one'):
        create_optimizer_v2(nn.Linear(2, 2), 'l1sgd', l1=L1)


def test_misspelt_name_does_not_train_without_a_penalty_in_silence():
    with pytest.raises(TypeError, match="'l1'"):  # timm keeps the part behind the underscore
        create_optimizer_v2(build(), 'l1_sgd', l1=L1)
