"""A norm's tensors as one in a file: a name costs as much there as twenty values.

In a file `NAME.norm` is (k, C), in the rows what the norm has of weight, bias, running mean and running variance.
Counts of batches are left out: no output depends on them, and a network keeps those that it has.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ['pack_norms', 'unpack_norms']

_TENSORS = ('weight', 'bias', 'running_mean', 'running_var')
_COUNTER, _PACKED = 'num_batches_tracked', 'norm'


def pack_norms(state_dict: Mapping[str, Tensor], norms: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return a copy of the state dict with the tensors of each of these norms, by name, packed."""
    packed = dict(state_dict)
    for name, norm in norms.items():
        present = _present(norm)
        rows = [packed[f'{name}.{key}'] for key in present]
        if len({(row.shape, row.dtype) for row in rows}) == 1:
            packed[f'{name}.{_PACKED}'] = torch.stack(rows)
            for key in (*present, _COUNTER):
                packed.pop(f'{name}.{key}', None)
    return packed


def unpack_norms(state_dict: dict[str, Tensor], prefix: str, norms: Mapping[str, nn.Module]) -> list[str]:
    """Write packed tensors of these norms into the state dict as ordinary ones; return what is wrong with them."""
    errors = []
    for name, norm in norms.items():
        packed, present = state_dict.pop(f'{prefix}{name}.{_PACKED}', None), _present(norm)
        if packed is None:
            continue
        if len(packed) != len(present):
            errors.append(f'layer `{name}`: its packed norm has {len(packed)} rows, not {len(present)}')
            continue
        state_dict.update({f'{prefix}{name}.{key}': row for key, row in zip(present, packed, strict=True)})
        if getattr(norm, _COUNTER, None) is not None:
            state_dict.setdefault(f'{prefix}{name}.{_COUNTER}', norm.num_batches_tracked)
    return errors


def _present(norm: nn.Module) -> list[str]:
    return [key for key in _TENSORS if getattr(norm, key, None) is not None]
