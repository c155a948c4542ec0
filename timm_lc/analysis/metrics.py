"""Measures of convolution filters and pointwise weights, as pure functions (sections 4.2 to 4.4, appendices E and F).

Filters have shape (C_out, C_in, k_h, k_w); a kernel is one of their C_out * C_in matrices (k_h, k_w).
"""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from timm_lc.layers.lc_conv import LCConv2d
from timm_lc.layers.sliced import present_filters
from timm_lc.spatial import is_pointwise, spatial_convolutions

__all__ = [
    'effective_filters',
    'pointwise_weights',
    'position_variance',
    'randomness_threshold',
    'reconstruction_error',
    'variance_entropy',
]


def variance_entropy(filters: Tensor, *, normalized: bool = False) -> float:
    """Return the filter variance entropy of Gavrikov and Keuper (2022, section 4.4): the diversity of kernels.

    It is the entropy (base 10) of the variance ratios of the kernels' principal components: 0 where all kernels are
    multiples of one pattern around their mean, log10(k_h * k_w) where all directions are alike.

    Args:
        filters: (C_out, C_in, k_h, k_w).
        normalized: Whether to divide by `randomness_threshold` (figure 6, 3x3 kernels only; figure 15 does not).

    Raises:
        ValueError: If `normalized` and the kernels are not 3x3, or `filters` has not four dimensions.
    """
    kernels = _kernels(filters)
    deviations = kernels - kernels.mean(0)
    variance = torch.linalg.svdvals(deviations.double()).square()
    # rounding leaves traces where there is no deviation at all
    scale = kernels.double().square().sum() * torch.finfo(filters.dtype).eps ** 2
    variance = variance[variance > scale]
    ratio = variance / variance.sum()
    entropy = -(ratio * ratio.log10()).sum().item() if len(ratio) else 0.0
    if not normalized:
        return abs(entropy)
    if filters.shape[2:] != (3, 3):
        raise ValueError(f'`normalized` is defined for 3x3 kernels, got {tuple(filters.shape[2:])}')
    return abs(entropy) / randomness_threshold(len(kernels))


def randomness_threshold(kernels: int) -> float:
    """Return the variance entropy above which `kernels` 3x3 kernels count as random (Gavrikov and Keuper, 2022)."""
    height, midpoint, slope, offset = 1.2618047, 2.30436435, 0.88767525, -0.31050834
    return height / (1 + math.exp(-slope * (math.log2(kernels) - midpoint))) + offset


def position_variance(layers: Iterable[Tensor]) -> Tensor:
    """Return the variance (k_h, k_w) of each kernel element over all kernels of a model (figure 13).

    Args:
        layers: Filters of layers with one kernel size; each layer is divided by the standard deviation of its weights.
    """
    scaled = [filters.double() / filters.double().std() for filters in layers]
    kernels = torch.cat([_kernels(filters) for filters in scaled])
    return kernels.var(0).view(scaled[0].shape[2:])


def reconstruction_error(filters: Tensor, random_filters: Tensor) -> float:
    """Return how badly linear combinations of random filters make up learned ones (figure 2), in [0, 1].

    The error is that of the best combination: the norm of what least squares leaves, over the norm of `filters`.

    Args:
        filters: Learned filters (C_out, C_in, k_h, k_w).
        random_filters: (n, C_in, k_h, k_w).
    """
    target = filters.flatten(1).t().double()  # (C_in*k_h*k_w, C_out)
    basis = torch.linalg.qr(random_filters.flatten(1).t().double()).Q  # (C_in*k_h*k_w, min(n, C_in*k_h*k_w))
    return ((target - basis @ (basis.t() @ target)).norm() / target.norm()).item()


def effective_filters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, filters) of each spatial convolution; those of an LC-Block are combined (figures 12 to 15)."""
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, LCConv2d)}
    for name, conv in spatial_convolutions(model):
        block = blocks.get(name.rpartition('.')[0])
        with torch.no_grad():
            yield (
                (name.rpartition('.')[0], block.effective_weight()) if block else (name, present_filters(conv).detach())
            )


def pointwise_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, weights (n,)) of each pointwise convolution, of which figure 16 shows the distribution."""
    for name, module in model.named_modules():
        if is_pointwise(module):
            yield name, module.weight.detach().flatten()


def _kernels(filters: Tensor) -> Tensor:
    """Return (C_out*C_in, k_h*k_w)."""
    if filters.ndim != 4:
        raise ValueError(f'`filters` must have shape (C_out, C_in, k_h, k_w), got {tuple(filters.shape)}')
    return filters.detach().flatten(2).flatten(0, 1)
