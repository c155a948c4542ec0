"""Frozen and shared convolutions: filters that are buffers, and the record that a checkpoint holds (section 4.3).

A frozen convolution keeps its class and forward: its `weight` becomes a buffer absent from the state dict, beside a
`record` of bits that is present. A shared one takes its `weight` from the `SharedFilters` that all of them hold.
Loading adopts the record of the checkpoint and verifies the filters (`_load_filters`).
"""

import functools
from typing import Any

import numpy as np
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from timm_lc.filters import EXPECTED, ORTHOGONAL, RECORD_BITS, FilterRecord, check_filters, fingerprint, layer_stream
from timm_lc.layers.shared import SharedFilters, copy_filters, is_shared, leave_shared, shared_class

__all__ = [
    'describe_filters',
    'filter_shape',
    'freeze_convolution',
    'is_frozen',
    'named_record',
    'remove_hook',
    'seed_convolution',
    'share_convolution',
    'thaw_convolution',
    'unseed_convolution',
]

_RECORD = 'record'


def is_frozen(module: nn.Module) -> bool:
    """Return whether `module` is a frozen convolution, shared or not."""
    return _RECORD in module._buffers


def filter_shape(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Return (C_out, C_in/groups, k_h, k_w) of a convolution."""
    k_h, k_w = conv.kernel_size
    return conv.out_channels, conv.in_channels // conv.groups, k_h, k_w


def describe_filters(conv: nn.Conv2d) -> str:
    """Return what a frozen convolution says of its filters: `frozen, seed=0`, `shared, seed=0, period=9`, `kept`."""
    record = conv.filter_record
    if record.is_kept:
        return 'kept'
    is_recycled = 0 < record.period < record.numel
    period = f', period={record.period}' if is_recycled else ''
    return f'{"shared" if record.is_shared else "frozen"}, seed={record.seed}{period}'


def named_record(conv: nn.Conv2d, name: str, seed: int, gain: float, filters: str = 'uniform') -> FilterRecord:
    """Return the record of the unshared filters of the layer `name`, of a filter set that has filters."""
    filter_set = check_filters(filters)
    if filter_set == EXPECTED:
        raise ValueError("`filters='expected'` has no filters: it needs `implicit=True`")
    groups = conv.groups if filter_set == ORTHOGONAL else 1
    return FilterRecord(filter_shape(conv), seed, layer_stream(name), 0, float(gain), filter_set, groups)


def seed_convolution(conv: nn.Conv2d, record: FilterRecord) -> None:
    """Set the learnable weight of `conv` to the filters of `record`, in place; it then loads frozen checkpoints too."""
    if not conv.weight.is_meta:
        copy_filters(conv.weight, record.filters())
    _add_load_hook(conv)


def unseed_convolution(conv: nn.Conv2d) -> None:
    """Make `conv` load ordinary weights only, in place."""
    remove_hook(conv._load_state_dict_pre_hooks, _load_filters)


def freeze_convolution(conv: nn.Conv2d, record: FilterRecord) -> None:
    """Turn the weight of `conv` into a buffer of the filters of `record`, in place; a kept record keeps the weight."""
    like = conv.weight.detach()
    if is_shared(conv):
        leave_shared(conv)
    conv._parameters.pop('weight', None)
    conv.register_buffer('weight', like if record.is_kept else torch.empty_like(like), persistent=record.is_kept)
    _attach(conv, record, like)


def share_convolution(conv: nn.Conv2d, record: FilterRecord, shared: 'SharedFilters') -> None:
    """Let `conv` slice its filters from `shared`, in place; its class becomes a subclass that reads them there."""
    like = conv.weight.detach()
    if is_shared(conv):
        leave_shared(conv)
    conv._parameters.pop('weight', None)
    conv._buffers.pop('weight', None)
    conv._non_persistent_buffers_set.discard('weight')
    conv.__class__ = shared_class(type(conv))
    conv.shared = shared
    conv.filter_scale = record.scale
    _attach(conv, record, like)


def thaw_convolution(conv: nn.Conv2d) -> None:
    """Turn a frozen convolution back into an ordinary one of its class, in place: its filters become a parameter."""
    weight = conv.weight.detach()
    if is_shared(conv):
        leave_shared(conv)
    for name in ('weight', _RECORD):
        conv._buffers.pop(name, None)
        conv._non_persistent_buffers_set.discard(name)
    del conv.filter_record, conv.init_non_persistent_buffers, conv.is_unfilled, conv.extra_repr
    unseed_convolution(conv)
    conv._parameters = {'weight': nn.Parameter(weight), **conv._parameters}


def _attach(conv: nn.Conv2d, record: FilterRecord, like: Tensor) -> None:
    """Give `conv` its record, hook and filters, on the device of `like`."""
    conv.register_buffer(_RECORD, torch.empty(RECORD_BITS, dtype=torch.bool, device=like.device))
    conv.filter_record = record
    conv.init_non_persistent_buffers = functools.partial(_fill, conv)
    conv.extra_repr = functools.partial(_extra_repr, conv)
    _add_load_hook(conv)
    conv.is_unfilled = like.is_meta
    if like.is_meta:
        conv.register_forward_pre_hook(refuse_unfilled)
    else:
        _fill(conv)


def _extra_repr(conv: nn.Conv2d) -> str:
    """Return what the class of `conv` prints, and what its filters are."""
    return f'{type(conv).extra_repr(conv)}, {describe_filters(conv)}'


def _fill(conv: nn.Conv2d, filters: np.ndarray | None = None) -> None:
    """Compute the filters and the bits of `conv` from its record (timm calls it after `to_empty`)."""
    record = conv.filter_record
    if record.is_kept:
        bits = record.encode(None)
    else:
        filters = record.filters() if filters is None else filters
        bits = record.encode(filters)
        if is_shared(conv):
            conv.shared.fill()
        else:
            copy_filters(conv.weight, _fit(filters, conv))
    conv.record.copy_(torch.from_numpy(bits))
    conv.is_unfilled = False
    remove_hook(conv._forward_pre_hooks, refuse_unfilled)


def _fit(filters: np.ndarray, conv: nn.Conv2d) -> np.ndarray:
    """Adapt filters to the input channels of `conv`, as timm adapts a pretrained stem.

    Raises:
        ValueError: If more than the input channels differ.
    """
    shape = filter_shape(conv)
    if filters.shape == shape:
        return filters
    if filters.shape[0] == shape[0] and filters.shape[2:] == shape[2:] and conv.groups == 1:
        try:
            return adapt_input_conv(shape[1], torch.from_numpy(filters)).numpy()
        except NotImplementedError:
            pass
    raise ValueError(f'its filters have shape {tuple(filters.shape)}, the model needs {shape}: another architecture?')


def refuse_unfilled(conv: nn.Module, args: Any) -> None:
    if not conv.record.is_meta:
        raise RuntimeError(
            'the filters of a network built on the meta device are not there yet: after `to_empty` call '
            '`init_non_persistent_buffers()` of its modules, or `load_state_dict`'
        )


def remove_hook(hooks: dict[int, Any], hook: Any) -> None:
    """Remove the function `hook` from a module's registered hooks, in place."""
    for key, registered in list(hooks.items()):
        if getattr(registered, 'hook', registered) is hook:
            del hooks[key]


def _add_load_hook(conv: nn.Conv2d) -> None:
    remove_hook(conv._load_state_dict_pre_hooks, _load_filters)
    conv.register_load_state_dict_pre_hook(_load_filters)


def _load_filters(
    conv: nn.Conv2d,
    state_dict: dict[str, Tensor],
    prefix: str,
    local_metadata: dict,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Adopt the record in `state_dict` and verify it, whatever `strict` says; errors name the layer."""
    try:
        if is_frozen(conv):
            _adopt(conv, state_dict, prefix, assign=local_metadata.get('assign_to_params_buffers', False))
        elif prefix + _RECORD in state_dict:
            _expand(conv, state_dict, prefix)
    except ValueError as error:
        error_msgs.append(f'layer `{prefix[:-1]}`: {error}')


def _read(state_dict: dict[str, Tensor], prefix: str) -> tuple[FilterRecord, np.ndarray | None]:
    """Return the verified record and filters of a layer (None if the state dict itself holds them)."""
    bits = state_dict.get(prefix + _RECORD)
    if bits is None:
        raise ValueError(
            'the checkpoint has no filter record: it is of a network that learns its filters; load it before '
            '`timm_lc.freeze_spatial(model, seed=None)`, or with `freeze_spatial=False`'
        )
    record, crc = FilterRecord.decode(_bytes(bits))
    if record.is_kept:
        return record, None
    filters = record.filters()
    if fingerprint(filters) != crc:
        raise ValueError('the filters drawn from its record do not match the fingerprint in it')
    return record, filters


def _bytes(bits: Tensor) -> np.ndarray:
    """Return bits as numbers; those of a bool tensor as they are stored, since any byte but 0 counts as True."""
    bits = bits.detach().cpu()
    return (bits.contiguous().view(torch.uint8) if bits.dtype == torch.bool else bits.float()).numpy()


def _adopt(conv: nn.Conv2d, state_dict: dict[str, Tensor], prefix: str, *, assign: bool) -> None:
    """Give `conv` the filters that `state_dict` records, dropping from it what a scripted model spelt out."""
    record, filters = _read(state_dict, prefix)
    stored, vector = state_dict.get(prefix + 'weight'), state_dict.pop(prefix + 'shared.vector', None)
    if assign and conv.record.is_meta:
        conv.to_empty(device=state_dict[prefix + _RECORD].device)
    if filters is None:
        state_dict[prefix + 'weight'] = torch.from_numpy(_fit(_stored(stored), conv))
        freeze_convolution(conv, record)
        return
    if stored is not None and not _equal(state_dict.pop(prefix + 'weight'), filters):
        raise ValueError('the filters stored in the checkpoint are not those of its record')
    if vector is not None and not _equal(vector[: record.numel], record.unit_values()[: len(vector)]):
        raise ValueError('the shared vector stored in the checkpoint is not that of its record')
    fitted = _fit(filters, conv)
    if is_shared(conv) and record.is_shared and fitted is filters:
        share_convolution(conv, record, conv.shared.peer(record))
    elif is_shared(conv) or conv.filter_record.is_kept:
        freeze_convolution(conv, record)
    else:
        conv.filter_record = record
        if not conv.weight.is_meta:
            _fill(conv, filters)


def _expand(conv: nn.Conv2d, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Write the recorded filters into `state_dict` as the learnable weight of `conv`."""
    _, filters = _read(state_dict, prefix)
    del state_dict[prefix + _RECORD]
    state_dict.pop(prefix + 'shared.vector', None)
    filters = _stored(state_dict.get(prefix + 'weight')) if filters is None else filters
    state_dict[prefix + 'weight'] = torch.from_numpy(_fit(filters, conv))


def _stored(weight: Tensor | None) -> np.ndarray:
    if weight is None:
        raise ValueError('its filters were kept as they were, but the checkpoint does not hold them')
    return weight.detach().cpu().float().numpy()


def _equal(stored: Tensor, filters: np.ndarray) -> bool:
    return torch.equal(stored.flatten().cpu(), torch.from_numpy(filters).to(stored.dtype).flatten())
