"""The LC-Block, computed as one convolution (definition 3.1, section 4.2, figure 5)."""

import dataclasses
import inspect
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, pad_same
from timm.models import register_notrace_module
from torch import Tensor, nn
from torch.nn.common_types import _size_2_t

from timm_lc.arguments import check_count, device_of
from timm_lc.filters import FilterRecord, check_seed
from timm_lc.layers.frozen import filter_shape, freeze_convolution, named_record, refuse_unfilled, seed_convolution
from timm_lc.layers.implicit import ImplicitLCConv2d, other_operation, plain_convolution
from timm_lc.layers.recorded import RECORD
from timm_lc.layers.shared import repeat_to, trace_as_leaf
from timm_lc.layers.sliced import is_shared, present_filters, settle_lent

__all__ = ['LCConv2d', 'combine', 'other_forms']


def _product(pointwise: Tensor, filters: Tensor, groups: int) -> Tensor:
    """Multiply (C_out, R/groups) by (R, C_in/groups*k_h*k_w), block-diagonally over groups."""
    if groups == 1:
        return pointwise @ filters
    blocks = pointwise.unflatten(0, (groups, -1)) @ filters.unflatten(0, (groups, -1))  # (groups, C_out/groups, ...)
    return blocks.flatten(0, 1)


@torch.jit.unused
def _may_autocast(device: str) -> bool:
    """Return whether products are cast on a device now, or may be whenever what is compiled now runs."""
    if device == 'meta':  # which has no autocast
        return False
    return torch.compiler.is_compiling() or torch.is_autocast_enabled(device)


def combine(pointwise: Tensor, filters: Tensor, groups: int) -> Tensor:
    """Return P W as (C_out, C_in/groups, k_h, k_w), in the type of the tensors even under autocast.

    TorchScript ignores a disabled autocast, so a scripted block forms the product in autocast's type.
    """
    shape = [-1, filters.shape[1], filters.shape[2], filters.shape[3]]
    if torch.jit.is_scripting() or not _may_autocast(filters.device.type):
        return _product(pointwise.flatten(1), filters.flatten(1), groups).view(shape)
    # entering a context takes as long as a small product
    with torch.autocast(filters.device.type, enabled=False):
        return _product(pointwise.flatten(1), filters.flatten(1), groups).view(shape)


def _combine_shared(pointwise: Tensor, vector: Tensor, scale: float, groups: int, shape: list[int]) -> Tensor:
    """Return P W for filters (R, C_in/groups, k_h, k_w) sliced from `vector`, scaling the product."""
    rows, fan = shape[0], shape[1] * shape[2] * shape[3]
    period, weights = vector.numel() // fan, pointwise.flatten(1)  # (C_out, R/groups)
    if groups == 1 and period < rows and period * fan == vector.numel():  # filters recur: sum their coefficients first
        if rows % period:  # padding copies, by nothing too
            weights = F.pad(weights, [0, -rows % period])
        weights = weights.view(weights.shape[0], -1, period).sum(1)  # (C_out, period)
        rows = period
    filters = repeat_to(vector, rows * fan).view(rows, shape[1], shape[2], shape[3])
    return combine(weights, filters, groups) * scale


torch.fx.wrap('combine')
torch.fx.wrap('_combine_shared')


@register_notrace_module
class LCConv2d(nn.Module):
    """LC-Block: spatial convolution with E*C_out filters, then pointwise to C_out, computed as one (definition 3.1).

    P * (W * X) = (P W) * X, so each forward forms P W and convolves once: the E*C_out-channel activation never exists.
    Evaluation forms it at each call too, for no copy can be known to be fresh: `fold` what is deployed.
    The two convolutions are the children `spatial`, W, and `pointwise`, P; neither is called, unless another tool has
    hooked, replaced or reparameterised one of them: then both are, one after the other, at a cost that it tells once.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size: k or (k_h, k_w).
        stride: As in `nn.Conv2d`, like `padding`, `dilation`, `groups`, `padding_mode`; groups hold for both.
        bias: Whether the pointwise convolution has a bias.
        expansion: E, spatial filters for each output channel.
        freeze_spatial: Whether the filters keep their random values.
        seed: Filter seed in [0, 2**32); blocks of one shape and seed have the same filters.
        implicit: Whether to return an `ImplicitLCConv2d`, which learns P W itself and trains alike under SGD.
        filters: Filter set, 'uniform' as in the paper or 'orthogonal' (see `freeze_spatial`); in the implicit form
            'expected' as well, the limit of many filters.

    Shape:
        (N, C_in, H, W) -> (N, C_out, H', W'), as `nn.Conv2d`.

    Example:
        >>> block = LCConv2d(16, 32, 3, padding=1, expansion=8)
        >>> block(torch.zeros(1, 16, 8, 8)).shape, block.spatial.weight.shape
        (torch.Size([1, 32, 8, 8]), torch.Size([256, 16, 3, 3]))
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return a block of this form, or of the implicit one, a class of its own."""
        names = list(inspect.signature(cls.__init__).parameters)[1:]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        return cls._implicit(**given) if given.pop('implicit', False) else super().__new__(cls)

    @classmethod
    def _implicit(
        cls,
        *,
        expansion: int = 1,
        freeze_spatial: bool = True,
        seed: int = 0,
        filters: str = 'uniform',
        device: Any = None,
        **geometry: Any,
    ) -> ImplicitLCConv2d:
        if not freeze_spatial:
            raise ValueError('`implicit=True` needs `freeze_spatial=True`: G is fixed')
        conv = nn.Conv2d(**{'bias': False, **geometry}, device='meta')
        record = named_record(conv, 'spatial', check_seed(seed), 1.0, filters, implicit=True)
        return ImplicitLCConv2d.from_convolution(conv, check_count('expansion', expansion), record, device)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        stride: _size_2_t = 1,
        padding: _size_2_t | str = 0,
        dilation: _size_2_t = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = 'zeros',
        expansion: int = 1,
        freeze_spatial: bool = True,
        implicit: bool = False,
        seed: int = 0,
        filters: str = 'uniform',
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_count('expansion', expansion)
        conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, 'meta', dtype
        )
        record = named_record(conv, 'spatial', check_seed(seed), 1.0, filters)
        self._build(conv, expansion, record, freeze_spatial, device)

    @classmethod
    def from_convolution(
        cls, conv: nn.Conv2d, expansion: int, record: FilterRecord, *, freeze_spatial: bool, implicit: bool = False
    ) -> Any:
        """Return an LC-Block of the same geometry as `conv`, with filters of the record's seed, stream and gain.

        Raises:
            ValueError: If the class of `conv` has no meaning as an LC-Block, as with standardised weights.
        """
        if type(conv) not in (nn.Conv2d, Conv2dSame):
            raise ValueError(f'a {type(conv).__name__} has no LC-Block: `expansion` needs nn.Conv2d or Conv2dSame')
        if implicit:
            return ImplicitLCConv2d.from_convolution(conv, expansion, record, conv.weight.device)
        block = cls.__new__(cls)
        nn.Module.__init__(block)
        block._build(conv, check_count('expansion', expansion), record, freeze_spatial, conv.weight.device)
        return block.train(conv.training)

    def _build(self, conv: nn.Conv2d, expansion: int, record: FilterRecord, freeze_spatial: bool, device: Any) -> None:
        self.in_channels, self.out_channels, self.groups = conv.in_channels, conv.out_channels, conv.groups
        self.kernel_size, self.stride, self.padding = conv.kernel_size, conv.stride, conv.padding
        self.dilation, self.padding_mode = conv.dilation, conv.padding_mode
        self.expansion = expansion
        trace_as_leaf(self)
        self.pads_same = isinstance(conv, Conv2dSame)
        rows, has_bias, dtype = expansion * conv.out_channels, conv.bias is not None, conv.weight.dtype
        # built empty: drawing PyTorch's own initial filters would cost time and move the global random state
        self.spatial = plain_convolution(conv, rows, bias=False).to_empty(device=device_of(device))
        self.pointwise = nn.Conv2d(
            rows, conv.out_channels, 1, groups=conv.groups, bias=has_bias, device=device, dtype=dtype
        )
        record = dataclasses.replace(record, shape=filter_shape(self.spatial))
        (freeze_convolution if freeze_spatial else seed_convolution)(self.spatial, record)

    def effective_weight(self) -> Tensor:
        """Return P W, (C_out, C_in/groups, k_h, k_w)."""
        if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript skips this only if the conditions are nested
            if is_shared(self.spatial) and not torch.compiler.is_compiling():
                settle_lent(self.spatial.shared)
        if hasattr(self.spatial, 'shared'):
            lent = self.spatial.lent  # once: another thread may take it back
            if lent is not None:
                return combine(self.pointwise.weight, lent, self.groups)
            k_h, k_w = self.kernel_size
            shape = [self.expansion * self.out_channels, self.in_channels // self.groups, k_h, k_w]
            vector, scale = self.spatial.shared.vector, self.spatial.filter_scale
            weight = _combine_shared(self.pointwise.weight, vector, scale, self.groups, shape)
            return weight.view(self.out_channels, shape[1], k_h, k_w)  # which a tracer of sizes loses track of
        return combine(self.pointwise.weight, self.spatial.weight, self.groups)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C_in, H, W) with the effective weight."""
        if not torch.jit.is_scripting():
            # `spatial`, whose hook refuses, is never called
            if getattr(self.spatial, 'is_unfilled', False):
                refuse_unfilled(self.spatial, x)
            if not (is_plain(self.spatial) and is_plain(self.pointwise)):
                warn_of_hooks('an LC-Block', 'two convolutions, with the activation of E*C_out channels')
                return self.pointwise(self.spatial(x))
        weight = self.effective_weight()
        if self.pads_same:
            x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return self.spatial._conv_forward(x, weight, self.pointwise.bias)

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """Return the ordinary convolution with the same outputs; P W is formed in float64.

        Raises:
            RuntimeError: If another tool has hooked or replaced one of the two convolutions.
        """
        if getattr(self.spatial, 'is_unfilled', False):
            refuse_unfilled(self.spatial, None)
        refuse_hooked(self)
        fused = plain_convolution(self.spatial, self.out_channels, bias=self.pointwise.bias is not None)
        fused = fused.to_empty(device=self.pointwise.weight.device).train(self.training)
        filters = present_filters(self.spatial)
        weight = combine(self.pointwise.weight.double(), filters.double(), self.groups)
        fused.weight.copy_(weight)
        if fused.bias is not None and self.pointwise.bias is not None:
            fused.bias.copy_(self.pointwise.bias)
        return fused

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Refuse a checkpoint of a form with other tensors, which a loader that is not strict would leave out."""
        super()._load_from_state_dict(state_dict, prefix, *args)
        args[-1].extend(other_forms(state_dict, prefix))

    def extra_repr(self) -> str:
        """Return the geometry and the expansion."""
        return f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, expansion={self.expansion}'


def other_forms(state_dict: dict[str, Tensor], prefix: str, *, is_normed: bool = False) -> list[str]:
    """Return the errors of a checkpoint that has something else at `prefix` than an LC-Block of two convolutions.

    `is_normed`: with a norm between them.
    """
    if prefix + 'lc_record' in state_dict:  # of which P is not the only one that gives P W
        found = (
            'the checkpoint is of implicit LC-Blocks: build the model with `implicit=True`, load it, then call '
            '`timm_lc.to_explicit(model)`'
        )
    elif prefix + 'pointwise.weight' in state_dict:
        found = other_operation(state_dict, prefix, is_normed=is_normed)
    elif {prefix + 'weight', prefix + RECORD} & state_dict.keys():
        found = 'the checkpoint has one convolution here: it is of a network without LC-Blocks'
    else:
        found = ''
    return [f'layer `{prefix[:-1]}`: {found}'] if found else []


def is_plain(conv: nn.Module) -> bool:
    """Return whether `conv` computes with its weight alone: what a tool hangs on it acts when it is called."""
    # not the class: torch.export and parametrizations make subclasses, which compute as their base
    if getattr(type(conv), 'forward', None) not in (nn.Conv2d.forward, Conv2dSame.forward):
        return False
    ours = all(hook is refuse_unfilled for hook in conv._forward_pre_hooks.values())  # of the meta device
    hooked = not ours or conv._forward_hooks or conv._backward_hooks or conv._backward_pre_hooks
    return not hooked and 'forward' not in conv.__dict__


def warn_of_hooks(layer: str, way: str) -> None:
    """Warn, once, that a layer calls its children, on which another tool has hung something."""
    warnings.warn(
        f'another tool has hooked or replaced a convolution of {layer}: it computes by {way} between them, which takes '
        'more time and memory',
        stacklevel=3,
    )


def refuse_hooked(layer: nn.Module) -> None:
    """Raise `RuntimeError` if another tool has hooked or replaced a child of `layer`, which merging would lose."""
    for name, child in layer.named_children():
        if not is_plain(child):
            raise RuntimeError(
                f'`{name}` of an {type(layer).__name__} is hooked, replaced or reparameterised by another tool, which '
                'merging would lose: let that tool merge or remove its own first'
            )
