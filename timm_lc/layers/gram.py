"""G = W^T W of an LC-Block's filters, the matrix that multiplies the gradient of its effective weight.

With frozen filters W, a step of SGD on P moves P W as the same step on P W whose gradient is multiplied by G:
(P - lr (dW_eff W^T + wd P)) W = (1 - lr wd) P W - lr dW_eff W^T W. It is linear, and so are momentum and Nesterov.
"""

import functools
import math
import os
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from timm_lc.filters import EXPECTED, FilterRecord

__all__ = [
    'Gram',
    'Solution',
    'build_gram',
    'expected_factor',
    'gram_shape',
    'multiply',
    'precondition',
    'solve_pointwise',
    'without_rounding',
]

Adapt = Callable[[np.ndarray], np.ndarray]


class Gram(NamedTuple):
    """What multiplies a gradient: see `gram_shape`; the fingerprint of the filters; P W if P was given.

    Args:
        matrix: float64, G (groups, fan, fan), W (1, groups, rows, fan), or c ().
        crc: CRC-32 of the filters' bytes.
        product: float64 (C_out, fan).
    """

    matrix: np.ndarray
    crc: int
    product: np.ndarray | None


def expected_factor(record: FilterRecord, groups: int) -> float:
    """Return c, to whose multiple of the identity G tends as E grows: gain^2 E C_out / (3 C_in k_h k_w)."""
    return record.gain**2 * record.shape[0] / groups / (3 * math.prod(record.shape[1:]))


def gram_shape(record: FilterRecord, groups: int, fan: int) -> tuple[int, ...]:
    """Return the shape of what multiplies a gradient (C_out, fan), the cheapest that is exact.

    G itself, (groups, fan, fan); W, (1, groups, rows, fan), where a group has less than fan / 2 filters: (dW W^T) W
    costs less than dW G; for the expected G a number, ().
    """
    if record.filter_set == EXPECTED:
        return ()
    rows = record.shape[0] // groups
    return (1, groups, rows, fan) if 2 * rows < fan else (groups, fan, fan)


def build_gram(
    record: FilterRecord, groups: int, fan: int, *, adapt: Adapt | None = None, pointwise: np.ndarray | None = None
) -> Gram:
    """Draw the filters in blocks, of which none stays, and sum their products in float64.

    Args:
        record: Of filters (R, C_in/groups, k_h, k_w).
        groups: Of the convolution.
        fan: C_in/groups * k_h * k_w of the convolution.
        adapt: Fits filters to the convolution if it has other input channels than the record.
        pointwise: P, float64 (C_out, R/groups).

    Raises:
        ValueError: If G does not fit into memory.
    """
    shape = gram_shape(record, groups, fan)
    if record.filter_set == EXPECTED:
        return Gram(np.float64(expected_factor(record, groups)), 0, None)
    _check_memory(shape)
    matrix, crc, rows = np.zeros(shape), 0, record.shape[0] // groups
    product = None if pointwise is None else np.zeros((groups, len(pointwise) // groups, fan))
    position = 0
    for block, exact in record.blocks(groups):
        crc = zlib.crc32(np.ascontiguousarray(block, '<f4').data, crc)
        group, row = divmod(position, rows)
        parts = max(1, len(block) // rows)  # whole groups, or a part of one
        filters = (exact if adapt is None else adapt(exact)).reshape(parts, -1, fan)
        here = slice(row, row + filters.shape[1])
        if len(shape) == 3:
            matrix[group : group + parts] += np.swapaxes(filters, 1, 2) @ filters
        else:
            matrix[0, group : group + parts, here] = filters
        if pointwise is not None and product is not None:
            weights = pointwise.reshape(groups, -1, rows)[group : group + parts, :, here]
            product[group : group + parts] += weights @ filters
        position += len(block)
    return Gram(matrix, crc, None if product is None else product.reshape(-1, fan))


def _check_memory(shape: tuple[int, ...]) -> None:
    needed, there = 8 * math.prod(shape), _memory()
    if needed > there:
        raise ValueError(
            f'the matrix that multiplies its gradient, {" x ".join(map(str, shape))}, takes {needed / 2**30:,.1f} GiB '
            f"to build and {there / 2**30:,.1f} GiB are there: use the explicit form, or `filters='expected'`"
        )


def _memory() -> int:
    """Return the machine's memory in bytes, where the system tells."""
    if not hasattr(os, 'sysconf'):
        return 1 << 62
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def multiply(gradient: Tensor, gram: Tensor) -> Tensor:
    """Return the gradient (C_out, C_in/groups, k_h, k_w) times G, as `gram_shape` holds it."""
    if gram.dim() == 0:
        return gradient * gram
    is_factor = gram.dim() == 4
    if is_factor:
        gram = gram[0]
    rows = gradient.reshape(gram.shape[0], -1, gram.shape[2])  # (groups, C_out/groups, fan)
    if is_factor:
        rows = rows @ gram.transpose(1, 2)
    return (rows @ gram).reshape(gradient.shape)


def _multiply_outside_autocast(gradient: Tensor, gram: Tensor) -> Tensor:
    """Return `multiply` in the gradient's type, whatever autocast says."""
    device, gram = gradient.device.type, gram.to(gradient.dtype)
    if device == 'meta' or not torch.is_autocast_enabled(device):  # entering a context costs as much as a product
        return multiply(gradient, gram)
    with torch.autocast(device, enabled=False):
        return multiply(gradient, gram)


class _Precondition(torch.autograd.Function):
    """The identity, with a gradient that is multiplied by G."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gram: Tensor) -> Tensor:
        ctx.save_for_backward(gram)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _multiply_outside_autocast(gradient, *ctx.saved_tensors), None


def precondition(weight: Tensor, gram: Tensor) -> Tensor:
    """Return `weight` (C_out, C_in/groups, k_h, k_w), whose gradient will be multiplied by G."""
    if not weight.requires_grad or (not torch.jit.is_tracing() and not torch.is_grad_enabled()):
        return weight
    if torch.jit.is_scripting() or torch.jit.is_tracing():  # which know neither of the two below: add 0 G
        return weight.detach() + multiply(weight - weight.detach(), gram)
    if torch.compiler.is_compiling():  # torch 2.6 compiles no hook
        return _Precondition.apply(weight, gram)
    same = weight.view_as(weight)
    # a hook takes half of what an autograd function does
    same.register_hook(functools.partial(_multiply_outside_autocast, gram=gram))
    return same


torch.fx.wrap('precondition')


class Solution(NamedTuple):
    """P of the smallest norm with P W nearest to a target.

    Args:
        pointwise: float64 (targets, C_out, R/groups).
        condition: Largest over smallest eigenvalue of G, of those that are not zero, in the worst group.
        residual: Norm of what no combination of the filters gives, over that of the first target.
    """

    pointwise: np.ndarray
    condition: float
    residual: float


def without_rounding(values: np.ndarray) -> np.ndarray:
    """Return eigenvalues (groups, fan) of G, ascending, with those set to zero that rounding may have made."""
    limit = 16 * values.shape[-1] * np.finfo(np.float64).eps * values[..., -1:]
    return np.where(values > limit, values, 0.0)


def solve_pointwise(
    record: FilterRecord, groups: int, fan: int, targets: np.ndarray, *, adapt: Adapt | None = None
) -> Solution:
    """Solve P W = target in least squares, for targets (targets, C_out, fan), drawing the filters in blocks."""
    filters = [exact if adapt is None else adapt(exact) for _, exact in record.blocks(groups)]
    rows = np.concatenate(filters).reshape(groups, -1, fan)
    values, vectors = np.linalg.eigh(np.swapaxes(rows, 1, 2) @ rows)
    values = without_rounding(values)
    inverse = np.divide(1, values, out=np.zeros_like(values), where=values > 0)
    grouped = targets.reshape(len(targets), groups, -1, fan)
    coordinates = grouped @ vectors  # (targets, groups, C_out/groups, fan)
    outside = np.where(values[:, None, :] > 0, 0.0, coordinates[0])
    solved = (coordinates * inverse[:, None, :]) @ np.swapaxes(vectors, 1, 2) @ np.swapaxes(rows, 1, 2)
    smallest = np.where(values > 0, values, np.inf).min(1)
    return Solution(
        solved.reshape(len(targets), targets.shape[1], -1),
        float((values[:, -1] / smallest).max()),
        float(np.linalg.norm(outside) / max(np.linalg.norm(targets[0]), np.finfo(np.float64).tiny)),
    )
