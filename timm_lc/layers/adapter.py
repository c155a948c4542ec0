"""A trained convolution with a learned linear combination of random filters added, computed as one convolution.

This is the LC-Block (definition 3.1, section 4.2) with a base: W' = W_0 + P W, where W comes from a seed, W_0 is that
of a trained network, and P alone is learned.
"""

import copy
from typing import Any

import torch
from timm.layers import Conv2dSame, pad_same
from timm.models import register_notrace_module
from torch import Tensor, nn

from timm_lc.arguments import check_count
from timm_lc.filters import FilterRecord
from timm_lc.layers.frozen import freeze_convolution, refuse_unfilled
from timm_lc.layers.held import hold_tensors, release_tensors
from timm_lc.layers.implicit import plain_convolution
from timm_lc.layers.lc_conv import combine, is_plain, refuse_hooked, warn_of_hooks

__all__ = ['AdaptedConv2d', 'adapter_shape', 'check_class']


def check_class(conv: nn.Module, name: str = '') -> None:
    """Raise `ValueError` if the class of `conv` does not convolve with its weight alone."""
    if type(conv) not in (nn.Conv2d, Conv2dSame):
        kind = type(conv).__name__
        where = f'layer `{name}` is' if name else '`conv` is'
        raise ValueError(f'{where} a {kind}, which has no adapter: it must be nn.Conv2d or Conv2dSame')


def adapter_shape(conv: nn.Conv2d, rank: int) -> tuple[int, int, int, int]:
    """Return the shape of W for `conv`, (rank*groups, C_in/groups, k_h, k_w).

    A filter has C_in/groups * k_h * k_w values: as many random ones reach every filter, and more add nothing.
    """
    k_h, k_w = conv.kernel_size
    channels = conv.in_channels // conv.groups
    return min(check_count('rank', rank), channels * k_h * k_w) * conv.groups, channels, k_h, k_w


torch.fx.wrap('combine')


@register_notrace_module
class AdaptedConv2d(nn.Module):
    """A convolution of weight W_0 + P W: its own, held, and learned combinations of frozen random filters.

    Each forward forms P W, adds it and convolves once: the activation of W never exists. The convolutions are the
    children `base`, W_0 with its bias, `spatial`, W, and `pointwise`, P, 0 at first; none is called
    unless another tool has hooked or replaced one.

    Args:
        conv: The trained convolution, which becomes the child `base`; its tensors are held.
        record: Of W; its shape is `adapter_shape(conv, rank)`.

    Shape:
        (N, C_in, H, W) -> (N, C_out, H', W'), as `conv`.

    Raises:
        ValueError: If the class of `conv` does not convolve with its weight alone, as with standardised weights.

    Example:
        >>> conv = nn.Conv2d(16, 32, 3)
        >>> layer = AdaptedConv2d(conv, FilterRecord(adapter_shape(conv, 8)))
        >>> [name for name, _ in layer.named_parameters()], layer.pointwise.weight.shape
        (['pointwise.weight'], torch.Size([32, 8, 1, 1]))
    """

    def __init__(self, conv: nn.Conv2d, record: FilterRecord) -> None:
        super().__init__()
        check_class(conv)
        rows = record.shape[0]
        self.base = conv
        self.groups, self.rank = conv.groups, rows // conv.groups
        self.pads_same = isinstance(conv, Conv2dSame)
        geometry: dict[str, Any] = {'groups': conv.groups, 'bias': False, 'device': 'meta', 'dtype': conv.weight.dtype}
        self.spatial = plain_convolution(conv, rows, bias=False).to_empty(device=conv.weight.device)
        freeze_convolution(self.spatial, record)
        self.pointwise = nn.Conv2d(rows, conv.out_channels, 1, **geometry)
        self.pointwise.weight = nn.Parameter(conv.weight.new_zeros(conv.out_channels, self.rank, 1, 1))
        self.lost_base = conv.weight.is_meta  # no record draws W_0 again: `to_empty` cannot bring it back
        hold_tensors(conv)
        self.train(conv.training)

    def effective_weight(self) -> Tensor:
        """Return W_0 + P W, (C_out, C_in/groups, k_h, k_w)."""
        return self.base.weight + combine(self.pointwise.weight, self.spatial.weight, self.groups)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C_in, H, W) with the effective weight."""
        if not torch.jit.is_scripting():
            self._refuse_unfilled()
            if not (is_plain(self.base) and is_plain(self.spatial) and is_plain(self.pointwise)):
                warn_of_hooks('an adapted layer', 'three convolutions, with an activation of its rank')
                return self.base(x) + self.pointwise(self.spatial(x))
        if self.pads_same:
            x = pad_same(x, self.base.kernel_size, self.base.stride, self.base.dilation)
        return self.base._conv_forward(x, self.effective_weight(), self.base.bias)

    def _refuse_unfilled(self) -> None:
        if self.lost_base and not self.base.weight.is_meta:
            raise RuntimeError('the base of a network adapted on the meta device is not there: build it on a device')
        if self.spatial.is_unfilled:
            refuse_unfilled(self.spatial, None)

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """Return the ordinary convolution with the same outputs; W_0 + P W is formed in float64.

        Raises:
            RuntimeError: If another tool has hooked or replaced one of the convolutions.
        """
        self._refuse_unfilled()
        refuse_hooked(self)
        product = combine(self.pointwise.weight.double(), self.spatial.weight.double(), self.groups)
        fused = copy.deepcopy(self.base)
        release_tensors(fused)
        fused.weight.copy_(fused.weight.double() + product)
        return fused.train(self.training)

    def release(self) -> nn.Conv2d:
        """Return the convolution that was adapted, as it was; this layer is then useless."""
        release_tensors(self.base)
        return self.base.train(self.training)

    def extra_repr(self) -> str:
        """Return the rank."""
        return f'rank={self.rank}'
