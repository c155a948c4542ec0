"""The implicit LC-Block: an ordinary convolution that trains as the LC-Block of its record does under SGD.

It learns W_eff = P W itself, whose gradient is multiplied by G = W^T W (`timm_lc.layers.gram`). Neither P nor W stays
in memory, and a checkpoint holds W_eff, as that of the plain network, and the record from which G is built again.
"""

import dataclasses
import functools
import math
import warnings
from typing import Any

import numpy as np
import torch
from timm.layers import Conv2dSame, pad_same
from timm.models import register_notrace_module
from timm.optim import SGDW
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from timm_lc.arguments import device_of
from timm_lc.filters import EXPECTED, FilterRecord
from timm_lc.layers.gram import Gram, Solution, build_gram, gram_shape, precondition, solve_pointwise
from timm_lc.layers.recorded import COLOURS, RECORD, adapt_channels, decode, filter_shape

__all__ = ['ImplicitLCConv2d', 'is_linear', 'other_operation', 'plain_convolution']

_RECORD = 'lc_record'
_SGD = SGD | SGDW


@register_notrace_module
class ImplicitLCConv2d(nn.Conv2d):
    """An LC-Block with frozen filters, trained through its effective weight; `LCConv2d(..., implicit=True)` makes one.

    Its `weight` is that of the plain convolution, starts from P_0 W, the explicit form's of the same seeds, and follows
    the explicit form's P W under everything that is linear in the gradient:

    | exact | another trajectory |
    |---|---|
    | SGD, momentum, Nesterov, weight decay, any schedule | Adam, LAMB and other optimizers that rescale gradients |
    | autocast with loss scaling, gradient accumulation, DDP | clipping by norm or value, adaptive clipping |
    | averages of weights (EMA, SWA) | an l1 penalty on P, pruning of P |

    Optimizers that rescale gradients get one warning; l1 optimizers and `prune_pointwise` refuse the block.
    """

    gram: Tensor
    lc_record: Tensor

    @classmethod
    def from_convolution(
        cls, conv: nn.Conv2d, expansion: int, record: FilterRecord, device: Any = None
    ) -> 'ImplicitLCConv2d':
        """Return a block of the geometry of `conv` on a device, that starts where the explicit form would.

        P_0 is drawn as the explicit form draws it; the limit of many filters starts from the plain convolution's
        draws, times gain / sqrt(3), the scale of P_0 W.
        """
        device, dtype, has_bias = device_of(device), conv.weight.dtype, conv.bias is not None
        rows = expansion * conv.out_channels
        record = dataclasses.replace(record, shape=(rows, *filter_shape(conv)[1:]))
        if record.filter_set != EXPECTED:
            pointwise = nn.Conv2d(
                rows, conv.out_channels, 1, 1, 0, 1, conv.groups, has_bias, device=device, dtype=dtype
            )
            return cls.from_pointwise(conv, record, pointwise)
        block = cls._shell(conv, record).to_empty(device=device)
        block.reset_parameters()
        with torch.no_grad():
            block.weight *= record.gain / math.sqrt(3)
            if block.bias is not None:  # P_0's has the bound of its own inputs
                block.bias *= math.sqrt(math.prod(record.shape[1:]) * conv.groups / rows)
        block.is_unfilled = block.weight.is_meta
        if not block.is_unfilled:
            block._fill()
        return block

    @classmethod
    def from_pointwise(cls, conv: nn.Conv2d, record: FilterRecord, pointwise: nn.Conv2d) -> 'ImplicitLCConv2d':
        """Return a block of the geometry of `conv` with the effective weight P W, and the bias of P."""
        block, weight = cls._shell(conv, record), pointwise.weight
        block.bias = pointwise.bias
        if weight.is_meta:
            return block
        block.weight = nn.Parameter(torch.empty_like(block.weight, device=weight.device))
        built = block._build(pointwise=weight.detach().double().flatten(1).cpu().numpy())
        block._place(built, weight.device)
        with torch.no_grad():
            block.weight.copy_(torch.from_numpy(built.product).view(block.weight.shape))
        block._mark()
        return block

    @classmethod
    def _shell(cls, conv: nn.Conv2d, record: FilterRecord) -> 'ImplicitLCConv2d':
        """Return a block of the geometry of `conv` on the meta device."""
        block = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
            conv.groups, conv.bias is not None, conv.padding_mode, 'meta', conv.weight.dtype,
        )  # fmt: skip
        block.pads_same, block.is_unfilled = isinstance(conv, Conv2dSame) or getattr(conv, 'pads_same', False), True
        block._take(record)
        block.register_buffer(_RECORD, torch.from_numpy(record.encode(None)).to('meta'))
        shape = gram_shape(record, block.groups, block._fan())
        block.register_buffer('gram', torch.empty(shape, dtype=conv.weight.dtype, device='meta'), persistent=False)
        block.register_load_state_dict_pre_hook(_load_block)
        block.register_load_state_dict_post_hook(_mark_loaded)
        block._mark()
        return block.train(conv.training)

    def _fan(self) -> int:
        return math.prod(filter_shape(self)[1:])

    def _take(self, record: FilterRecord) -> None:
        """Make `record` that of the block, if it is of such a block.

        Raises:
            ValueError: If it is of filters that no seed gives, or of another geometry.
        """
        rows, channels, *kernel = record.shape
        if record.is_kept:
            raise ValueError('its filters were kept as they were: no seed gives them, which an implicit LC-Block needs')
        adapts = channels == self.in_channels // self.groups or (self.groups == 1 and channels == COLOURS)
        if rows % self.out_channels or tuple(kernel) != self.kernel_size or not adapts:
            raise ValueError(
                f'its record is of filters {record.shape}, the model has {filter_shape(self)}: another architecture?'
            )
        self.filter_record, self.expansion = record, rows // self.out_channels

    def _mark(self) -> None:
        """Let optimizers tell the weight from others."""
        self.weight.is_implicit = True
        _watch_optimizers()

    def _build(self, pointwise: np.ndarray | None = None) -> Gram:
        return build_gram(self.filter_record, self.groups, self._fan(), adapt=self._adapt, pointwise=pointwise)

    def combined(self, pointwise: Tensor) -> Tensor:
        """Return P W, like the weight, of any P (C_out, R/groups, 1, 1)."""
        product = self._build(pointwise.detach().double().flatten(1).cpu().numpy()).product
        return torch.as_tensor(product).view(self.weight.shape).to(pointwise)

    def solved(self, targets: list[Tensor]) -> Solution:
        """Return the smallest P with P W nearest to each target, like the weight."""
        stacked = np.stack([target.double().flatten(1).cpu().numpy() for target in targets])
        return solve_pointwise(self.filter_record, self.groups, self._fan(), stacked, adapt=self._adapt)

    def _adapt(self, filters: np.ndarray) -> np.ndarray:
        """Adapt filters to other input channels than the record's, as timm adapts a pretrained stem."""
        return adapt_channels(torch.from_numpy(filters), self.in_channels // self.groups).numpy()

    def _place(self, built: Gram, device: Any) -> None:
        """Hold what multiplies the gradient, and the record with its fingerprint."""
        self.gram = torch.as_tensor(built.matrix).to(device, self.weight.dtype)
        self.lc_record = torch.from_numpy(self.filter_record.encode(built.crc)).to(device)
        self.is_unfilled = False

    def _fill(self) -> None:
        self._place(self._build(), self.gram.device if self.weight.is_meta else self.weight.device)

    def adopt(self, record: FilterRecord, crc: int, device: Any) -> None:
        """Train as the LC-Block of another record, whose filters must have the fingerprint `crc`, from now on.

        Raises:
            ValueError: If they have not, or the record is of another geometry.
        """
        if record == self.filter_record and not self.is_unfilled:
            _verify(decode(self.lc_record)[1], crc)
            return
        built = self._rebuild(record, crc)
        if torch.device(device).type != 'meta':
            self._place(built, device)

    def _rebuild(self, record: FilterRecord, crc: int, pointwise: np.ndarray | None = None) -> Gram:
        """Build what another record gives; if it is refused, the block stays as it was."""
        before = self.filter_record
        self._take(record)
        try:
            built = self._build(pointwise)
            _verify(built.crc, crc)
        except ValueError:
            self._take(before)
            raise
        return built

    def init_non_persistent_buffers(self) -> None:
        """Build G after `to_empty`, of the record that a loader has put there or else of the block's own."""
        try:
            found = None if self.lc_record.is_meta else decode(self.lc_record)
        except ValueError:
            found = None
        if found is None:
            self._fill()
        else:
            self.is_unfilled = True
            self.adopt(*found, self.weight.device)

    def _apply(self, fn: Any, recurse: bool = True) -> 'ImplicitLCConv2d':
        gram, record = self.gram, self.lc_record
        super()._apply(fn, recurse)
        self._mark()
        if self.lc_record.is_meta:
            self.is_unfilled = True
        elif record.is_meta or not torch.equal(record.to(self.lc_record), self.lc_record):
            self.lc_record.zero_()  # empty memory may well hold the record of a network that is gone
            self.is_unfilled = True
        elif self.gram.dtype.itemsize > gram.dtype.itemsize:
            self._fill()  # widening would keep the rounding
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mark()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C_in, H, W) with the effective weight."""
        if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript skips this only if the conditions are nested
            if self.is_unfilled and not x.is_meta:
                raise RuntimeError(
                    'the matrix that multiplies the gradient of a network built on the meta device is not there yet: '
                    'after `to_empty` call `init_non_persistent_buffers()` of its modules, or `load_state_dict`'
                )
        if self.pads_same:
            x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return self._conv_forward(x, precondition(self.weight, self.gram), self.bias)

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """Return the ordinary convolution with the same outputs: a copy of weight and bias."""
        fused = plain_convolution(self, self.out_channels, bias=self.bias is not None)
        fused = fused.to_empty(device=self.weight.device).train(self.training)
        fused.weight.copy_(self.weight)
        if fused.bias is not None and self.bias is not None:
            fused.bias.copy_(self.bias)
        return fused

    def extra_repr(self) -> str:
        """Return the geometry, the expansion and the seed."""
        return f'{super().extra_repr()}, expansion={self.expansion}, implicit=True, seed={self.filter_record.seed}'


def _load_block(
    block: ImplicitLCConv2d,
    state_dict: dict[str, Tensor],
    prefix: str,
    local_metadata: dict,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Adopt the record in `state_dict` and verify it; that of an explicit LC-Block is converted."""
    is_assigned = local_metadata.get('assign_to_params_buffers', False)
    try:
        if prefix + 'pointwise.weight' in state_dict:
            _convert(block, state_dict, prefix)
        if prefix + _RECORD not in state_dict:
            if {prefix + 'weight', prefix + RECORD} & state_dict.keys():
                raise ValueError(
                    f'the state has no `{_RECORD}`: it is partial, or of a network without implicit LC-Blocks, which '
                    'needs `implicit=False`'
                )
            return
        bits = state_dict[prefix + _RECORD]
        block.adopt(*decode(bits), bits.device if is_assigned else block.gram.device)
        state_dict[prefix + _RECORD] = torch.from_numpy(block.filter_record.encode(decode(bits)[1]))
    except ValueError as error:
        error_msgs.append(f'layer `{prefix[:-1]}`: {error}')
        if prefix + _RECORD in state_dict:
            state_dict[prefix + _RECORD] = block.lc_record  # torch goes on to copy what is there


def _verify(found: int, crc: int) -> None:
    if found != crc:
        raise ValueError('the filters drawn from its record do not match the fingerprint in it')


def _mark_loaded(block: ImplicitLCConv2d, incompatible: Any) -> None:
    """Mark the weight, which `assign=True` has replaced."""
    block._mark()


def other_operation(state_dict: dict[str, Tensor], prefix: str, *, is_normed: bool) -> str:
    """Return the error of a checkpoint whose LC-Block has a norm between its convolutions where the model has none."""
    has_norm = prefix + 'between.0.weight' in state_dict
    found = (
        f'the checkpoint has {"a" if has_norm else "no"} norm between the two convolutions: build the model with its '
    )
    return '' if has_norm == is_normed else found + '`between`'


def _convert(block: ImplicitLCConv2d, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Write P W into `state_dict` in place of P and the record of W."""
    bits = state_dict.pop(prefix + 'spatial.record', None)
    if bits is None:
        raise ValueError('the checkpoint is of an LC-Block that learns its filters, which has no implicit form')
    if found := other_operation(state_dict, prefix, is_normed=False):
        raise ValueError(found)
    record, crc = decode(bits)
    pointwise = state_dict.pop(prefix + 'pointwise.weight')
    for name in ('spatial.weight', 'spatial.shared.vector'):  # what a scripted model spells out
        state_dict.pop(prefix + name, None)
    built = block._rebuild(record, crc, pointwise.detach().double().flatten(1).cpu().numpy())
    state_dict[prefix + 'weight'] = torch.from_numpy(built.product).view(block.weight.shape).to(block.weight.dtype)
    if prefix + 'pointwise.bias' in state_dict:
        state_dict[prefix + 'bias'] = state_dict.pop(prefix + 'pointwise.bias')
    state_dict[prefix + _RECORD] = torch.from_numpy(record.encode(crc))
    if not block.gram.is_meta:
        block._place(built, block.gram.device)


def is_linear(optimizer: Optimizer) -> bool:
    """Return whether the steps of an optimizer are linear in the gradient: SGD's are, timm's cautious ones are not."""
    return isinstance(optimizer, _SGD) and not any(group.get('caution') for group in optimizer.param_groups)


@functools.cache
def _watch_optimizers() -> None:
    """Warn once, at the first step of an optimizer that rescales the gradients of an implicit LC-Block."""
    is_told = False

    def watch(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        nonlocal is_told
        if is_told or is_linear(optimizer):
            return
        if any(getattr(p, 'is_implicit', False) for group in optimizer.param_groups for p in group['params']):
            is_told = True
            warnings.warn(
                f'{type(optimizer).__name__} rescales gradients, so implicit LC-Blocks train on another '
                f'trajectory than explicit ones; under SGD it is the same',
                stacklevel=2,
            )

    register_optimizer_step_pre_hook(watch)


def plain_convolution(conv: nn.Conv2d, out_channels: int, *, bias: bool) -> nn.Conv2d:
    """Return a convolution on the meta device with the geometry of `conv`, `Conv2dSame` if it is one."""
    geometry: dict[str, Any] = {'stride': conv.stride, 'dilation': conv.dilation, 'groups': conv.groups, 'bias': bias}
    geometry |= {'device': 'meta', 'dtype': conv.weight.dtype}
    if isinstance(conv, Conv2dSame) or getattr(conv, 'pads_same', False):
        return Conv2dSame(conv.in_channels, out_channels, conv.kernel_size, **geometry)
    geometry |= {'padding': conv.padding, 'padding_mode': conv.padding_mode}
    return nn.Conv2d(conv.in_channels, out_channels, conv.kernel_size, **geometry)
