"""The implicit LC-Block against the explicit one, whose P and W are the oracle: the same trajectory under SGD."""

import copy
import dataclasses
import pickle
import warnings

import numpy as np
import pytest
import timm
import torch
from timm.layers import Conv2dSame, StdConv2d
from timm.optim import create_optimizer_v2
from torch import nn

from timm_lc import LCConv2d, add_linear_combinations, fold, freeze_spatial, prune_pointwise, share_weights, to_implicit
from timm_lc.filters import FilterRecord
from timm_lc.layers import gram, implicit
from timm_lc.layers.implicit import ImplicitLCConv2d
from timm_lc.models import LCOptions

SGD = {'lr': 0.1, 'momentum': 0.9, 'nesterov': True, 'weight_decay': 0.01}
GEOMETRIES = {
    'full rank': {'in_channels': 4, 'out_channels': 6, 'kernel_size': 3, 'expansion': 8, 'padding': 1},
    'low rank': {'in_channels': 8, 'out_channels': 6, 'kernel_size': (3, 5), 'expansion': 2, 'bias': True},
    'groups': {'in_channels': 6, 'out_channels': 4, 'kernel_size': 3, 'expansion': 9, 'groups': 2, 'stride': 2},
    'depthwise': {'in_channels': 8, 'out_channels': 8, 'kernel_size': 3, 'expansion': 12, 'groups': 8, 'dilation': 2},
    'orthogonal': {'in_channels': 4, 'out_channels': 4, 'kernel_size': 3, 'expansion': 5, 'filters': 'orthogonal'},
    'reflected': {'in_channels': 4, 'out_channels': 4, 'kernel_size': 3, 'padding': 1, 'padding_mode': 'reflect'},
}


def pair(dtype=torch.float64, **arguments):
    """Return both forms of one LC-Block, which start from the same P_0."""
    blocks = []
    for is_implicit in (False, True):
        torch.manual_seed(0)
        blocks.append(LCConv2d(**arguments, implicit=is_implicit, seed=5, dtype=dtype))
    return blocks


def loss_of(model, x):
    output = model(x)
    return output.square().mean() + output.sin().mean()


def train(model, optimizer, steps, channels, first=0):
    for step in range(first, first + steps):
        x = torch.randn(4, channels, 8, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()


def assert_near(actual, expected, tolerance):
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize('arguments', GEOMETRIES.values(), ids=GEOMETRIES)
def test_implicit_block_follows_the_explicit_one_for_50_steps(arguments):
    explicit, block = pair(**arguments)
    assert isinstance(block, ImplicitLCConv2d)
    assert isinstance(block, nn.Conv2d)
    optimizers = [torch.optim.SGD(model.parameters(), **SGD) for model in (explicit, block)]
    start = block.weight.detach().clone()
    assert_near(block.weight, explicit.effective_weight(), 1e-14)
    for model, optimizer in zip((explicit, block), optimizers, strict=True):
        train(model, optimizer, 50, arguments['in_channels'])
    assert_near(block.weight, explicit.effective_weight(), 1e-10)
    assert (block.weight - start).abs().max() > 0.1 * start.abs().max()  # it moved
    momentum = optimizers[0].state[explicit.pointwise.weight]['momentum_buffer'].flatten(1)
    groups = explicit.groups
    combined = momentum.unflatten(0, (groups, -1)) @ explicit.spatial.weight.flatten(1).unflatten(0, (groups, -1))
    assert_near(optimizers[1].state[block.weight]['momentum_buffer'].flatten(1), combined.flatten(0, 1), 1e-9)
    if explicit.pointwise.bias is not None:
        assert_near(block.bias, explicit.pointwise.bias, 1e-10)


@pytest.mark.parametrize('recycle', [1, 3])
def test_implicit_form_of_shared_filters_follows_them(recycle):
    explicit = nn.Sequential(pair(**GEOMETRIES['full rank'])[0], pair(**GEOMETRIES['groups'])[0])
    share_weights(explicit, seed=3, recycle=recycle)
    block = to_implicit(copy.deepcopy(explicit))
    for model in (explicit, block):
        train(model, torch.optim.SGD(model.parameters(), **SGD), 50, 4)
    for index in (0, 1):
        assert_near(block[index].weight, explicit[index].effective_weight(), 1e-10)


def network(**kwargs):
    torch.manual_seed(3)
    return timm.create_model('lc_resnet20_16x8', dtype=torch.float64, **kwargs)


def test_implicit_lc_resnet_follows_the_explicit_one():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 3, 16, 16, generator=generator, dtype=torch.float64)
    target = torch.randint(10, (8,), generator=generator)
    models = [network(), network(implicit=True)]
    optimizers = [torch.optim.SGD(model.parameters(), 0.01, 0.9, nesterov=True, weight_decay=1e-2) for model in models]
    for step in range(1, 51):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), target).backward()
            optimizer.step()
        if step in (20, 50):
            tolerance = {20: 1e-10, 50: 1e-7}[step]
            for name, block in models[0].named_modules():
                if isinstance(block, LCConv2d):
                    weight = models[1].get_submodule(name).weight
                    assert_near(weight, block.effective_weight(), tolerance)
                    momentum = optimizers[0].state[block.pointwise.weight]['momentum_buffer'].flatten(1)
                    combined = (momentum @ block.spatial.weight.flatten(1)).view(weight.shape)
                    assert_near(optimizers[1].state[weight]['momentum_buffer'], combined, tolerance)


# Each row of the class's table, left column: what is linear in the gradient


def steps_with(change):
    """Train both forms for ten steps with `change(optimizer, step)` around each; return how far they are apart."""
    explicit, block = pair(**GEOMETRIES['full rank'])
    for model in (explicit, block):
        optimizer = torch.optim.SGD(model.parameters(), **SGD)
        for step in range(10):
            change(model, optimizer, step)
    expected = explicit.effective_weight()
    return ((block.weight - expected).abs().max() / expected.abs().max()).item()


def images_of(step):
    return torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def plain_step(model, optimizer, step):
    optimizer.zero_grad()
    loss_of(model, images_of(step)).backward()
    optimizer.step()


def scheduled_step(model, optimizer, step):
    optimizer.param_groups[0]['lr'] = 0.1 / (1 + step)
    plain_step(model, optimizer, step)


def accumulated_step(model, optimizer, step):
    optimizer.zero_grad()
    for index in (0, 1):
        (loss_of(model, images_of(2 * step + index)) / 2).backward()
    optimizer.step()


def scaled_step(model, optimizer, step):
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**10)
    optimizer.zero_grad()
    scaler.scale(loss_of(model, images_of(step))).backward()
    scaler.step(optimizer)
    scaler.update()


def clipped_step(model, optimizer, step):
    optimizer.zero_grad()
    loss_of(model, images_of(step)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
    optimizer.step()


@pytest.mark.parametrize('change', [plain_step, scheduled_step, accumulated_step, scaled_step])
def test_what_is_linear_in_the_gradient_keeps_the_trajectory(change):
    assert steps_with(change) < 1e-12


def test_clipping_by_norm_leaves_the_trajectory():
    assert steps_with(clipped_step) > 1e-3


def test_averaged_weights_are_those_of_the_average():
    explicit, block = pair(**GEOMETRIES['full rank'])
    means = []
    for model in (explicit, block):
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        optimizer = torch.optim.SGD(model.parameters(), **SGD)
        for step in range(5):
            plain_step(model, optimizer, step)
            average.update_parameters(model)
        means.append(average.module)
    assert_near(means[1].weight, means[0].effective_weight(), 1e-12)


def test_autocast_multiplies_in_full_precision():
    explicit, block = pair(torch.float32, **GEOMETRIES['full rank'])
    with torch.autocast('cpu', torch.bfloat16):
        for model in (explicit, block):
            loss_of(model, images_of(0).float()).backward()
    expected = explicit.pointwise.weight.grad.flatten(1) @ explicit.spatial.weight.flatten(1)
    assert block.weight.grad.dtype == torch.float32
    assert_near(block.weight.grad.flatten(1), expected, 2e-2)  # bfloat16 convolutions
    with torch.autocast('cpu', torch.bfloat16):
        matrix = torch.rand_like(block.weight)
        product = torch.autograd.grad(gram.precondition(block.weight, block.gram), block.weight, matrix)[0]
    exact = matrix.flatten(1).double() @ block.gram[0].double()
    assert_near(product.flatten(1), exact, 1e-6)


def test_adaptive_optimizers_warn_once():
    implicit._watch_optimizers.cache_clear()
    block = pair(**GEOMETRIES['full rank'])[1]
    plain = nn.Conv2d(4, 4, 3).double()
    for module in (block, plain):
        loss_of(module, images_of(0)).backward()
    torch.optim.AdamW(plain.parameters()).step()
    torch.optim.SGD(block.parameters()).step()
    optimizer = torch.optim.AdamW(copy.deepcopy(block).parameters())
    with pytest.warns(UserWarning, match='AdamW rescales gradients, so implicit LC-Blocks train on another trajectory'):
        optimizer.step()
    optimizer.step()  # a second warning would be an error


def test_cautious_sgd_is_not_linear():
    implicit._watch_optimizers.cache_clear()
    block = pair(**GEOMETRIES['full rank'])[1]
    loss_of(block, images_of(0)).backward()
    with pytest.warns(UserWarning, match='SGDW rescales gradients'):
        create_optimizer_v2(block, 'csgdw', lr=0.1).step()


def test_partial_states_are_named():
    block = nn.Sequential(LCConv2d(4, 6, 3, implicit=True))
    with pytest.raises(RuntimeError, match='layer `0`: the state has no `lc_record`: it is partial'):
        block.load_state_dict(dict(block.named_parameters()), strict=False)


# G


@pytest.mark.parametrize('arguments', GEOMETRIES.values(), ids=GEOMETRIES)
def test_gram_is_that_of_the_filters(arguments):
    explicit, block = pair(**arguments)
    groups = explicit.groups
    filters = explicit.spatial.weight.double().flatten(1).unflatten(0, (groups, -1))
    rows, fan = filters.shape[1:]
    assert block.gram.shape == ((1, groups, rows, fan) if 2 * rows < fan else (groups, fan, fan))
    gradient = torch.randn(block.weight.shape, dtype=torch.float64)
    expected = gradient.flatten(1).unflatten(0, (groups, -1)) @ filters.mT @ filters
    torch.testing.assert_close(gram.multiply(gradient, block.gram), expected.reshape(gradient.shape))


@pytest.mark.parametrize(
    ('shape', 'groups', 'period'), [((40, 3, 3, 3), 1, 0), ((40, 3, 3, 3), 4, 0), ((40, 2, 3, 3), 2, 54)]
)
@pytest.mark.parametrize('values', [30, 100, 10**6])
def test_blocks_are_the_filters_in_order(shape, groups, period, values, monkeypatch):
    monkeypatch.setattr('timm_lc.filters._BLOCK_VALUES', values)
    record = FilterRecord(shape, seed=3, stream=0 if period else 9, period=period)
    blocks, exact = zip(*record.blocks(groups), strict=True)
    np.testing.assert_allclose(np.concatenate(exact), record.filters(), rtol=1e-7)
    np.testing.assert_array_equal(np.concatenate(blocks), record.filters())
    per_group = shape[0] // groups
    assert all(len(block) % per_group == 0 or len(block) < per_group for block in blocks)


@pytest.mark.parametrize('expansion', [64, 1024])
def test_gram_tends_to_the_expected_one(expansion):
    record = FilterRecord((expansion * 4, 4, 3, 3), 1, 2)
    matrix = gram.build_gram(record, 1, 36).matrix[0]
    c = expansion * 4 / (3 * 36)
    assert gram.expected_factor(record, 1) == pytest.approx(c)
    assert np.abs(matrix / c - np.eye(36)).max() < 8 / np.sqrt(expansion * 4)


def test_expected_form_is_the_plain_convolution_with_another_rate_and_scale():
    torch.manual_seed(0)
    block = LCConv2d(4, 6, 3, expansion=100, implicit=True, filters='expected', dtype=torch.float64)
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        plain.weight /= 3**0.5
    assert_near(block.weight, plain.weight, 1e-15)
    assert block.gram.shape == ()
    c = 100 * 6 / (3 * 4 * 9)
    train(block, torch.optim.SGD(block.parameters(), 0.01, 0.9, weight_decay=0.02, nesterov=True), 20, 4)
    train(plain, torch.optim.SGD(plain.parameters(), 0.01 * c, 0.9, weight_decay=0.02 / c, nesterov=True), 20, 4)
    assert_near(block.weight, plain.weight, 1e-12)


def test_expected_network_is_the_plain_one_that_starts_from_smaller_weights():
    """In front of norms without epsilon: W -> W / sqrt(c) turns c lr and wd / c into lr and wd."""

    def losses(model):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-40
        optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, nesterov=True, weight_decay=1e-2)
        generator = torch.Generator().manual_seed(1)
        for _ in range(10):
            x = torch.randn(8, 3, 16, 16, generator=generator, dtype=torch.float64)
            loss = nn.functional.cross_entropy(model(x), torch.randint(10, (8,), generator=generator))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()

    limit = timm.create_model('lc_resnet20_16x128', implicit=True, filters='expected', dtype=torch.float64)
    plain = timm.create_model('lc_lowres_resnet20', freeze_spatial=False, dtype=torch.float64)
    plain.load_state_dict({key: value for key, value in limit.state_dict().items() if key in plain.state_dict()})
    for name, block in limit.named_modules():
        if isinstance(block, ImplicitLCConv2d):
            c = 128 * block.out_channels / (3 * block.weight[0].numel())
            plain.get_submodule(name).weight.data /= c**0.5
    assert list(losses(limit)) == pytest.approx(list(losses(plain)), abs=1e-12)


def test_a_matrix_that_does_not_fit_says_how_much(monkeypatch):
    monkeypatch.setattr(gram, '_memory', lambda: 2**20)
    with pytest.raises(ValueError, match=r'1 x 576 x 576, takes 0\.0 GiB to build and 0\.0 GiB are there'):
        LCConv2d(64, 64, 3, expansion=16, implicit=True)
    assert LCConv2d(64, 64, 3, expansion=16, implicit=True, filters='expected').gram.shape == ()


def test_other_precision_builds_the_matrix_again():
    block = pair(**GEOMETRIES['full rank'])[1]
    torch.testing.assert_close(copy.deepcopy(block).float().double().gram, block.gram, rtol=0, atol=0)


# What a module must survive


def assert_alike(other, block):
    assert torch.equal(other.weight, block.weight)
    assert torch.equal(other.gram, block.gram)
    assert torch.equal(other.lc_record, block.lc_record)
    assert other.filter_record == block.filter_record
    assert other.expansion == block.expansion
    assert other.weight.is_implicit


def test_copies_and_pickles_are_alike():
    block = pair(**GEOMETRIES['groups'])[1]
    assert_alike(copy.deepcopy(block), block)
    assert_alike(pickle.loads(pickle.dumps(block)), block)


@pytest.mark.parametrize('filters', ['uniform', 'orthogonal', 'expected'])
def test_checkpoint_is_plain_sized_and_its_record_is_adopted(filters):
    block = LCConv2d(4, 6, 3, expansion=8, seed=7, filters=filters, implicit=True)
    state = block.state_dict()
    assert set(state) == {'weight', 'lc_record'}
    assert state['weight'].shape == (6, 4, 3, 3)
    other = LCConv2d(4, 6, 3, expansion=2, seed=1, implicit=True)
    other.load_state_dict(state)
    assert_alike(other, block)


def test_a_refused_checkpoint_leaves_the_block_as_it_was():
    model = nn.Sequential(LCConv2d(3, 4, 3, expansion=8, implicit=True))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = nn.Sequential(LCConv2d(3, 4, 3, expansion=8, implicit=True, seed=5)).state_dict()
    wrong = torch.from_numpy(dataclasses.replace(model[0].filter_record, seed=5).encode(1))  # with no such fingerprint
    for record in (wrong, other['0.lc_record'] + 7):
        state = {**other, '0.lc_record': record}
        with pytest.raises(RuntimeError, match='layer `0`'):
            model.load_state_dict(state)
        assert torch.equal(model[0].lc_record, before['0.lc_record'])
        assert model[0].filter_record.seed == 0
    model.load_state_dict(before)


def test_an_assigned_weight_is_known_to_optimizers():
    model = nn.Sequential(LCConv2d(3, 4, 3, expansion=8, implicit=True))
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    with pytest.raises(ValueError, match='implicit'):
        create_optimizer_v2(model, 'l1sgd', lr=0.1, l1=1e-4)


def test_implicit_is_a_positional_argument_too():
    block = LCConv2d(3, 4, 3, 1, 0, 1, 1, False, 'zeros', 8, True, True, 7)
    assert isinstance(block, ImplicitLCConv2d)
    assert (block.expansion, block.filter_record.seed) == (8, 7)


def test_another_seed_is_refused_by_name():
    model = nn.Sequential(LCConv2d(3, 4, 3, expansion=8, implicit=True))
    with pytest.raises(ValueError, match='`seed` is 7, but layer `0` learns by filters of seed 0: build it anew'):
        freeze_spatial(model, seed=7)


def test_loading_verifies_the_fingerprint():
    block = LCConv2d(4, 6, 3, expansion=8, implicit=True)
    state = block.state_dict()
    state['lc_record'] = torch.from_numpy(block.filter_record.encode(1234))
    for other in (block, LCConv2d(4, 6, 3, expansion=2, implicit=True)):
        with pytest.raises(RuntimeError, match='drawn from its record do not match the fingerprint in it'):
            other.load_state_dict(state)


@pytest.mark.parametrize('shape', [(48, 4, 5, 5), (47, 4, 3, 3)])
def test_record_of_another_architecture_raises(shape):
    record = FilterRecord(shape)
    state = {'weight': torch.zeros(6, 4, 3, 3), 'lc_record': torch.from_numpy(record.encode(record.filters()))}
    with pytest.raises(RuntimeError, match=r'its record is of filters .*: another architecture\?'):
        LCConv2d(4, 6, 3, implicit=True).load_state_dict(state)


def test_plain_checkpoint_is_refused():
    state = nn.Conv2d(4, 6, 3, bias=False).state_dict()
    with pytest.raises(RuntimeError, match='layer `0`: the state has no `lc_record`: it is partial, or of'):
        nn.Sequential(LCConv2d(4, 6, 3, implicit=True)).load_state_dict({f'0.{k}': v for k, v in state.items()})


def test_explicit_checkpoint_is_converted(stock, images):
    explicit = add_linear_combinations(stock(), 4, seed=2)
    block = add_linear_combinations(stock(), 3, seed=9, implicit=True)
    block.load_state_dict(explicit.state_dict())
    converted = to_implicit(explicit)
    torch.testing.assert_close(block(images), converted(images))
    for name, module in converted.named_modules():
        if isinstance(module, ImplicitLCConv2d):
            assert_alike(block.get_submodule(name), module)


def test_checkpoint_of_learnable_filters_is_refused():
    state = LCConv2d(4, 6, 3, expansion=2, freeze_spatial=False).state_dict()
    with pytest.raises(RuntimeError, match='an LC-Block that learns its filters, which has no implicit form'):
        LCConv2d(4, 6, 3, expansion=2, implicit=True).load_state_dict(state)


def test_explicit_block_refuses_an_implicit_checkpoint_with_the_way_out():
    state = LCConv2d(4, 6, 3, implicit=True).state_dict()
    with pytest.raises(RuntimeError, match=r'build the model with `implicit=True`, load it, then call .*to_explicit'):
        LCConv2d(4, 6, 3).load_state_dict(state)


def test_block_built_on_the_meta_device_is_filled():
    block = LCConv2d(4, 6, 3, expansion=8, implicit=True, seed=4)
    loaded = LCConv2d(4, 6, 3, expansion=8, implicit=True, seed=1, device='meta').to_empty(device='cpu')
    with pytest.raises(RuntimeError, match='is not there yet: after `to_empty`'):
        loaded(torch.zeros(1, 4, 8, 8))
    loaded.load_state_dict(block.state_dict())
    assert_alike(loaded, block)
    assigned = LCConv2d(4, 6, 3, expansion=8, implicit=True, seed=1, device='meta')
    assigned.load_state_dict(block.state_dict(), assign=True)
    assert torch.equal(assigned.gram, block.gram)
    drawn = LCConv2d(4, 6, 3, expansion=8, implicit=True, seed=4, device='meta').to_empty(device='cpu')
    drawn.init_non_persistent_buffers()
    assert torch.equal(drawn.gram, block.gram)
    assert torch.equal(drawn.lc_record, block.lc_record)


def test_network_with_other_input_channels_follows_the_explicit_one_that_is_adapted(stock, images):
    explicit = add_linear_combinations(stock(), 4, seed=2)
    wider = add_linear_combinations(stock(in_chans=6), 4, seed=2)
    state = explicit.state_dict()
    assert wider is not explicit
    wider.load_state_dict(state)
    block = to_implicit(copy.deepcopy(wider))
    name, module = next((n, m) for n, m in block.named_modules() if isinstance(m, ImplicitLCConv2d))
    filters = wider.get_submodule(name).spatial.weight.flatten(1).double()
    gradient = torch.randn(module.weight.shape)
    expected = gradient.flatten(1).double() @ filters.t() @ filters
    torch.testing.assert_close(gram.multiply(gradient, module.gram).flatten(1).double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(block(images.repeat(1, 2, 1, 1)), wider(images.repeat(1, 2, 1, 1)))


@pytest.mark.parametrize('mode', ['compile', 'export', 'script', 'trace'])
def test_compiled_exported_and_scripted_blocks_compute_the_same(mode):
    block = pair(torch.float32, **GEOMETRIES['groups'])[1]
    x = images_of(0).float()[:, :4].repeat(1, 2, 1, 1)[:, :6]
    expected = block(x)
    gradient = torch.autograd.grad(expected.square().sum(), block.weight)[0]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        changed = {
            'compile': lambda: torch.compile(block, fullgraph=True, backend='aot_eager'),
            'export': lambda: torch.export.export(block, (x,)).module(),
            'script': lambda: torch.jit.script(block),
            'trace': lambda: torch.jit.trace(block, x),
        }[mode]()
    output = changed(x)
    torch.testing.assert_close(output, expected)
    if mode != 'export':
        weight = dict(changed.named_parameters())['_orig_mod.weight' if mode == 'compile' else 'weight']
        torch.testing.assert_close(torch.autograd.grad(output.square().sum(), weight)[0], gradient)


def test_gradients_of_functional_calls_and_of_gradients_are_right():
    block = pair(**GEOMETRIES['full rank'])[1]
    x = images_of(0)

    def loss(weight):
        return torch.func.functional_call(block, {'weight': weight}, (x,)).square().sum()

    expected = torch.autograd.grad(loss(block.weight), block.weight)[0]
    torch.testing.assert_close(torch.func.grad(loss)(block.weight.detach()), expected)


def test_fold_is_a_copy(stock, images):
    model = add_linear_combinations(stock(), 4, implicit=True)
    folded = fold(model)
    assert not any(isinstance(module, ImplicitLCConv2d) for module in folded.modules())
    assert set(folded.state_dict()) == set(stock().state_dict())
    assert torch.equal(folded(images), model.eval()(images))
    assert type(fold(LCConv2d(4, 6, 3, implicit=True))) is nn.Conv2d


def test_same_padding_is_kept():
    conv = Conv2dSame(4, 6, 3, stride=2, bias=False)
    model = add_linear_combinations(nn.Sequential(conv), 4, implicit=True)
    with torch.no_grad():
        conv.weight.copy_(model[0].weight)
    x = torch.randn(1, 4, 9, 9)
    torch.testing.assert_close(model(x), conv(x))
    assert type(fold(model)[0]) is Conv2dSame


# Together with the transforms


def test_freezing_and_combining_again_change_nothing(stock):
    model = add_linear_combinations(stock(), 4, implicit=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    freeze_spatial(add_linear_combinations(model, 4, implicit=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match=r'`expansion` is 5, but layer `.*` has LC-Blocks of 4'):
        add_linear_combinations(model, 5, implicit=True)


def test_what_implicit_blocks_exclude_is_refused(stock):
    for build in (add_linear_combinations, lambda model, expansion, **kwargs: LCConv2d(4, 6, 3, **kwargs)):
        with pytest.raises(ValueError, match='`implicit=True` needs `freeze_spatial=True`'):
            build(stock(), 2, implicit=True, freeze_spatial=False)
    model = add_linear_combinations(stock(), 2, implicit=True)
    with pytest.raises(ValueError, match='is an implicit LC-Block: share_weights before to_implicit'):
        share_weights(model)
    with pytest.raises(ValueError, match='implicit LC-Blocks have no pointwise weights to prune: use to_explicit'):
        prune_pointwise(model, 0.5)
    with pytest.raises(ValueError, match='`l1` penalises pointwise weights, which implicit LC-Blocks have not'):
        timm.optim.create_optimizer_v2(timm.create_model('lc_resnet20_16x1', implicit=True), 'l1sgd', lr=0.1, l1=1e-5)
    with pytest.raises(ValueError, match='a StdConv2d has no LC-Block'):
        add_linear_combinations(nn.Sequential(StdConv2d(4, 4, 3)), 2, implicit=True)


@pytest.mark.parametrize(
    ('kwargs', 'words'),
    [
        ({'expansion': None}, '`implicit=True` needs `expansion`'),
        ({'freeze_spatial': False}, '`implicit=True` needs `freeze_spatial=True`'),
        ({'between': 'relu'}, '`implicit=True` has nothing between the two convolutions'),
        ({'implicit': 1}, '`implicit` must be True or False, got 1'),
        ({'implicit': False, 'filters': 'expected'}, "`filters='expected'` has no filters: it needs `implicit=True`"),
        ({'filters': 'gauss'}, "`filters` must be one of 'uniform', 'orthogonal', 'expected', got 'gauss'"),
    ],
)
def test_models_refuse_what_has_no_implicit_form(kwargs, words):
    with pytest.raises(ValueError, match=words):
        LCOptions(**{'expansion': 2, 'implicit': True, **kwargs})


@pytest.mark.parametrize('kwargs', [{}, {'share_weights': True, 'recycle': 4}, {'filters': 'orthogonal'}])
def test_models_start_where_their_explicit_form_does_with_the_plain_parameters(kwargs):
    models = []
    for is_implicit in (False, True):
        torch.manual_seed(4)
        models.append(timm.create_model('lc_resnet20_16x2', seed=3, implicit=is_implicit, **kwargs).eval())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(models[1](x), models[0](x), rtol=1e-3, atol=1e-4)
    plain = timm.create_model('lc_lowres_resnet20', freeze_spatial=False)
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (models[1], plain)]
    assert shapes[0] == shapes[1]
    held = {name for name, _ in models[1].named_buffers() if name.endswith(('gram', 'lc_record'))}
    assert held == set(models[1]._ddp_params_and_buffers_to_ignore)


def test_stock_networks_take_implicit_blocks_with_their_own_parameters():
    model = timm.create_model('lc_resnet18', expansion=1, implicit=True)
    plain = timm.create_model('resnet18')
    assert {name: p.shape for name, p in model.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
