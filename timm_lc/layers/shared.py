"""The one random vector that shared convolutions slice (section 4.3, appendix D)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from timm_lc.filters import SHARED_STREAM, FilterRecord, check_seed, random_values
from timm_lc.layers.recorded import copy_filters

__all__ = ['SharedFilters', 'repeat_to', 'trace_as_leaf']


class SharedFilters(nn.Module):
    """The one random vector that all shared convolutions of a network slice (section 4.3).

    Args:
        seed: Filter seed in [0, 2**32).
        longest: Length of the longest slice.
        period: Length of the vector if it is recycled, 0 if not.
    """

    vector: Tensor

    def __init__(self, seed: int, longest: int, period: int = 0, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.seed, self.longest, self.period = check_seed(seed), longest, period
        self.register_buffer('vector', torch.empty(period or longest, device=device, dtype=dtype), persistent=False)
        self.filled = False
        self.others: dict[tuple[int, int], SharedFilters] = {}
        self.lenders: list[nn.Conv2d] = []  # layers whose weight other code may hold

    def fill(self, *, again: bool = False) -> np.ndarray | None:
        """Draw the values, unless they are there and not to be drawn `again`; return them as drawn, float32."""
        if self.vector.is_meta or (self.filled and not again):
            return None
        units = random_values(self.seed, SHARED_STREAM, len(self.vector))
        copy_filters(self.vector, torch.from_numpy(units))
        self.filled = True
        return units

    def _apply(self, fn: Any, recurse: bool = True) -> 'SharedFilters':
        before = self.vector
        super()._apply(fn, recurse)
        if self.vector is not before:  # `to_empty` loses the values, `to` keeps them
            is_meta = before.is_meta or self.vector.is_meta
            self.filled = self.filled and not is_meta and torch.equal(before.to(self.vector), self.vector)
        return self

    def peer(self, record: FilterRecord) -> 'SharedFilters':
        """Return the vector that `record` slices: this one, or another if a checkpoint has other seeds or periods."""
        key = record.seed, record.period
        if key == (self.seed, self.period) and record.numel <= max(self.longest, self.period):
            return self
        if key not in self.others:
            longest = max(self.longest, record.numel)
            self.others[key] = SharedFilters(
                record.seed, longest, record.period, device=self.vector.device, dtype=self.vector.dtype
            )
        return self.others[key]

    def extra_repr(self) -> str:
        """Return seed, length and period."""
        return f'seed={self.seed}, longest={self.longest}, period={self.period}'


def repeat_to(vector: Tensor, length: int) -> Tensor:
    """Return the first `length` values, the vector repeated if it is shorter."""
    if vector.numel() < length:
        vector = vector.repeat((length + vector.numel() - 1) // vector.numel())
    return vector[:length]


def trace_as_leaf(module: nn.Module) -> None:
    """Let FX keep `module` whole, in place, as it keeps torch's own: only so is its record in what it traces.

    All tracers ask where a module says it is from; `register_notrace_module` reaches timm's alone.
    """
    module.__module__ = 'torch.nn'
