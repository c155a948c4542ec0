"""Pruned pointwise weights as a bit mask and the values that are left (section 4.3).

In a file `NAME.weight` of n values becomes `NAME.weight.mask`, ceil(n / 8) bytes, the first value in the lowest bit,
and `NAME.weight.values`, those whose bit is set, in order. What `add_unpacking` has prepared loads both forms.
"""

import numpy as np
import torch
from torch import Tensor, nn

from timm_lc.layers.frozen import remove_hook
from timm_lc.spatial import is_pointwise, pointwise_convolutions

__all__ = ['add_unpacking', 'pack_pointwise', 'remove_unpacking']

_MASK, _VALUES = 'weight.mask', 'weight.values'


def pack_pointwise(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the state dict of `model` with each pointwise weight packed where that makes it smaller.

    The classifier stays whole, because timm looks for its weight to adapt it.
    """
    packed = dict(state_dict)
    for name, _ in pointwise_convolutions(model):
        if f'{name}.weight' in packed:
            weight = packed[f'{name}.weight'].flatten()
            kept = weight != 0
            if kept.sum() * weight.itemsize + weight.numel() / 8 < weight.nbytes:
                del packed[f'{name}.weight']
                packed[f'{name}.{_MASK}'] = torch.from_numpy(np.packbits(kept.cpu().numpy(), bitorder='little'))
                packed[f'{name}.{_VALUES}'] = weight[kept]
    return packed


def add_unpacking(model: nn.Module) -> nn.Module:
    """Let all pointwise convolutions load packed weights, in place; return `model`."""
    for module in model.modules():
        if is_pointwise(module):
            remove_hook(module._load_state_dict_pre_hooks, _unpack)
            module.register_load_state_dict_pre_hook(_unpack)
    return model


def remove_unpacking(model: nn.Module) -> nn.Module:
    """Let `model` load whole weights only, in place, as a stock network does; return it."""
    for module in model.modules():
        remove_hook(module._load_state_dict_pre_hooks, _unpack)
    return model


def _unpack(
    conv: nn.Conv2d,
    state_dict: dict[str, Tensor],
    prefix: str,
    local_metadata: dict,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Write the packed weight of `conv` into `state_dict` as an ordinary one."""
    mask, values = state_dict.pop(prefix + _MASK, None), state_dict.pop(prefix + _VALUES, None)
    if mask is None and values is None:
        return
    size = (conv.out_channels, conv.in_channels // conv.groups, 1, 1)
    numel = size[0] * size[1]
    if mask is None or values is None or mask.dtype != torch.uint8 or mask.shape != (-(-numel // 8),):
        error_msgs.append(f'layer `{prefix[:-1]}`: its packed weight is not one of shape {size}')
        return
    bits = np.unpackbits(mask.cpu().numpy(), bitorder='little').astype(bool)
    if bits.sum() != values.numel() or bits[numel:].any():
        error_msgs.append(f'layer `{prefix[:-1]}`: its mask has {bits.sum()} bits set for {values.numel()} values')
        return
    weight = values.new_zeros(numel)
    weight[torch.from_numpy(bits[:numel]).to(values.device)] = values.flatten()
    state_dict[prefix + 'weight'] = weight.view(size)
