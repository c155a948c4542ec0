"""A convolution that slices its filters from a shared vector, and what other code writes into its weight.

The weight is computed as it is read, so what a tool writes into it, such as an adapter that is merged by `.data +=`,
would be lost. A weight that others read is therefore lent: the layer computes with that very tensor as long as somebody
has it. When nobody has, the layer takes it back: it slices again if nothing was written, and else leaves the
shared vector, with a weight of its own like any frozen layer that was overwritten.
"""

import functools
import inspect
import math
import sys
import threading
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from timm.models import register_notrace_module
from torch import Tensor, nn

from timm_lc.layers.recorded import copy_filters, filter_shape
from timm_lc.layers.shared import SharedFilters, repeat_to, trace_as_leaf

__all__ = [
    'enter_shared',
    'is_shared',
    'is_written',
    'leave_shared',
    'part_before',
    'present_filters',
    'refill_lent',
    'settle_lent',
]

_lending = threading.RLock()  # threads may read and run one network


def is_shared(module: nn.Module) -> bool:
    """Return whether `module` takes its filters from a `SharedFilters`."""
    return isinstance(module, _SharedWeight)


class _SharedWeight:
    """Reads a convolution's weight from `self.shared`; mixed into the convolution's own class."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return an ordinary convolution if given arguments: tools build layers of the class of one that they find."""
        return cls.__bases__[1](*args, **kwargs) if args or kwargs else object.__new__(cls)

    @property
    def weight(self) -> Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript skips this only if the conditions are nested
            if not torch.compiler.is_compiling():
                return _read(self, sys._getframe(1).f_code)
        if self.lent is not None:
            return self.lent
        shape = [self.out_channels, self.in_channels // self.groups, self.kernel_size[0], self.kernel_size[1]]
        return _slice(self.shared.vector, self.filter_scale, shape)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == 'qconfig' and value is not None:  # quantisers go by class: they would leave this layer in float
            raise RuntimeError('a layer that shares its filters cannot be quantised: quantise `timm_lc.fold(model)`')
        if name == 'weight':
            raise AttributeError('a layer that shares its filters has no weight to replace: write into it, or fold')
        super().__setattr__(name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        settle_lent(self.shared)
        if not is_shared(self):
            return object.__reduce_ex__(self, protocol)
        return _new_shared, (type(self).__bases__[1],), self.__dict__


def _read(conv: Any, reader: CodeType) -> Tensor:
    """Return the weight of a shared layer, which is lent if `reader` is not the code of a forward of its class."""
    is_own = any(reader is code for code in _forwards(type(conv)))
    with _lending:
        settle_lent(conv.shared)
        if is_shared(conv) and not is_own and conv.lent is None and _can_lend(conv):
            with torch.inference_mode(False), torch.no_grad():
                conv.lent = _sliced(conv)
            conv.shared.lenders.append(conv)
        return present_filters(conv)


def _can_lend(conv: Any) -> bool:
    """Return whether the filters are there, as ordinary tensors."""
    return not (conv.is_unfilled or conv.shared.vector.is_meta) and type(conv.shared.vector) is Tensor


def present_filters(conv: nn.Conv2d) -> Tensor:
    """Return the filters that `conv` computes with, which a shared layer does not lend by this."""
    if not is_shared(conv):
        return conv.weight
    return _sliced(conv) if conv.lent is None else conv.lent


def _slice(vector: Tensor, scale: float, shape: list[int]) -> Tensor:
    return repeat_to(vector, shape[0] * shape[1] * shape[2] * shape[3]).view(shape) * scale


def _sliced(conv: Any) -> Tensor:
    return _slice(conv.shared.vector, conv.filter_scale, list(filter_shape(conv)))


def settle_lent(shared: SharedFilters) -> None:
    """Let layers take back, in place, the weights that nobody else has any more."""
    if shared.lenders:
        with _lending:
            for conv in [conv for conv in shared.lenders if _is_idle(conv)]:
                _take_back(conv)


def part_before(function: Callable[[Tensor], Tensor], shared: SharedFilters) -> None:
    """Let layers take back, in place, the weights that `function` will replace: then nobody else has them."""
    with _lending:
        for conv in [conv for conv in shared.lenders if function(conv.lent) is not conv.lent]:
            _take_back(conv)


def is_written(conv: nn.Conv2d) -> bool:
    """Return whether somebody has written into the weight that a shared layer has lent."""
    if conv.lent is None:
        return False
    sliced = _sliced(conv)
    is_alike = (conv.lent.dtype, conv.lent.device) == (sliced.dtype, sliced.device)
    return not (is_alike and torch.equal(conv.lent, sliced))


def _take_back(conv: nn.Conv2d) -> None:
    if is_written(conv):
        weight = conv.lent
        leave_shared(conv)
        conv.register_buffer('weight', weight, persistent=False)
    else:
        conv.shared.lenders.remove(conv)
        conv.lent = None


def _is_idle(conv: nn.Conv2d) -> bool:
    """Return whether nobody has the lent weight or a view of it: two references are the layer's and the question's."""
    return sys.getrefcount(vars(conv)['lent']) <= 2 and _users(conv.lent) <= _users(torch.empty(0))


def _users(tensor: Tensor) -> float:
    """Return how many tensors have the memory of this one; where torch does not tell, it stays lent."""
    count = getattr(torch._C, '_storage_Use_Count', lambda address: math.nan)
    return count(tensor.untyped_storage()._cdata)


@functools.cache
def _forwards(kind: Any) -> tuple[CodeType, ...]:
    """Return the code of each `forward` that a layer of this class can run."""
    forwards = [inspect.unwrap(vars(base)['forward']) for base in kind.__mro__ if 'forward' in vars(base)]
    return tuple(forward.__code__ for forward in forwards if inspect.isfunction(forward))


@functools.cache
def _shared_class(base: Any) -> Any:
    """Return the subclass of `base` that shares; instances pickle through `_new_shared`."""
    return register_notrace_module(type(f'Shared{base.__name__}', (_SharedWeight, base), {'__module__': __name__}))


def _new_shared(base: type[nn.Conv2d]) -> nn.Conv2d:
    cls = _shared_class(base)
    return cls.__new__(cls)


def enter_shared(conv: Any, shared: SharedFilters, scale: float) -> None:
    """Let `conv` slice its filters from `shared`, in place, times `scale`; a weight that it has lent stays lent."""
    lent = conv.lent if is_shared(conv) else None
    if is_shared(conv):
        leave_shared(conv)
    conv.__class__ = _shared_class(type(conv))
    conv.shared, conv.filter_scale, conv.lent = shared, scale, lent
    if lent is not None:
        shared.lenders.append(conv)
    trace_as_leaf(conv)


def refill_lent(conv: nn.Conv2d) -> None:
    """Write the filters of the shared vector into the weight that `conv` has lent, if it has."""
    if conv.lent is not None:
        copy_filters(conv.lent, _sliced(conv))


def leave_shared(conv: nn.Conv2d) -> None:
    """Give `conv` back its own class, in place; it is then without a weight."""
    if conv.lent is not None:
        conv.shared.lenders.remove(conv)
    conv.__class__ = type(conv).__bases__[1]
    del conv.shared, conv.filter_scale, conv.lent, conv.__module__
