"""Frozen and shared convolutions, and the LC-Block against the two convolutions that define it."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from timm_lc import LCConv2d, add_linear_combinations, freeze_spatial, share_weights
from timm_lc.layers.shared import SharedFilters

SUBCLASSES = [nn.Conv2d, Conv2dSame, StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def pair(minimum, maximum):
    return st.tuples(st.integers(minimum, maximum), st.integers(minimum, maximum))


@st.composite
def blocks(draw):
    """Draw the arguments of an LC-Block, the size of its input, and how its filters are held."""
    groups = draw(st.integers(1, 3))
    kernel, dilation = draw(pair(1, 5)), draw(pair(1, 2))
    extent = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = draw(st.one_of(pair(0, 3), st.integers(0, 3), st.sampled_from(['same', 'valid'])))
    stride = (1, 1) if padding == 'same' else draw(st.one_of(pair(1, 3), st.integers(1, 3)))
    kept = draw(st.sampled_from(['frozen', 'learnable', 'shared', 'recycled']))
    arguments = {
        'in_channels': groups * draw(st.integers(1, 3)),
        'out_channels': groups * draw(st.integers(1, 3)),
        'kernel_size': kernel,
        'stride': stride,
        'padding': padding,
        'dilation': dilation,
        'groups': groups,
        'bias': draw(st.booleans()),
        'padding_mode': draw(st.sampled_from(['zeros', 'reflect', 'replicate', 'circular'])),
        'expansion': draw(st.integers(1, 4)),
        'freeze_spatial': kept != 'learnable',
    }
    size = [draw(st.integers(max(extent[i] + 1, 5), extent[i] + 6)) for i in (0, 1)]
    return arguments, size, kept


def borders(arguments):
    """Return the padding as `F.pad` wants it: left, right, top, bottom."""
    padding = arguments['padding']
    if padding == 'same':  # an odd one goes to the end, as in PyTorch
        total = [d * (k - 1) for d, k in zip(arguments['dilation'], arguments['kernel_size'], strict=True)]
        return [border for t in reversed(total) for border in (t // 2, t - t // 2)]
    padding = 0 if padding == 'valid' else padding
    p_h, p_w = (padding, padding) if isinstance(padding, int) else padding
    return [p_w, p_w, p_h, p_h]


def two_convolutions(x, filters, pointwise, bias, arguments):
    """Compute an LC-Block by its definition (section 4.2): k x k convolution, then 1x1 convolution."""
    mode = arguments['padding_mode']
    x = F.pad(x, borders(arguments), mode='constant' if mode == 'zeros' else mode)
    x = F.conv2d(x, filters, None, arguments['stride'], 0, arguments['dilation'], arguments['groups'])
    return F.conv2d(x, pointwise, bias, groups=arguments['groups'])


def held(arguments, kept, dtype):
    """Return a block whose filters are learnable, frozen, shared or recycled."""
    block = LCConv2d(**arguments, seed=3, dtype=dtype)
    if kept in ('shared', 'recycled') and max(block.kernel_size) > 1:
        share_weights(block, seed=3, recycle=1 if kept == 'shared' else 3)
    return block


def gradients_of(output, tensors, square=False):
    """Return gradients of all tensors for a fixed, random gradient of the output."""
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return torch.autograd.grad(output, tensors, (weight**2 if square else weight).to(output.dtype))


def exact_results(x, filters, learned, arguments, power=1):
    """Return output and gradients of x and `learned` in float64; power 2 sums the squares of all the terms instead."""
    x, *values = [t.detach().double().pow(power).requires_grad_() for t in (x, *learned.values())]
    named = dict(zip(learned, values, strict=True))
    filters = named.get('spatial.weight', filters.detach().double().pow(power))
    output = two_convolutions(x, filters, named['pointwise.weight'], named.get('pointwise.bias'), arguments)
    return [output, *gradients_of(output, [x, *values], square=power == 2)]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize('dtype', TOLERANCE)
@given(drawn=blocks())
@settings(max_examples=250, deadline=None, derandomize=True)
def test_lc_block_equals_two_convolutions_with_every_gradient(dtype, drawn):
    arguments, size, kept = drawn
    torch.manual_seed(0)
    block = held(arguments, kept, dtype)
    x = torch.randn(2, arguments['in_channels'], *size, dtype=dtype, requires_grad=True)
    learned = dict(block.named_parameters())
    output = block(x)
    results = [output, *gradients_of(output, [x, *learned.values()])]

    assert ('spatial.weight' in learned) == (kept == 'learnable')
    expected = exact_results(x, block.spatial.weight, learned, arguments)
    squares = exact_results(x, block.spatial.weight, learned, arguments, power=2)
    for actual, wanted, square in zip(results, expected, squares, strict=True):
        assert actual.shape == wanted.shape
        size = square.max().sqrt()  # of a sum of these terms with random signs: the sum itself may cancel
        assert (actual.double() - wanted).abs().max() <= TOLERANCE[dtype] * size


@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('kernel_size', [3, (1, 5), 7])
def test_lc_block_filters_are_those_of_its_seed(kernel_size, groups, filters_of):
    block = LCConv2d(4, 6, kernel_size, groups=groups, expansion=5, seed=9)
    k_h, k_w = block.kernel_size
    expected = filters_of((30, 4 // groups, k_h, k_w), seed=9, name='spatial')
    assert torch.equal(block.spatial.weight, expected)
    assert block.pointwise.weight.shape == (6, 30 // groups, 1, 1)


def test_learnable_lc_block_starts_from_the_frozen_filters():
    frozen, learnable = (LCConv2d(4, 6, 3, expansion=2, seed=1, freeze_spatial=flag) for flag in (True, False))
    assert torch.equal(frozen.spatial.weight, learnable.spatial.weight)
    assert [name for name, _ in learnable.named_parameters()] == ['spatial.weight', 'pointwise.weight']
    assert [name for name, _ in frozen.named_parameters()] == ['pointwise.weight']


@pytest.mark.parametrize('recycle', [2, 3, 16])
def test_recycled_lc_block_repeats_whole_filters(recycle, filters_of):
    block = share_weights(LCConv2d(4, 8, 3, expansion=4, seed=2), seed=2, recycle=recycle)
    period = -(-32 // recycle) * 36
    assert torch.equal(block.spatial.weight, filters_of((32, 4, 3, 3), seed=2, period=period))
    assert block.spatial.shared.vector.numel() == period


def root_mean_square(tensor):
    return float(tensor.detach().double().square().mean().sqrt())


@pytest.mark.parametrize('expansion', [1, 4, 32])
@pytest.mark.parametrize('kept', ['frozen', 'learnable', 'recycled'])
@pytest.mark.parametrize('groups', [1, 4])
def test_bf16_autocast_is_no_further_from_float64_than_two_convolutions(expansion, kept, groups):
    torch.manual_seed(0)
    arguments = {
        'in_channels': 16,
        'out_channels': 16,
        'kernel_size': (3, 3),
        'stride': 1,
        'padding': 1,
        'groups': groups,
    }
    arguments |= {'dilation': (1, 1), 'bias': True, 'padding_mode': 'zeros', 'expansion': expansion}
    block = held(arguments | {'freeze_spatial': kept != 'learnable'}, kept, torch.float32)
    filters = block.spatial.weight.detach()
    x = torch.randn(4, 16, 12, 12, requires_grad=True)
    learned = dict(block.named_parameters())
    exact = exact_results(x, filters, learned, arguments)
    with torch.autocast('cpu', torch.bfloat16):
        output = block(x)
        bias = learned['pointwise.bias']
        twin = two_convolutions(x, learned.get('spatial.weight', filters), learned['pointwise.weight'], bias, arguments)
    ours, theirs = ([y, *gradients_of(y, [x, *learned.values()])] for y in (output, twin))
    assert output.dtype == torch.bfloat16
    for one, other, truth in zip(ours, theirs, exact, strict=True):
        # 5 %: the errors are independent roundings of at least 16 numbers each, not the same ones
        assert root_mean_square(one - truth) <= 1.05 * root_mean_square(other - truth)


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


@pytest.mark.parametrize('kept', ['frozen', 'learnable', 'shared', 'recycled'])
@pytest.mark.parametrize('groups', [1, 2])
def test_expanded_activation_never_exists(kept, groups):
    arguments = {
        'in_channels': 4,
        'out_channels': 4,
        'kernel_size': (3, 3),
        'stride': 1,
        'padding': 1,
        'groups': groups,
    }
    arguments |= {'dilation': 1, 'bias': True, 'padding_mode': 'zeros', 'expansion': 16}
    block = held(arguments | {'freeze_spatial': kept != 'learnable'}, kept, torch.float32)
    x = torch.randn(8, 4, 20, 20, requires_grad=True)
    with LargestTensor() as ours:
        block(x).sum().backward()
    with LargestTensor() as theirs:
        weight = block.spatial.weight.detach().requires_grad_()
        two_convolutions(x, weight, block.pointwise.weight, block.pointwise.bias, arguments).sum().backward()
    assert theirs.numel == 8 * (16 * 4) * 20 * 20
    assert ours.numel == x.numel()


@pytest.mark.parametrize('kept', ['frozen', 'learnable', 'shared', 'recycled'])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('padding', [1, 'same'])
def test_fuse_gives_the_plain_convolution(kept, bias, padding):
    arguments = {'in_channels': 4, 'out_channels': 6, 'kernel_size': 3, 'padding': padding, 'groups': 2, 'bias': bias}
    block = held(
        arguments | {'expansion': 3, 'freeze_spatial': kept != 'learnable', 'padding_mode': 'reflect'}, kept, None
    )
    fused, x = block.eval().fuse(), torch.randn(2, 4, 9, 9)
    assert type(fused) is nn.Conv2d
    assert not fused.training
    assert (fused.bias is not None) == bias
    assert all(p.requires_grad for p in fused.parameters())
    torch.testing.assert_close(fused(x), block(x), rtol=1e-5, atol=1e-6)


def test_fuse_multiplies_in_float64():
    block = LCConv2d(4, 4, 3, expansion=128)
    w, p = block.spatial.weight.double().flatten(1), block.pointwise.weight.double().flatten(1)
    assert torch.equal(block.fuse().weight, (p @ w).float().view(4, 4, 3, 3))


@pytest.mark.parametrize('stride', [1, 2])
def test_lc_block_of_a_same_padded_convolution_pads_alike(stride):
    conv = Conv2dSame(4, 6, 3, stride=stride)
    model = add_linear_combinations(nn.Sequential(conv), 2)
    x = torch.randn(2, 4, 11, 8)
    total = [max((-(-s // stride) - 1) * stride + 3 - s, 0) for s in (8, 11)]
    padded = F.pad(x, [border for t in total for border in (t // 2, t - t // 2)])
    block = model[0]
    expected = F.conv2d(
        F.conv2d(padded, block.spatial.weight, stride=stride), block.pointwise.weight, block.pointwise.bias
    )
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
    assert type(block.fuse()) is Conv2dSame
    torch.testing.assert_close(block.fuse()(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_lc_block_takes_a_dtype(dtype, filters_of):
    block = LCConv2d(4, 4, 3, expansion=2, dtype=dtype)
    assert {p.dtype for p in block.parameters()} == {block.spatial.weight.dtype} == {dtype}
    assert torch.equal(block.spatial.weight, filters_of((8, 4, 3, 3), name='spatial').to(dtype))


def test_lc_block_draws_only_its_pointwise_weights_from_the_global_generator():
    torch.manual_seed(0)
    nn.Conv2d(12, 4, 1)
    expected = torch.get_rng_state()
    torch.manual_seed(0)
    LCConv2d(4, 4, 3, expansion=3, bias=True)
    assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.parametrize('expansion', [0, -1, 1.5, True])
def test_lc_block_refuses_an_expansion_that_is_no_positive_integer(expansion):
    with pytest.raises(ValueError, match=f'`expansion` must be a positive integer, got {expansion}'):
        LCConv2d(4, 4, 3, expansion=expansion)


@pytest.mark.parametrize('seed', [-1, 2**32, 0.5])
def test_lc_block_refuses_a_seed_outside_the_range(seed):
    with pytest.raises(ValueError, match=f'`seed` must be an integer in .*, got {seed}'):
        LCConv2d(4, 4, 3, seed=seed)


def test_lc_block_prints_its_expansion():
    assert 'kernel_size=(3, 3), expansion=7' in repr(LCConv2d(4, 4, 3, expansion=7))


@pytest.mark.parametrize('transform', [freeze_spatial, share_weights])
@pytest.mark.parametrize('cls', SUBCLASSES)
def test_frozen_convolution_of_any_class_computes_as_the_learnable_one(cls, transform, filters_of):
    model = transform(nn.Sequential(cls(4, 8, 3, stride=2)), seed=3)
    twin, x = cls(4, 8, 3, stride=2), torch.randn(2, 4, 9, 9)
    state = {name: p.detach() for name, p in model[0].named_parameters()}
    name = '0' if transform is freeze_spatial else None
    twin.load_state_dict(state | {'weight': filters_of((8, 4, 3, 3), seed=3, name=name)})
    assert isinstance(model[0], cls)
    assert torch.equal(model(x), twin(x))


@pytest.mark.parametrize('cls', SUBCLASSES)
def test_frozen_convolution_keeps_its_class_and_learns_all_but_its_filters(cls):
    conv = cls(4, 8, 3)
    before = {name for name, _ in conv.named_parameters()}
    freeze_spatial(conv)
    assert type(conv) is cls
    assert {name for name, _ in conv.named_parameters()} == before - {'weight'}
    assert not conv.weight.requires_grad


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def through_load_state_dict(model):
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    return model


MOVES = {
    'float64': lambda model: model.to(torch.float64),
    'half': lambda model: model.half(),
    'half and back': lambda model: model.half().float(),
    'deepcopy': copy.deepcopy,
    'pickle': through_pickle,
    'torch.save': through_torch_save,
    'channels_last': lambda model: model.to(memory_format=torch.channels_last),
    'load_state_dict': through_load_state_dict,
    'deepcopy, half, pickle': lambda model: through_pickle(copy.deepcopy(model).half()),
}


@pytest.mark.parametrize('recycle', [1, 4])
@pytest.mark.parametrize('move', MOVES.values(), ids=MOVES)
def test_shared_filters_stay_one_vector(move, recycle, filters_of):
    convolutions = [
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 16, (1, 3)),
        StdConv2d(16, 8, 3, groups=2),
        LCConv2d(8, 8, 3, expansion=2),
    ]
    model = move(share_weights(nn.Sequential(*convolutions), seed=6, recycle=recycle))
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    vectors = {id(m.vector): m.vector for m in model.modules() if isinstance(m, SharedFilters)}
    period = 16 * 8 * 9 // recycle
    assert len(convs) == 4
    assert len(vectors) == 1
    assert [vector.shape for vector in vectors.values()] == [(period,)]
    for conv in convs:
        expected = filters_of(conv.weight.shape, seed=6, period=period)
        torch.testing.assert_close(conv.weight.float(), expected, rtol=2e-3, atol=1e-4)  # half precision rounds
        assert conv.shared.vector is next(iter(vectors.values()))


def test_copies_of_a_shared_network_do_not_share_with_it():
    model = share_weights(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].shared.vector.zero_()
    assert model[0].weight.abs().sum() > 0
    assert twin[1].weight.abs().sum() == 0


@pytest.mark.filterwarnings('ignore')  # of its deprecation, and of what tracing fixes
@pytest.mark.parametrize('recycle', [1, 2, 16])
def test_torchs_older_exporter_writes_shared_blocks(recycle, images):
    """It loses track of sizes that are computed, and a convolution needs those of its kernel."""
    onnxruntime = pytest.importorskip('onnxruntime', reason="needs onnxruntime: pip install 'timm_lc[onnx]'")
    block = share_weights(nn.Sequential(LCConv2d(3, 4, 3, expansion=8)), recycle=recycle).eval()
    buffer = io.BytesIO()
    names = {'input_names': ['images'], 'output_names': ['outputs']}
    torch.onnx.export(block, (images,), buffer, dynamo=False, dynamic_axes={'images': {0: 'batch'}}, **names)
    outputs = onnxruntime.InferenceSession(buffer.getvalue()).run(None, {'images': images[:1].numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(outputs), block(images[:1]).detach(), rtol=1e-4, atol=1e-5)
