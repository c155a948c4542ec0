"""freeze_spatial, share_weights, add_linear_combinations, fold and count_parameters on timm's own networks."""

import copy
import itertools
import pickle
import zlib
from functools import partial

import pytest
import timm
import torch
from timm.layers import CondConv2d
from torch import nn

from timm_lc import LCConv2d, add_linear_combinations, count_parameters, fold, freeze_spatial, share_weights
from timm_lc.layers.shared import SharedFilters
from timm_lc.transforms.freeze import seed_spatial

# plain and strided; grouped and normalised by groups; depthwise; depthwise, even kernels, biases; standardised weights
NETS = ['test_resnet', 'test_byobnet', 'test_efficientnet', 'test_convnext', 'test_nfnet']
PLAIN_NETS = NETS[:4]

TRANSFORMS = {
    'freeze': freeze_spatial,
    'freeze as they are': lambda model: freeze_spatial(model, seed=None),
    'share': share_weights,
    'recycle': lambda model: share_weights(model, recycle=4),
    'expand': lambda model: add_linear_combinations(model, 2),
    'expand, learnable': lambda model: add_linear_combinations(model, 2, freeze_spatial=False),
    'expand, recycle': lambda model: share_weights(add_linear_combinations(model, 2), recycle=4),
}


def spatial(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1}


def spatial_filters(model):
    return {name: conv.weight.detach().clone() for name, conv in spatial(model).items()}


def assert_same_filters(model, other):
    filters, others = spatial_filters(model), spatial_filters(other)
    assert filters.keys() == others.keys()
    assert all(torch.equal(filters[name], others[name]) for name in filters)


@pytest.mark.parametrize('seed', [0, 5])
@pytest.mark.parametrize('net', NETS)
def test_freeze_spatial_draws_each_layer_from_its_name(net, seed, stock, filters_of):
    for name, conv in spatial(freeze_spatial(stock(net), seed)).items():
        assert torch.equal(conv.weight, filters_of(conv.weight.shape, seed=seed, name=name))


@pytest.mark.parametrize('gain', [1, 6**0.5])
@pytest.mark.parametrize('recycle', [1, 4])
@pytest.mark.parametrize('net', NETS)
def test_share_weights_slices_one_vector(net, recycle, gain, stock, filters_of):
    model = share_weights(stock(net), seed=5, recycle=recycle, gain=gain)
    longest = max(spatial(model).values(), key=lambda conv: conv.weight.numel()).weight
    fan = longest[0].numel()
    period = -(-longest.numel() // recycle // fan) * fan
    for conv in spatial(model).values():
        expected = filters_of(conv.weight.shape, seed=5, period=period, gain=gain)
        torch.testing.assert_close(conv.weight, expected, rtol=1e-6, atol=0)
    assert len({id(m) for m in model.modules() if isinstance(m, SharedFilters)}) == 1


@pytest.mark.parametrize(
    ('recycle', 'shared_length', 'expected'),
    [
        (1, None, 32 * 144),
        (2, None, 16 * 144),
        (3, None, 11 * 144),  # rounded up to whole filters of the longest layer
        (32, None, 144),
        (64, None, 72),  # below one filter: whole kernels
        (100, None, 54),
        (10**6, None, 9),
        (1, 1000, 7 * 144),
        (1, 10, 18),
        (1, 10**6, 32 * 144),  # a longer vector than the longest slice has no use
    ],
)
def test_share_weights_rounds_the_vector_to_whole_filters(recycle, shared_length, expected):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3))
    share_weights(model, recycle=recycle, shared_length=shared_length)
    assert model[0].shared.vector.numel() == expected


@pytest.mark.parametrize('freeze', [True, False])
@pytest.mark.parametrize('net', PLAIN_NETS)
def test_add_linear_combinations_keeps_the_geometry(net, freeze, stock, images, filters_of):
    plain = stock(net)
    model = add_linear_combinations(copy.deepcopy(plain), 3, seed=2, freeze_spatial=freeze)
    for name, conv in spatial(plain).items():
        block = model.get_submodule(name)
        rows, fan = 3 * conv.out_channels, conv.weight.shape[1:]
        assert isinstance(block, LCConv2d)
        assert block.pointwise.weight.shape == (conv.out_channels, rows // conv.groups, 1, 1)
        assert (block.pointwise.bias is None) == (conv.bias is None)
        assert torch.equal(block.spatial.weight, filters_of((rows, *fan), seed=2, name=f'{name}.spatial'))
        assert block.spatial.weight.requires_grad != freeze
    assert model(images).shape == plain(images).shape


@pytest.mark.parametrize('transform', TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_transform_returns_its_argument(transform, stock):
    model = stock()
    assert transform(model) is model


@pytest.mark.parametrize('net', PLAIN_NETS)
@pytest.mark.parametrize('transform', TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_transform_twice_equals_once(transform, net, stock, images):
    model = transform(stock(net))
    before, names, output = spatial_filters(model), list(model.state_dict()), model(images)
    transform(model)
    assert list(model.state_dict()) == names
    assert all(torch.equal(before[name], weight) for name, weight in spatial_filters(model).items())
    assert torch.equal(model(images), output)


@pytest.mark.parametrize('transform', [freeze_spatial, share_weights])
@pytest.mark.parametrize('net', NETS)
def test_all_but_the_spatial_filters_stays_trainable(net, transform, stock, images):
    plain = stock(net)
    expected = {n for n, _ in plain.named_parameters()} - {f'{n}.weight' for n in spatial(plain)}
    model = transform(plain).train()
    model(images).square().sum().backward()
    learned = dict(model.named_parameters())
    assert set(learned) == expected
    assert all(p.requires_grad and p.grad is not None for p in learned.values())


@pytest.mark.parametrize('transform', [freeze_spatial, share_weights])
def test_the_rest_of_the_network_keeps_its_values(transform, stock):
    plain = stock()
    state = plain.state_dict()
    model = transform(copy.deepcopy(plain))
    assert all(torch.equal(state[name], value) for name, value in model.named_parameters())


def test_freezing_the_present_weights_changes_no_output(stock, images):
    model = stock()
    expected = model(images)
    freeze_spatial(model, seed=None)
    assert torch.equal(model(images), expected)
    assert all(not conv.weight.requires_grad for conv in spatial(model).values())


@pytest.mark.parametrize('transform', [freeze_spatial, share_weights, partial(add_linear_combinations, expansion=2)])
def test_filter_fn_narrows_what_is_touched(transform, stock):
    plain = stock()
    seen = []

    def filter_fn(module, name):
        seen.append((name, module))
        return name.startswith('layer2')

    model = transform(copy.deepcopy(plain), filter_fn=filter_fn)
    learnable = {name for name, _ in model.named_parameters()}
    assert dict(seen).keys() >= spatial(plain).keys()
    for name in spatial(plain):
        assert (f'{name}.weight' in learnable) != name.startswith('layer2')


def test_the_classifiers_own_convolution_is_left_alone():
    vgg = timm.create_model('vgg11', num_classes=4, device='meta')
    learnable = {name for name, _ in freeze_spatial(vgg).named_parameters()}
    assert 'pre_logits.fc1.weight' in learnable
    assert 'features.0.weight' not in learnable


def test_a_convolution_used_twice_is_one_layer(filters_of):
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = freeze_spatial(nn.Sequential(conv, nn.ReLU(), conv))
    assert torch.equal(model[2].weight, filters_of((4, 4, 3, 3), name='0'))
    assert count_parameters(model) == (4, 148, 4, 148)


def test_a_convolution_used_twice_becomes_one_block_and_folds_to_one_convolution():
    conv, x = nn.Conv2d(4, 4, 3, padding=1), torch.randn(1, 4, 8, 8)
    model = add_linear_combinations(nn.Sequential(conv, nn.Sequential(conv), conv), 2)
    assert isinstance(model[0], LCConv2d)
    assert model[0] is model[1][0] is model[2]
    folded = fold(model)
    assert type(folded[0]) is nn.Conv2d
    assert folded[0] is folded[1][0] is folded[2]
    torch.testing.assert_close(folded(x), model(x))


SAME = {
    'freeze, share': ([freeze_spatial, share_weights], [share_weights]),
    'share, freeze': ([share_weights, freeze_spatial], [share_weights]),
    'share, freeze as they are': ([share_weights, TRANSFORMS['freeze as they are']], [share_weights]),
    'share, recycle': ([share_weights, TRANSFORMS['recycle']], [TRANSFORMS['recycle']]),
    'freeze, expand': ([freeze_spatial, TRANSFORMS['expand']], [TRANSFORMS['expand']]),
    'expand, freeze': ([TRANSFORMS['expand'], freeze_spatial], [TRANSFORMS['expand']]),
    'expand learnable, freeze': ([TRANSFORMS['expand, learnable'], freeze_spatial], [TRANSFORMS['expand']]),
    'expand learnable, share': (
        [TRANSFORMS['expand, learnable'], TRANSFORMS['recycle']],
        [TRANSFORMS['expand, recycle']],
    ),
    'expand, share, expand': (
        [TRANSFORMS['expand, recycle'], TRANSFORMS['expand']],
        [TRANSFORMS['expand, recycle']],
    ),
    'other seed, freeze': ([lambda m: freeze_spatial(m, seed=9), freeze_spatial], [freeze_spatial]),
    'as they are, freeze': ([TRANSFORMS['freeze as they are'], freeze_spatial], [freeze_spatial]),
    'freeze, as they are': ([freeze_spatial, TRANSFORMS['freeze as they are']], [freeze_spatial]),
}


@pytest.mark.parametrize(('order', 'other'), SAME.values(), ids=SAME)
def test_orders_that_mean_the_same_give_the_same_network(order, other, stock):
    model, twin = stock(), stock()
    for transform in order:
        transform(model)
    for transform in other:
        transform(twin)
    assert_same_filters(model, twin)
    assert model.state_dict().keys() == twin.state_dict().keys()
    assert count_parameters(model) == count_parameters(twin)


@pytest.mark.parametrize('transform', list(TRANSFORMS.values()), ids=TRANSFORMS)
def test_transforms_leave_the_global_random_state_to_learned_weights(transform, stock):
    model = stock()
    torch.manual_seed(0)
    transform(model)
    drawn = [module.pointwise for module in model.modules() if isinstance(module, LCConv2d)]
    after = torch.get_rng_state()
    torch.manual_seed(0)
    for pointwise in drawn:
        nn.Conv2d(
            pointwise.in_channels, pointwise.out_channels, 1, groups=pointwise.groups, bias=pointwise.bias is not None
        )
    assert torch.equal(torch.get_rng_state(), after)


def no_spatial():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 4))


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))


def with_cond_conv():
    return nn.Sequential(nn.Conv2d(3, 4, 3), CondConv2d(4, 4, 3))


def mixed_seeds():
    return share_weights(small(), seed=1, filter_fn=lambda module, name: name == '1')


ERRORS = {
    'freeze nothing': (lambda: freeze_spatial(no_spatial()), 'Sequential has no spatial convolution$'),
    'share nothing': (lambda: share_weights(no_spatial()), 'Sequential has no spatial convolution$'),
    'expand nothing': (lambda: add_linear_combinations(no_spatial(), 2), 'Sequential has no spatial convolution$'),
    'seed nothing': (lambda: seed_spatial(no_spatial(), 0), 'Sequential has no spatial convolution$'),
    'filter_fn, freeze': (
        lambda: freeze_spatial(small(), filter_fn=lambda module, name: False),
        'has no spatial convolution that `filter_fn` accepts',
    ),
    'filter_fn, share': (
        lambda: share_weights(small(), filter_fn=lambda module, name: name == 'absent'),
        'has no spatial convolution that `filter_fn` accepts',
    ),
    'filter_fn, expand': (
        lambda: add_linear_combinations(small(), 2, filter_fn=lambda module, name: False),
        'has no spatial convolution that `filter_fn` accepts',
    ),
    'seed too small': (lambda: freeze_spatial(small(), seed=-1), r'`seed` must be an integer in .*, got -1'),
    'seed too large': (lambda: share_weights(small(), seed=2**32), r'`seed` must be an integer in .*, got 4294967296'),
    'seed no integer': (lambda: add_linear_combinations(small(), 2, seed=0.5), '`seed` must be .*, got 0.5'),
    'recycle 0': (lambda: share_weights(small(), recycle=0), '`recycle` must be a positive integer, got 0'),
    'recycle 1.5': (lambda: share_weights(small(), recycle=1.5), '`recycle` must be a positive integer, got 1.5'),
    'length 0': (lambda: share_weights(small(), shared_length=0), '`shared_length` must be a positive integer, got 0'),
    'recycle and length': (
        lambda: share_weights(small(), recycle=2, shared_length=9),
        'give `recycle` or `shared_length`, not both: got 2 and 9',
    ),
    'expansion 0': (lambda: add_linear_combinations(small(), 0), '`expansion` must be a positive integer, got 0'),
    'expansion -1': (lambda: add_linear_combinations(small(), -1), '`expansion` must be a positive integer, got -1'),
    'expansion 1.5': (lambda: add_linear_combinations(small(), 1.5), '`expansion` must be a positive integer, got 1.5'),
    'gain 0': (lambda: freeze_spatial(small(), gain=0), '`gain` must be a positive number, got 0'),
    'gain infinite': (lambda: share_weights(small(), gain=float('inf')), '`gain` must be a positive number, got inf'),
    'gain text': (lambda: add_linear_combinations(small(), 2, gain='he'), "`gain` must be a positive number, got 'he'"),
    'standardised': (
        lambda: add_linear_combinations(timm.create_model('test_nfnet'), 2),
        r'layer `stem.conv1`: a ScaledStdConv2d has no LC-Block',
    ),
    'CondConv2d, freeze': (lambda: freeze_spatial(with_cond_conv()), 'layer `1` is a CondConv2d'),
    'CondConv2d, share': (lambda: share_weights(with_cond_conv()), 'layer `1` is a CondConv2d'),
    'CondConv2d, expand': (lambda: add_linear_combinations(with_cond_conv(), 2), 'layer `1` is a CondConv2d'),
    'other expansion': (
        lambda: add_linear_combinations(add_linear_combinations(small(), 2), 3),
        '`expansion` is 3, but layer `0` has LC-Blocks of 2',
    ),
    'share, expand': (
        lambda: add_linear_combinations(share_weights(small()), 2),
        'layer `0` shares its filters already: add linear combinations before share_weights',
    ),
    'share, freeze otherwise': (
        lambda: freeze_spatial(share_weights(small(), seed=1), seed=2),
        '`seed` is 2, but layer `0` shares filters of seed 1: use share_weights',
    ),
    'a convolution': (lambda: add_linear_combinations(nn.Conv2d(3, 4, 3), 2), '`model` is itself a convolution'),
}


@pytest.mark.parametrize(('call', 'message'), ERRORS.values(), ids=ERRORS)
def test_bad_input_says_what_and_where(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize('transform', [freeze_spatial, share_weights, lambda m: add_linear_combinations(m, 2)])
def test_a_refused_model_is_left_as_it_was(transform):
    model = with_cond_conv()
    state = model.state_dict()
    with pytest.raises(ValueError, match='CondConv2d'):
        transform(model)
    assert model.state_dict().keys() == state.keys()


def test_a_refused_seed_leaves_the_model_as_it_was():
    model = mixed_seeds()
    with pytest.raises(ValueError, match='layer `1` shares filters of seed 1'):
        freeze_spatial(model, seed=2)
    assert isinstance(model[0].weight, nn.Parameter)


def test_a_refused_expansion_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), timm.layers.StdConv2d(4, 4, 3))
    with pytest.raises(ValueError, match='layer `1`: a StdConv2d has no LC-Block'):
        add_linear_combinations(model, 2)
    assert type(model[0]) is nn.Conv2d


FOLDABLE = [
    (net, name) for net, name in itertools.product(NETS, TRANSFORMS) if net in PLAIN_NETS or 'expand' not in name
]


@pytest.mark.parametrize(('net', 'transform'), FOLDABLE)
def test_fold_gives_a_stock_network_of_the_same_function(net, transform, stock, images):
    plain = stock(net)
    model = TRANSFORMS[transform](copy.deepcopy(plain))
    before = copy.deepcopy(model.state_dict())
    expected = model(images)

    folded = fold(model)
    assert [(n, type(m)) for n, m in folded.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    assert [n for n, _ in folded.named_parameters()] == [n for n, _ in plain.named_parameters()]
    torch.testing.assert_close(folded(images), expected, rtol=1e-4, atol=1e-5)

    plain.load_state_dict(folded.state_dict())
    assert torch.equal(plain(images), folded(images))
    assert b'timm_lc' not in pickle.dumps(folded)

    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(model(images), expected)


def test_fold_in_float64_is_exact(stock, images):
    model = add_linear_combinations(stock().double(), 8)
    torch.testing.assert_close(fold(model)(images.double()), model(images.double()), rtol=1e-11, atol=1e-12)


def test_fold_of_a_block_is_its_fused_convolution():
    block, x = LCConv2d(3, 4, 3, expansion=2), torch.randn(1, 3, 8, 8)
    folded = fold(block)
    assert type(folded) is nn.Conv2d
    torch.testing.assert_close(folded(x), block(x))


def test_fold_of_a_learnable_network_leaves_nothing_of_ours(stock):
    folded = fold(seed_spatial(stock(), 0))
    assert b'timm_lc' not in pickle.dumps(folded)


@pytest.mark.parametrize('kwargs', [{}, {'expansion': 2}, {'share_weights': True}, {'freeze_spatial': False}])
def test_fold_of_a_registered_network_leaves_nothing_of_ours(kwargs):
    folded = fold(timm.create_model('lc_test_resnet', **kwargs))
    assert b'timm_lc' not in pickle.dumps(folded)


def test_fold_of_a_stock_network_is_a_copy(stock, images):
    model = stock()
    folded = fold(model)
    assert folded is not model
    assert torch.equal(folded(images), model(images))


def test_folded_networks_learn_all_their_weights(stock, images):
    folded = fold(share_weights(stock(), recycle=2)).train()
    folded(images).sum().backward()
    assert all(p.grad is not None for p in folded.parameters())


def test_seeding_filters_between_passes_is_refused_by_autograd():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    output = model(torch.ones(1, 3, 8, 8, requires_grad=True))
    seed_spatial(model, 1)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        output.sum().backward()


def test_seed_spatial_starts_from_the_frozen_filters(stock):
    model = seed_spatial(stock(), 3)
    assert_same_filters(model, freeze_spatial(stock(), 3))
    assert all(conv.weight.requires_grad for conv in spatial(model).values())


@pytest.fixture(scope='module')
def resnet50():
    return timm.create_model('resnet50')


def test_counts_of_resnet50_are_the_papers(resnet50):  # initial pointwise weights may be zero by chance
    assert count_parameters(resnet50)[:3] == (25_557_032,) * 3
    frozen = count_parameters(freeze_spatial(copy.deepcopy(resnet50)))
    assert frozen[:3] == (14_230_376, 25_557_032, 14_230_376)
    shared = count_parameters(share_weights(copy.deepcopy(resnet50)))
    assert shared[:3] == (14_230_376, 16_589_672, 14_230_376)


def test_counts_of_filters_kept_as_they_are_are_stored(stock):
    plain = stock()
    total = sum(p.numel() for p in plain.parameters())
    filters = sum(conv.weight.numel() for conv in spatial(plain).values())
    assert count_parameters(freeze_spatial(plain, seed=None)) == (total - filters, total, total, total)


@pytest.mark.parametrize(('recycle', 'vector'), [(1, 16 * 4 * 9), (4, 4 * 4 * 9)])
def test_counts_take_a_shared_vector_once(recycle, vector):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 16, 3, bias=False), nn.Conv2d(16, 2, 1))
    share_weights(model, recycle=recycle)
    learnable = 4 + 32 + 2
    assert count_parameters(model) == (learnable, learnable + vector, learnable, learnable + vector)


def test_counts_of_lc_blocks():
    model = nn.Sequential(LCConv2d(3, 4, 3, expansion=5), LCConv2d(4, 4, 3, expansion=2, freeze_spatial=False))
    with torch.no_grad():
        model[0].pointwise.weight[0] = 0
    assert count_parameters(model) == (80 + 32 + 288, 80 + 32 + 288 + 540, 80 + 32 + 288, 80 + 32 + 288 + 540 - 20)


@pytest.mark.parametrize('transform', TRANSFORMS.values(), ids=TRANSFORMS)
def test_counts_agree_with_autograd_and_the_state_dict(transform, stock):
    model = transform(stock())
    counts = count_parameters(model)
    statistics = {name for name, _ in stock().named_buffers()}
    stored = {n: t for n, t in model.state_dict().items() if n not in statistics and not n.endswith('record')}
    assert counts.learnable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counts.stored == sum(t.numel() for t in stored.values())


def test_streams_of_all_layers_of_resnet50_differ(resnet50):
    streams = {zlib.crc32(name.encode()) >> 8 for name in spatial(resnet50)}
    assert len(streams) == len(spatial(resnet50))


@pytest.mark.parametrize('build', [freeze_spatial, share_weights, lambda model: share_weights(model, recycle=4)])
@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_two_networks_count_twice(build, device):
    with torch.device(device):
        models = [build(timm.create_model('test_resnet')) for _ in range(2)]
    one, two = count_parameters(models[0]), count_parameters(nn.ModuleList(models))
    assert two == tuple(2 * number for number in one)
