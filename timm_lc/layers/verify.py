"""Are all filters those of their records? `verify`, and what to do where they are not."""

from torch import nn

from timm_lc.arguments import check_module
from timm_lc.filters import KEPT, FilterRecord
from timm_lc.layers.changes import Seen, is_changed
from timm_lc.layers.frozen import freeze_convolution, share_convolution
from timm_lc.layers.recorded import filter_shape, is_frozen, recorded, refuse_program
from timm_lc.layers.sliced import is_shared

__all__ = ['restore', 'verify']


def verify(model: nn.Module, *, remedy: str | None = None) -> dict[str, str]:
    """Tell of each frozen layer whether it computes with the filters of its record; with a remedy, set it right.

    All filters are compared, whatever changed them. `state_dict()` itself looks only where a version counter moved.

    Args:
        model: Any network; changed in place if there is a remedy.
        remedy: What to do with changed filters: 'restore' draws those of the record again, 'keep' freezes the present
            ones, which checkpoints then hold.

    Returns:
        For each frozen layer what was found, by its qualified name: 'drawn' (those of its record), 'kept' (in the
        checkpoint, because no seed gives them), 'changed', or 'unfilled' (built on the meta device, not yet there).

    Raises:
        ValueError: If `remedy` is none of these.
        TypeError: If `model` is a program of torch.export or TorchScript.

    Example:
        >>> import timm, timm_lc
        >>> set(verify(timm.create_model('lc_resnet18')).values())
        {'drawn'}
    """
    check_module(model)
    if remedy not in (None, 'restore', 'keep'):
        raise ValueError(f"`remedy` must be 'restore', 'keep' or None, got {remedy!r}")
    refuse_program(model)
    frozen = {name: module for name, module in model.named_modules() if is_frozen(module)}
    states = {name: _state(module) for name, module in frozen.items()}
    for module in (frozen[name] for name, state in states.items() if state == 'changed'):
        if remedy == 'restore':
            restore(module)
        elif remedy == 'keep':
            freeze_convolution(module, FilterRecord(filter_shape(module), filter_set=KEPT))
    return states


def _state(conv: nn.Conv2d) -> str:
    conv.seen = Seen()  # compare, whatever was seen: writing to `.data` moves no version counter
    if conv.is_unfilled or conv.record.is_meta:
        return 'unfilled'
    if is_changed(conv):
        return 'changed'
    return 'kept' if conv.filter_record.is_kept else 'drawn'


def restore(conv: nn.Conv2d) -> None:
    """Draw the filters of the record of `conv` again, in place."""
    found = recorded(conv)
    record = conv.filter_record if found is None else found[0]
    if is_shared(conv):
        shared = conv.shared.peer(record)
        shared.fill(again=True)
        share_convolution(conv, record, shared)
    else:
        freeze_convolution(conv, record)
