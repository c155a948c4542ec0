"""Frozen and shared convolutions: filters that are buffers, and the record that a checkpoint holds (section 4.3).

A frozen convolution keeps its class and forward: its `weight` becomes a buffer absent from the state dict, beside a
`record` that is present. A shared one takes its `weight` from the `SharedFilters` that all of them hold.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from timm_lc.filters import EXPECTED, ORTHOGONAL, FilterRecord, check_filters, fingerprint, layer_stream
from timm_lc.layers.bound import BoundMethod
from timm_lc.layers.changes import Seen, mark_seen, save_present_filters
from timm_lc.layers.recorded import (
    RECORD,
    copy_filters,
    draw,
    draw_into,
    encode,
    filter_shape,
    fit,
    is_frozen,
    read,
    recorded,
)
from timm_lc.layers.shared import SharedFilters
from timm_lc.layers.sliced import enter_shared, is_shared, leave_shared, part_before, present_filters, refill_lent

__all__ = [
    'adopt',
    'describe_filters',
    'fill',
    'filter_shape',
    'freeze_convolution',
    'is_frozen',
    'named_record',
    'refuse_unfilled',
    'remove_hook',
    'seed_convolution',
    'share_convolution',
    'thaw_convolution',
    'unseed_convolution',
]


def describe_filters(conv: nn.Conv2d) -> str:
    """Return what a frozen convolution says of its filters: `kept`, `frozen, seed=0`, `shared, seed=0, period=9`."""
    record = conv.filter_record
    if record.is_kept:
        return 'kept'
    period = f', period={record.period}' if record.is_recycled else ''
    chosen = f', filters={record.set_name}' if record.set_name != 'uniform' else ''
    return f'{"shared" if is_shared(conv) else "frozen"}, seed={record.seed}{period}{chosen}'


def named_record(
    conv: nn.Conv2d, name: str, seed: int, gain: float, filters: str = 'uniform', *, implicit: bool = False
) -> FilterRecord:
    """Return the record of the unshared filters of the layer `name`; only implicit LC-Blocks have expected ones."""
    filter_set = check_filters(filters)
    if filter_set == EXPECTED and not implicit:
        raise ValueError("`filters='expected'` has no filters: it needs `implicit=True`")
    groups = conv.groups if filter_set == ORTHOGONAL else 1
    return FilterRecord(filter_shape(conv), seed, layer_stream(name), 0, float(gain), filter_set, groups)


def seed_convolution(conv: nn.Conv2d, record: FilterRecord) -> None:
    """Set the learnable weight of `conv` to the filters of `record`, in place; it then loads frozen checkpoints too."""
    if not conv.weight.is_meta:
        draw_into(conv, record, fingerprinted=False)
    _register_once(conv._load_state_dict_pre_hooks, conv.register_load_state_dict_pre_hook, _load_filters)


def unseed_convolution(conv: nn.Conv2d) -> None:
    """Make `conv` load ordinary weights only, in place."""
    remove_hook(conv._load_state_dict_pre_hooks, _load_filters)


def freeze_convolution(conv: nn.Conv2d, record: FilterRecord) -> None:
    """Turn the weight of `conv` into a buffer of the filters of `record`, in place; a kept record keeps the weight."""
    like = present_filters(conv).detach()
    if is_shared(conv):
        leave_shared(conv)
    conv._parameters.pop('weight', None)
    conv.register_buffer('weight', like if record.is_kept else torch.empty_like(like), persistent=record.is_kept)
    _attach(conv, record, like)


def share_convolution(conv: nn.Conv2d, record: FilterRecord, shared: 'SharedFilters', crc: int | None = None) -> None:
    """Let `conv` slice its filters from `shared`, in place; its class becomes a subclass that reads them there.

    Their fingerprint is `crc`; None draws them to compute it.
    """
    like = present_filters(conv).detach()
    conv._parameters.pop('weight', None)
    conv._buffers.pop('weight', None)
    conv._non_persistent_buffers_set.discard('weight')
    enter_shared(conv, shared, record.scale)
    _attach(conv, record, like, crc)


def thaw_convolution(conv: nn.Conv2d) -> None:
    """Turn a frozen convolution back into an ordinary one of its class, in place: its filters become a parameter."""
    if conv.is_unfilled:
        refuse_unfilled(conv, None)
    weight = present_filters(conv).detach()
    if is_shared(conv):
        leave_shared(conv)
    for name in ('weight', RECORD):
        conv._buffers.pop(name, None)
        conv._non_persistent_buffers_set.discard(name)
    for name in ('filter_record', 'is_unfilled', 'seen', *_METHODS):
        delattr(conv, name)
    remove_hook(conv._state_dict_hooks, save_present_filters)
    remove_hook(conv._forward_pre_hooks, refuse_unfilled)
    unseed_convolution(conv)
    conv._parameters = {'weight': nn.Parameter(weight), **conv._parameters}


def _attach(conv: nn.Conv2d, record: FilterRecord, like: Tensor, crc: int | None = None) -> None:
    """Give `conv` its record, hooks, methods and filters, on the device of `like`."""
    conv.register_buffer(RECORD, encode(record, 0, like))
    conv.filter_record, conv.seen, conv.is_unfilled = record, Seen(), like.is_meta
    for name, method in _METHODS.items():
        setattr(conv, name, BoundMethod(name, method, conv))
    _register_once(conv._load_state_dict_pre_hooks, conv.register_load_state_dict_pre_hook, _load_filters)
    _register_once(conv._state_dict_hooks, conv.register_state_dict_post_hook, save_present_filters)
    if like.is_meta:
        _register_once(conv._forward_pre_hooks, conv.register_forward_pre_hook, refuse_unfilled)
    else:
        fill(conv, crc)


def fill(conv: nn.Conv2d, crc: int | None = None, filters: Tensor | None = None) -> None:
    """Give `conv` the filters of its record, which are drawn where they or their fingerprint are not given."""
    record = conv.filter_record
    if is_shared(conv):
        conv.shared.fill()
        refill_lent(conv)
        crc = fingerprint(record.filters()) if crc is None else crc
    elif filters is not None:
        copy_filters(conv.weight, fit(filters, conv))
    elif not record.is_kept:
        crc = draw_into(conv, record)
    # a new tensor, because files written before may have left the older form here
    conv.record = encode(record, crc or 0, conv.record)
    conv.is_unfilled = False
    remove_hook(conv._forward_pre_hooks, refuse_unfilled)
    mark_seen(conv)


def adopt(conv: nn.Conv2d, record: FilterRecord, filters: Tensor | None, crc: int) -> None:
    """Give `conv` the filters of another record and their fingerprint; None for kept ones, its present weight.

    Raises:
        ValueError: If they do not fit it.
    """
    fitted = None if filters is None else fit(filters, conv)
    if is_shared(conv) and record.is_shared and fitted is filters:
        share_convolution(conv, record, conv.shared.peer(record), crc)
    elif fitted is None or conv.filter_record.is_kept or 'weight' not in conv._buffers:
        freeze_convolution(conv, record)
    else:
        conv.filter_record = record
        if not conv.weight.is_meta:
            fill(conv, crc, filters)


def _refill(conv: nn.Conv2d) -> None:
    """Compute what `to_empty` lost or what a loader's record says, which it has put there tensor by tensor."""
    found = recorded(conv)
    if found is None:
        fill(conv)
        return
    record, crc = found
    drawn = draw(record, crc)
    if drawn is None and not conv.filter_record.is_kept:
        raise RuntimeError('filters that were kept as they were are loaded by `load_state_dict` alone')
    source, name = (conv.shared, 'vector') if is_shared(conv) else (conv, 'weight')
    if getattr(source, name).is_meta and drawn is not None:
        setattr(source, name, torch.empty_like(getattr(source, name), device=conv.record.device))
    if record == conv.filter_record:
        fill(conv)
    else:
        adopt(conv, record, None if drawn is None else torch.from_numpy(drawn), crc)


def _apply(conv: nn.Conv2d, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Conv2d:
    """Move or cast `conv`, as `nn.Module._apply`; what a loader has put there counts, what `to_empty` leaves does not.

    Empty memory may well hold the record of a network that is gone.
    """
    found = recorded(conv)
    if found is not None and (conv.is_unfilled or found[0] != conv.filter_record):
        _refill(conv)
    if is_shared(conv):
        part_before(function, conv.shared)
    before = conv.record
    type(conv)._apply(conv, function, recurse)
    if _is_lost(before, conv.record):
        conv.record.zero_()
        conv.is_unfilled = True
        _register_once(conv._forward_pre_hooks, conv.register_forward_pre_hook, refuse_unfilled)
    return conv


def _is_lost(before: Tensor, after: Tensor) -> bool:
    """Return whether moving a record has left nothing of it."""
    if after is before or after.is_meta or type(after) is not Tensor:
        return False
    return before.is_meta or not torch.equal(before.to(after), after)


def _reset_parameters(conv: nn.Conv2d) -> None:
    """Draw the bias anew, as `nn.Conv2d.reset_parameters`, and leave the filters as they are."""
    if conv.bias is not None:
        bound = (conv.in_channels // conv.groups * conv.kernel_size[0] * conv.kernel_size[1]) ** -0.5
        nn.init.uniform_(conv.bias, -bound, bound)


def _extra_repr(conv: nn.Conv2d) -> str:
    """Return what the class of `conv` prints, and what its filters are."""
    return f'{type(conv).extra_repr(conv)}, {describe_filters(conv)}'


# Of the layer, not of a class: a frozen convolution keeps its own
_METHODS: dict[str, Callable[..., Any]] = {
    'init_non_persistent_buffers': _refill,  # which timm and transformers call after `to_empty`
    'reset_parameters': _reset_parameters,
    'extra_repr': _extra_repr,
    '_apply': _apply,
}


def refuse_unfilled(conv: nn.Conv2d, args: Any) -> None:
    """Draw the filters that a loader's record gives, before a forward that finds none.

    Raises:
        RuntimeError: If there is no record.
    """
    if conv.record.is_meta:
        return
    if recorded(conv) is None:
        raise RuntimeError(
            'the filters of a network built on the meta device are not there yet: after `to_empty` call '
            '`init_non_persistent_buffers()` of its modules, or `load_state_dict`'
        )
    _refill(conv)


def remove_hook(hooks: dict[int, Any], hook: Any) -> None:
    """Remove the function `hook` from a module's registered hooks, in place."""
    for key, registered in list(hooks.items()):
        if getattr(registered, 'hook', registered) is hook:
            del hooks[key]


def _register_once(hooks: dict[int, Any], register: Callable[..., Any], hook: Any) -> None:
    """Register `hook` unless it is there: torch iterates over hooks while loading registers again."""
    if not any(getattr(registered, 'hook', registered) is hook for registered in hooks.values()):
        register(hook)


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
        if prefix + RECORD not in state_dict:
            _refuse_block(state_dict, prefix)
            if is_frozen(conv) and not conv.filter_record.is_kept:
                _refuse_weight(state_dict, prefix)
        elif is_frozen(conv):
            _load_record(conv, state_dict, prefix, assign=local_metadata.get('assign_to_params_buffers', False))
        else:
            _load_as_weight(conv, state_dict, prefix)
    except ValueError as error:
        error_msgs.append(f'layer `{prefix[:-1]}`: {error}')
        if is_frozen(conv) and prefix + RECORD in state_dict:
            state_dict[prefix + RECORD] = conv.record  # torch goes on to copy what is there


def _refuse_block(state_dict: dict[str, Tensor], prefix: str) -> None:
    """Refuse what an LC-Block wrote, of which a loader that is not strict would take nothing."""
    if prefix + 'pointwise.weight' in state_dict:
        raise ValueError(
            'the checkpoint has an LC-Block or an adapter here: build the model with its `expansion` or `adapter`'
        )


def _refuse_weight(state_dict: dict[str, Tensor], prefix: str) -> None:
    """Refuse weights that a frozen layer would leave out; what has neither weight nor record is missing, says torch."""
    if prefix + 'weight' in state_dict:
        raise ValueError(
            'the checkpoint has no filter record: it is of a network that learns its filters; load it before '
            '`timm_lc.freeze_spatial(model, seed=None)`, or with `freeze_spatial=False`'
        )


def _load_record(conv: nn.Conv2d, state_dict: dict[str, Tensor], prefix: str, *, assign: bool) -> None:
    """Give `conv` the filters that `state_dict` records, dropping from it what a scripted model spelt out."""
    record, crc, drawn, filters = read(state_dict, prefix)
    stored, vector = state_dict.get(prefix + 'weight'), state_dict.pop(prefix + 'shared.vector', None)
    if drawn is None:
        state_dict[prefix + 'weight'] = fit(filters, conv)
    elif stored is not None and not _equal(state_dict.pop(prefix + 'weight'), drawn):
        raise ValueError('the filters stored in the checkpoint are not those of its record')
    elif vector is not None and not _equal(
        vector[: record.numel], torch.from_numpy(record.unit_values())[: len(vector)]
    ):
        raise ValueError('the shared vector stored in the checkpoint is not that of its record')
    bits = state_dict[prefix + RECORD]
    if assign and conv.record.is_meta:
        conv.to_empty(device=bits.device)
    if assign and bits.is_floating_point():  # it has the type of the network
        conv.to(bits.dtype)
    adopt(conv, record, drawn, crc)
    state_dict[prefix + RECORD] = encode(record, crc, bits)


def _load_as_weight(conv: nn.Conv2d, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Write the recorded filters into `state_dict` as the learnable weight of `conv`."""
    *_, filters = read(state_dict, prefix)
    del state_dict[prefix + RECORD]
    state_dict.pop(prefix + 'shared.vector', None)
    state_dict[prefix + 'weight'] = fit(filters, conv)


def _equal(stored: Tensor, filters: Tensor) -> bool:
    return torch.equal(stored.flatten().cpu(), filters.to(stored.dtype).flatten())
