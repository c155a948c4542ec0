"""Tools that hook, replace or reparameterise the two convolutions of an LC-Block act, as on two convolutions."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from timm_lc import LCConv2d, fold, share_weights

SLOW = 'another tool has hooked or replaced a convolution of an LC-Block: it computes by two convolutions'


def shared(**kwargs):
    return share_weights(nn.Sequential(LCConv2d(3, 4, 3, padding=1, bias=True, expansion=2)), **kwargs)[0]


KINDS = {
    'frozen': lambda: LCConv2d(3, 4, 3, padding=1, bias=True, expansion=2, seed=7),
    'learnable': lambda: LCConv2d(3, 4, 3, padding=1, bias=True, expansion=2, freeze_spatial=False),
    'shared': lambda: share_weights(nn.Sequential(LCConv2d(3, 4, 3, padding=1, bias=True, expansion=2)))[0],
    'recycled': lambda: share_weights(nn.Sequential(LCConv2d(3, 4, 3, padding=1, bias=True, expansion=2)), recycle=4)[
        0
    ],
}
every_kind = pytest.mark.parametrize('build', KINDS.values(), ids=KINDS)


class LowRank(nn.Module):
    """Wraps a convolution and adds a learned one to it, as adapters of other packages do."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.down = nn.Conv2d(base.in_channels, 2, 1, bias=False)
        self.up = nn.Conv2d(2, base.out_channels, 1, bias=False)

    @property
    def weight(self):
        return self.base_layer.weight

    @property
    def bias(self):
        return self.base_layer.bias

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


def by_pruning(block):
    prune.l1_unstructured(block.pointwise, 'weight', amount=0.5)
    return block.pointwise.weight_orig * block.pointwise.weight_mask, None


def by_old_weight_norm(block):
    weight_norm(block.pointwise)
    with torch.no_grad():
        block.pointwise.weight_g *= 2
    v, g = block.pointwise.weight_v, block.pointwise.weight_g
    return v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * g, None


def by_old_spectral_norm(block):
    block.eval()
    spectral_norm(block.pointwise)
    original = block.pointwise.weight_orig.flatten(1)
    sigma = block.pointwise.weight_u @ (original @ block.pointwise.weight_v)
    return block.pointwise.weight_orig / sigma, None


def by_an_adapter(block):
    block.pointwise = LowRank(block.pointwise)
    wrapped = block.pointwise
    return wrapped.weight, wrapped.up.weight.flatten(1) @ wrapped.down.weight.flatten(1)


def by_its_own_forward(block):
    conv = block.pointwise
    conv.forward = functools.partial(lambda x, conv: type(conv).forward(conv, x) * 1.0, conv=conv)
    return conv.weight, None


def by_a_hook_of_the_filters(block):
    block.spatial.register_forward_hook(lambda module, args, output: output * 2)
    return block.pointwise.weight * 2, None


TOOLS = [
    by_pruning, by_old_weight_norm, by_old_spectral_norm, by_an_adapter, by_its_own_forward,
    by_a_hook_of_the_filters,
]  # fmt: skip


@every_kind
@pytest.mark.parametrize('tool', TOOLS)
@pytest.mark.filterwarnings('ignore:.*weight_norm.* is deprecated:FutureWarning')
def test_a_tool_on_a_child_acts_as_on_two_convolutions(tool, build, images):
    block = build()
    bias, filters = block.pointwise.bias, block.spatial.weight
    weight, more = tool(block)
    weight = weight if more is None else weight + more[..., None, None]
    expected = F.conv2d(F.conv2d(images, filters, padding=1), weight, bias)
    with pytest.warns(UserWarning, match=SLOW):
        actual = block(images)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    for _ in range(2):  # a graph of the weight alone would be gone after the first
        with pytest.warns(UserWarning, match=SLOW):
            block(images).square().sum().backward()
    learned = [parameter for parameter in block.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in learned)


@every_kind
def test_a_pruned_block_reloads_with_its_outputs(build, images):
    block, twin = build(), build()
    for each in (block, twin):
        prune.l1_unstructured(each.pointwise, 'weight', amount=0.5)
    twin.load_state_dict(block.state_dict())
    with pytest.warns(UserWarning, match=SLOW):
        assert torch.equal(twin(images), block(images))


@every_kind
@pytest.mark.parametrize('register', ['register_forward_hook', 'register_full_backward_hook'])
def test_a_hook_sees_what_two_convolutions_compute_and_leaves_nothing(register, build, images):
    block, seen = build(), []
    expected = block(images)
    images = images.requires_grad_()
    handle = getattr(block.pointwise, register)(lambda module, before, after: seen.append(after))
    with pytest.warns(UserWarning, match=SLOW):
        output = block(images)
    output.sum().backward()
    assert len(seen) == 1
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    handle.remove()
    assert torch.equal(block(images), expected)  # without a warning, which is an error


@every_kind
@pytest.mark.parametrize('tool', TOOLS)
@pytest.mark.filterwarnings('ignore:.*weight_norm.* is deprecated:FutureWarning')
def test_merging_a_block_with_a_tool_on_it_is_refused(tool, build):
    block = build()
    tool(block)
    with pytest.raises(RuntimeError, match='of an LCConv2d is hooked, replaced or reparameterised by another tool'):
        block.fuse()


@every_kind
def test_folding_a_network_with_an_adapter_on_a_child_is_refused(build):
    block = build()
    by_an_adapter(block)
    with pytest.raises(RuntimeError, match='let that tool merge or remove its own first'):
        fold(nn.Sequential(block))


@every_kind
def test_a_compiled_block_follows_a_hook(build, images):
    block = build()
    expected = block(images)
    compiled = torch.compile(block, backend='eager')
    torch.testing.assert_close(compiled(images), expected)
    block.pointwise.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.warns(UserWarning, match=SLOW):
        torch.testing.assert_close(compiled(images), expected * 2, rtol=1e-4, atol=1e-5)


@every_kind
def test_the_tool_that_says_it_is_gone_leaves_one_convolution(build, images):
    block = build()
    prune.l1_unstructured(block.pointwise, 'weight', amount=0.5)
    prune.remove(block.pointwise, 'weight')
    expected = F.conv2d(F.conv2d(images, block.spatial.weight, padding=1), block.pointwise.weight, block.pointwise.bias)
    torch.testing.assert_close(block(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(copy.deepcopy(block).fuse()(images), expected, rtol=1e-4, atol=1e-5)


@every_kind
def test_a_parametrized_child_needs_no_second_convolution(build, images):
    block = build()
    parametrizations.weight_norm(block.pointwise)
    with torch.no_grad():
        block.pointwise.parametrizations.weight.original0 *= 2
    weight, bias = block.pointwise.weight, block.pointwise.bias
    expected = F.conv2d(F.conv2d(images, block.spatial.weight, padding=1), weight, bias)
    torch.testing.assert_close(block(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(block.fuse()(images), expected, rtol=1e-4, atol=1e-5)
