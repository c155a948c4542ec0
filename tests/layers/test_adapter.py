"""An adapted convolution against the three convolutions that define it, and modules that are held."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d, Conv2dSame, StdConv2d
from torch import nn
from torch.nn.utils import prune

from timm_lc.filters import FilterRecord
from timm_lc.layers.adapter import AdaptedConv2d, adapter_shape
from timm_lc.layers.held import hold_tensors, is_held, release_tensors

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def pair(minimum, maximum):
    return st.tuples(st.integers(minimum, maximum), st.integers(minimum, maximum))


@st.composite
def adapted(draw):
    """Draw the arguments of a convolution, depthwise ones included, and a rank."""
    groups = draw(st.integers(1, 4))
    depthwise = draw(st.booleans())
    kernel, dilation = draw(pair(1, 5)), draw(pair(1, 2))
    arguments = {
        'in_channels': groups if depthwise else groups * draw(st.integers(1, 3)),
        'out_channels': groups * draw(st.integers(1, 3)),
        'kernel_size': kernel,
        'stride': draw(pair(1, 3)),
        'padding': draw(pair(0, 3)),
        'dilation': dilation,
        'groups': groups,
        'bias': draw(st.booleans()),
    }
    return arguments, draw(st.integers(1, 9))


def layer_of(arguments, rank, dtype):
    """Return an adapted convolution whose coefficients are not zero, and a twin of its base that nobody adapted."""
    conv = nn.Conv2d(**arguments, dtype=dtype)
    twin = copy.deepcopy(conv)
    layer = AdaptedConv2d(conv, FilterRecord(adapter_shape(conv, rank), seed=5, stream=9))
    nn.init.normal_(layer.pointwise.weight)
    return layer, twin


def base_and_two_convolutions(x, conv, filters, coefficients):
    """Compute the adapted convolution by its definition: the base, and k x k then 1 x 1 convolutions beside it."""
    spatial = F.conv2d(x, filters, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    return conv(x) + F.conv2d(spatial, coefficients, groups=conv.groups)


@pytest.mark.parametrize('dtype', TOLERANCE)
@given(drawn=adapted(), seed=st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_one_convolution_equals_base_plus_two_convolutions(dtype, drawn, seed):
    arguments, rank = drawn
    torch.manual_seed(seed)
    layer, conv = layer_of(arguments, rank, dtype)
    x = torch.randn(2, conv.in_channels, 12, 12, dtype=dtype, requires_grad=True)
    coefficients = layer.pointwise.weight.detach().clone().requires_grad_()
    expected = base_and_two_convolutions(x, conv, layer.spatial.weight, coefficients)
    actual = layer(x)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (x, coefficients), upstream)
    found = torch.autograd.grad(actual, (x, layer.pointwise.weight), upstream)
    for one, other in zip((actual, *found), (expected, *wanted), strict=True):
        scale = other.abs().max().clamp_min(1)
        assert ((one - other).abs().max() / scale) <= TOLERANCE[dtype]


@pytest.mark.parametrize('kind', [nn.Conv2d, Conv2dSame])
def test_outputs_are_those_of_the_base_at_first(kind):
    conv = kind(6, 8, 3, stride=2, groups=2)
    x = torch.randn(2, 6, 11, 11)
    expected = conv(x)
    layer = AdaptedConv2d(conv, FilterRecord(adapter_shape(conv, 4)))
    assert torch.equal(layer(x), expected)


def test_only_the_coefficients_learn_and_only_they_and_the_record_are_saved():
    conv = nn.Conv2d(4, 6, 3)
    layer = AdaptedConv2d(conv, FilterRecord(adapter_shape(conv, 2)))
    assert [name for name, _ in layer.named_parameters()] == ['pointwise.weight']
    assert set(layer.state_dict()) == {'pointwise.weight', 'spatial.record'}


def test_filters_are_no_more_than_a_filter_has_values():
    assert adapter_shape(nn.Conv2d(8, 8, 3, groups=8), 12) == (9 * 8, 1, 3, 3)
    assert adapter_shape(nn.Conv2d(4, 8, 1), 12) == (4, 4, 1, 1)
    assert adapter_shape(nn.Conv2d(4, 8, 3), 12) == (12, 4, 3, 3)


def test_fuse_returns_the_ordinary_convolution_and_leaves_the_layer():
    layer, _ = layer_of({'in_channels': 4, 'out_channels': 6, 'kernel_size': 3, 'bias': True}, 3, torch.float32)
    x = torch.randn(1, 4, 8, 8)
    fused = layer.fuse()
    assert type(fused) is nn.Conv2d
    assert [name for name, _ in fused.named_parameters()] == ['weight', 'bias']
    torch.testing.assert_close(fused(x), layer(x))
    assert is_held(layer.base)


def by_pruning(layer):
    prune.l1_unstructured(layer.pointwise, 'weight', amount=0.5)
    with torch.no_grad():
        layer.pointwise.weight_orig *= 2
    return layer.pointwise.weight_orig * layer.pointwise.weight_mask, 1, 0


def by_another_convolution(layer):
    more = nn.Conv2d(layer.pointwise.in_channels, layer.pointwise.out_channels, 1, bias=False)
    weight = layer.pointwise.weight + more.weight
    layer.pointwise = nn.Sequential(layer.pointwise)
    layer.pointwise.forward = lambda x: F.conv2d(x, weight)
    return weight, 1, 0


def by_a_hook_of_the_filters(layer):
    layer.spatial.register_forward_hook(lambda module, args, output: output * 2)
    return layer.pointwise.weight, 2, 0


def by_a_hook_of_the_base(layer):
    layer.base.register_forward_hook(lambda module, args, output: output + 1)
    return layer.pointwise.weight, 1, 1


TOOLS = [by_pruning, by_another_convolution, by_a_hook_of_the_filters, by_a_hook_of_the_base]


@pytest.mark.parametrize('tool', TOOLS)
@pytest.mark.parametrize('kind', [nn.Conv2d, Conv2dSame])
def test_a_tool_on_a_child_acts_as_on_three_convolutions(tool, kind):
    conv = kind(4, 6, 3, stride=2, bias=True)
    twin = copy.deepcopy(conv)
    layer = AdaptedConv2d(conv, FilterRecord(adapter_shape(conv, 3)))
    nn.init.normal_(layer.pointwise.weight)
    coefficients, factor, offset = tool(layer)
    plain, x = copy.deepcopy(twin), torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        plain.weight.copy_(torch.einsum('or,rikl->oikl', coefficients.flatten(1), layer.spatial.weight))
        plain.bias.zero_()
        expected = twin(x) + factor * plain(x) + offset
    for _ in range(2):  # the graph of a weight that a tool computed once would be gone after the first
        with pytest.warns(UserWarning, match='it computes by three convolutions'):
            output = layer(x)
        torch.testing.assert_close(output, expected)
        if tool is by_pruning:
            output.sum().backward()
    with pytest.raises(RuntimeError, match='of an AdaptedConv2d is hooked, replaced or reparameterised'):
        layer.fuse()


def test_release_gives_the_convolution_back():
    conv = nn.Conv2d(4, 6, 3)
    before = {name: tensor.clone() for name, tensor in conv.state_dict().items()}
    layer = AdaptedConv2d(conv, FilterRecord(adapter_shape(conv, 2)))
    assert layer.release() is conv
    assert list(dict(conv.named_parameters())) == ['weight', 'bias']
    assert all(torch.equal(before[name], tensor) for name, tensor in conv.state_dict().items())


def test_the_activation_of_the_filters_never_exists():
    conv = nn.Conv2d(2, 2, 3, padding=1)
    layer = AdaptedConv2d(conv, FilterRecord(adapter_shape(conv, 16)))
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t):
        layer(torch.randn(3, 2, 20, 20, requires_grad=True))
    assert (3, 16, 20, 20) not in shapes
    assert (3, 2, 20, 20) in shapes


def test_under_autocast_the_weight_is_formed_in_float32_and_cast_once():
    layer, _ = layer_of({'in_channels': 4, 'out_channels': 6, 'kernel_size': 3}, 3, torch.float32)
    x = torch.randn(1, 4, 8, 8)
    weight = layer.effective_weight()
    expected = F.conv2d(x.bfloat16(), weight.bfloat16(), layer.base.bias.bfloat16())
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize(
    'change',
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), torch.fx.symbolic_trace, torch.jit.script],
    ids=['deepcopy', 'pickle', 'fx', 'script'],
)
def test_layers_survive(change):
    arguments = {'in_channels': 4, 'out_channels': 6, 'kernel_size': 3, 'groups': 2}
    layer, _ = layer_of(arguments, 3, torch.float32)
    x = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(change(layer)(x), layer(x))


@pytest.mark.parametrize('kind', [nn.Conv2d, Conv2dSame])
def test_layers_compile_in_one_graph(kind):
    conv = kind(6, 8, 3, stride=2, groups=2)
    layer = AdaptedConv2d(conv, FilterRecord(adapter_shape(conv, 4)))
    nn.init.normal_(layer.pointwise.weight)
    x = torch.randn(2, 6, 11, 11)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend='aot_eager')(x), layer(x))


def test_a_base_lost_on_the_meta_device_is_missed():
    conv = nn.Conv2d(4, 6, 3, device='meta')
    layer = AdaptedConv2d(conv, FilterRecord(adapter_shape(conv, 2)))
    assert layer(torch.zeros(1, 4, 8, 8, device='meta')).shape == (1, 6, 6, 6)
    with pytest.raises(RuntimeError, match='base of a network adapted on the meta device'):
        layer.to_empty(device='cpu')(torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize('rank', [0, -1, 2.0, True, None])
def test_rank_must_be_a_positive_integer(rank):
    with pytest.raises(ValueError, match='`rank` must be a positive integer, got'):
        adapter_shape(nn.Conv2d(4, 6, 3), rank)


def test_standardised_weights_have_no_adapter():
    conv = StdConv2d(4, 6, 3)
    with pytest.raises(ValueError, match='a StdConv2d, which has no adapter'):
        AdaptedConv2d(conv, FilterRecord((2, 4, 3, 3)))


@pytest.mark.parametrize('kind', [nn.BatchNorm2d, BatchNormAct2d])
def test_a_held_norm_computes_as_in_evaluation_and_comes_back(kind):
    norm = kind(4)
    nn.init.uniform_(norm.running_mean)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    x = torch.randn(8, 4, 5, 5)
    expected = copy.deepcopy(norm).eval()(x)
    hold_tensors(norm)
    held = pickle.loads(pickle.dumps(copy.deepcopy(norm)))
    for module in (norm, held):
        assert torch.equal(module.train()(x), expected)
        assert not module.state_dict()
        assert not list(module.parameters())
    release_tensors(norm)
    assert type(norm) is kind
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())
    assert not torch.equal(norm.train()(x), expected)


def test_a_held_module_remembers_what_did_not_learn():
    linear = nn.Linear(2, 3)
    linear.bias.requires_grad_(False)
    hold_tensors(linear)
    release_tensors(linear)
    assert [(name, p.requires_grad) for name, p in linear.named_parameters()] == [('weight', True), ('bias', False)]
