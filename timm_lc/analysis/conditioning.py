"""What an LC-Block's filters reach, and how evenly: rank and condition number of G = W^T W."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from timm_lc.filters import EXPECTED, FilterRecord
from timm_lc.layers.frozen import is_frozen
from timm_lc.layers.gram import build_gram, gram_shape, without_rounding
from timm_lc.layers.implicit import ImplicitLCConv2d
from timm_lc.layers.lc_conv import LCConv2d
from timm_lc.layers.recorded import adapt_channels

__all__ = ['Conditioning', 'condition', 'conditioning_page']


class Conditioning(NamedTuple):
    """Of one LC-Block.

    Args:
        rank: Of G, in all groups.
        size: Weights of a filter, C_in/groups * k_h * k_w, in all groups: the largest rank.
        reach: rank / size, the share of the plain convolution's filters that P W reaches, in [0, 1].
        condition: Largest over smallest eigenvalue of G that is not zero, in the worst group; 1 for a projector.
        smallest: The smallest E that reaches all filters; 0 of recycled ones, which repeat whatever E is.
        numbers: Values that the implicit form holds to multiply a gradient.
        multiply_adds: Of that product, in each step.
    """

    rank: int
    size: int
    reach: float
    condition: float
    smallest: int
    numbers: int
    multiply_adds: int


def condition(record: FilterRecord, out_channels: int, groups: int, channels: int = 0) -> Conditioning:
    """Return rank and condition of the LC-Block with these filters, drawn and decomposed on the spot.

    Args:
        record: Of filters (E*C_out, C_in/groups, k_h, k_w).
        out_channels: C_out.
        groups: Of the convolution.
        channels: C_in/groups that the filters were adapted to; 0 is the record's.
    """
    channels = channels or record.shape[1]
    fan = channels * math.prod(record.shape[2:])
    shape = gram_shape(record, groups, fan)
    per_group = out_channels // groups  # rows of the gradient
    smallest = 0 if record.is_recycled else -(-fan // per_group)
    if record.filter_set == EXPECTED:
        return Conditioning(fan * groups, fan * groups, 1.0, 1.0, smallest, 1, out_channels * fan)

    def adapt(filters: np.ndarray) -> np.ndarray:
        return adapt_channels(torch.from_numpy(filters), channels).numpy()

    values = _eigenvalues(build_gram(record, groups, fan, adapt=adapt).matrix)
    nonzero = np.where(values > 0, values, np.inf)
    rank = int((values > 0).sum())
    applied = 2 * shape[2] if len(shape) == 4 else fan  # multiply-adds for each weight of the gradient
    return Conditioning(
        rank, fan * groups, rank / (fan * groups), float((values.max(1) / nonzero.min(1)).max()), smallest,
        math.prod(shape), out_channels * fan * applied,
    )  # fmt: skip


def conditioning_page(model: nn.Module) -> str:
    """Return a table of each LC-Block with filters of a seed, explicit or implicit, and of all; '' if there is none.

    G is drawn and decomposed on the spot: seconds for a CIFAR network, minutes for a wide one.
    """
    found = {name: condition(*block) for name, block in _blocks(model)}
    if not found:
        return ''
    width = max(map(len, found)) + 2
    lines = [
        f'{"LC-Block":<{width}}{"rank of G":<16}{"reach":<9}{"condition":<12}{"E for all":<11}implicit form a step'
    ]
    for name, one in found.items():
        rank, cost = f'{one.rank} of {one.size}', f'{one.numbers:,} numbers, {one.multiply_adds:,} multiply-adds'
        lines.append(f'{name:<{width}}{rank:<16}{one.reach:<9.1%}{one.condition:<12.3g}{one.smallest or "-":<11}{cost}')
    reach, worst = min(one.reach for one in found.values()), max(one.condition for one in found.values())
    every, numbers = [one.smallest for one in found.values()], sum(one.numbers for one in found.values())
    smallest = min(every) and max(every)
    cost = f'{numbers:,} numbers, {sum(one.multiply_adds for one in found.values()):,} multiply-adds'
    return '\n'.join([*lines, f'{"all":<{width}}{"":<16}{reach:<9.1%}{worst:<12.3g}{smallest or "-":<11}{cost}'])


def _blocks(model: nn.Module) -> Iterator[tuple[str, tuple[FilterRecord, int, int, int]]]:
    """Yield the name of each LC-Block whose filters a seed gives, and what `condition` needs."""
    for name, module in model.named_modules():
        if isinstance(module, ImplicitLCConv2d):
            record = module.filter_record
        elif isinstance(module, LCConv2d) and is_frozen(module.spatial) and not module.spatial.filter_record.is_kept:
            record = module.spatial.filter_record
        else:
            continue
        yield name, (record, module.out_channels, module.groups, module.in_channels // module.groups)


def _eigenvalues(matrix: np.ndarray) -> np.ndarray:
    """Return the eigenvalues of G in each group, those of W W^T where W is held: the others are zero."""
    if matrix.ndim == 4:
        matrix = matrix[0] @ np.swapaxes(matrix[0], 1, 2)
    return without_rounding(np.linalg.eigvalsh(matrix))
