"""Whether the filters that compute are those of the record, and what a state dict holds if they are not.

Filters can be overwritten: by `init_weights`, by an optimizer, by a tool that merges or fuses. A state dict then holds
them as kept ones, so that what is saved is what computes. Tensors are compared once, then by their version counters.
"""

import warnings
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from timm_lc.filters import KEPT, FilterRecord
from timm_lc.layers.recorded import RECORD, encode, filter_shape, fit, recorded
from timm_lc.layers.sliced import is_shared, is_written, present_filters

__all__ = ['Seen', 'is_changed', 'is_stored', 'kept_digits', 'mark_seen', 'save_present_filters']


class Seen:
    """Which tensors were compared, by identity and version counter; a copy of it has seen nothing."""

    def __init__(self, *tensors: Tensor) -> None:
        self.marks = [(weakref.ref(tensor), _version(tensor)) for tensor in tensors]

    def holds(self, *tensors: Tensor) -> bool:
        """Return whether these are the tensors, unchanged since; writing to `.data` moves no counter."""
        return len(self.marks) == len(tensors) and all(
            mark() is tensor and version == _version(tensor) is not None
            for (mark, version), tensor in zip(self.marks, tensors, strict=True)
        )

    def __reduce__(self) -> tuple:
        return Seen, ()


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _tensors(conv: nn.Module) -> tuple[Tensor, Tensor]:
    """Return what the filters of `conv` are read from, and its record."""
    return (conv.shared.vector if is_shared(conv) else conv.weight), conv.record


def mark_seen(conv: nn.Module) -> None:
    """Note that the filters of `conv` are those of its record."""
    conv.seen = Seen(*_tensors(conv))


def is_changed(conv: nn.Conv2d) -> bool:
    """Return whether a frozen convolution computes with other filters than those of its record.

    It looks once at what no version counter has moved. Filters that are not there yet, or spread over devices, are
    not looked at.
    """
    tensors = _tensors(conv)
    if conv.is_unfilled or any(tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors):
        return False
    if is_shared(conv) and is_written(conv):
        return True
    if conv.seen.holds(*tensors):
        return False
    changed = _differs(conv)
    if not changed:
        mark_seen(conv)
    return changed


def _differs(conv: nn.Conv2d) -> bool:
    found = recorded(conv)
    if found is None:
        return True
    record, _ = found
    if record.is_kept:
        return False
    if is_shared(conv):
        vector = conv.shared.vector[: record.numel].cpu()
        values = torch.from_numpy(record.unit_values())[: len(vector)].to(vector.dtype)
        return not (record.is_shared and conv.filter_scale == record.scale and torch.equal(vector, values))
    try:
        expected = fit(torch.from_numpy(record.filters()), conv)
    except ValueError:
        return True
    return not torch.equal(conv.weight.detach().cpu(), expected.to(conv.weight.dtype))


def is_stored(conv: nn.Conv2d) -> bool:
    """Return whether a state dict holds the filters of a frozen convolution, because no seed gives them."""
    return conv.filter_record.is_kept or is_changed(conv)


def kept_digits(conv: nn.Conv2d) -> Tensor:
    """Return the record of `conv` with its present filters kept, as its buffer would hold it."""
    return encode(FilterRecord(filter_shape(conv), filter_set=KEPT), 0, conv.record)


def save_present_filters(conv: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict) -> None:
    """Write filters that are no longer those of the record into the state dict, as kept ones."""
    if not is_changed(conv):
        return
    state_dict[prefix + RECORD] = kept_digits(conv)
    state_dict[prefix + 'weight'] = present_filters(conv).detach()
    warnings.warn(
        'frozen filters were overwritten since they were drawn (by an initialiser, an optimizer or another tool): the '
        'state dict holds them as they are. `timm_lc.verify(model)` names the layers; with `remedy="restore"` it draws '
        'the filters of their records again, with `remedy="keep"` it keeps the present ones',
        stacklevel=3,
    )
