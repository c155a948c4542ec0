"""Orthonormal rows with the same bits on every machine: Gram-Schmidt whose every rounding is defined.

LAPACK's QR rounds differently with each library, instruction set and thread count. Here sums of rounded terms follow a
fixed tree of elementwise additions, and matrix products have integer factors so small that each sum is exact in float64
in any order (after Ozaki et al., 2012), so that a fast library may form them.
"""

import numpy as np

__all__ = ['orthonormal_rows']

_PANEL = 32  # rows orthonormalised one by one before the rest is projected by matrix products


def orthonormal_rows(matrix: np.ndarray) -> np.ndarray:
    """Return the Gram-Schmidt orthonormalisation of the rows, first to last.

    Args:
        matrix: float (..., m, n) with m <= n and independent rows.

    Returns:
        float64 (..., m, n).

    Example:
        >>> orthonormal_rows(np.float64([[3, 4], [1, 0]])).round(3).tolist()
        [[0.6, 0.8], [0.8, -0.6]]
    """
    rows = matrix.astype(np.float64)
    for _ in range(2):  # once loses orthogonality with the condition number, twice is enough
        for start in range(0, rows.shape[-2], _PANEL):
            panel, rest = rows[..., start : start + _PANEL, :], rows[..., start + _PANEL :, :]
            _orthonormalise_panel(panel)
            if rest.size:
                rest -= _product(_product(rest, np.swapaxes(panel, -1, -2)), panel)
    return rows


def _orthonormalise_panel(panel: np.ndarray) -> None:
    """Orthonormalise rows one by one, in place."""
    for index in range(panel.shape[-2]):
        row = panel[..., index : index + 1, :]
        row /= np.sqrt(_sum(row * row))
        later = panel[..., index + 1 :, :]
        later -= _sum(later * row) * row


def _sum(terms: np.ndarray) -> np.ndarray:
    """Add (..., n) to (..., 1) by halving: `np.sum` may pair its terms in another order elsewhere."""
    while (length := terms.shape[-1]) > 1:
        half = length // 2
        halved = terms[..., :half] + terms[..., half : 2 * half]
        if length % 2:
            halved[..., :1] += terms[..., -1:]
        terms = halved
    return terms


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Multiply (..., m, q) by (..., q, n) with factors rounded to two integers of some 20 bits each."""
    bits = (53 - (left.shape[-1] - 1).bit_length()) // 2  # q products of two integers stay below 2**53
    left_high, left_low, left_unit = _integers(left, bits)
    right_high, right_low, right_unit = _integers(right, bits)
    cross = left_high @ right_low + left_low @ right_high
    return np.ldexp(left_high @ right_high + np.ldexp(cross, -bits), left_unit + right_unit)


def _integers(matrix: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Split into (high + low / 2**bits) * 2**unit, both of integers of at most `bits` bits."""
    unit = int(np.frexp(np.abs(matrix).max())[1]) - bits
    scaled = np.ldexp(matrix, -unit)
    high = np.rint(scaled)
    return high, np.rint(np.ldexp(scaled - high, bits)), unit
