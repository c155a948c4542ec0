"""Global magnitude pruning of pointwise weights (section 4.3, LeCun et al., 1989): `prune_pointwise`."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils import prune

from timm_lc.arguments import check_module, unwrapped
from timm_lc.layers.implicit import ImplicitLCConv2d
from timm_lc.spatial import check_weight, pointwise_convolutions

__all__ = ['LayerSparsity', 'pointwise_sparsity', 'prune_pointwise']


class LayerSparsity(NamedTuple):
    """Zeros in the weight of one pointwise convolution: numbers of values, and their share in [0, 1]."""

    name: str
    size: int
    zeros: int
    share: float


def prune_pointwise(model: nn.Module, amount: float) -> nn.Module:
    """Zero, in place, the pointwise weights of smallest magnitude in the whole network; return `model`.

    Nothing but the zeros remembers the pruning, so `model` is copied and saved as before. To fine-tune it, train with
    an l1 optimizer and `keep_zeros=True`; a moving average of its weights that exists already is a network of its own.

    Args:
        model: Any network. Its classifier stays whole.
        amount: Fraction of all pointwise weights that shall be zero, in [0, 1); those that are zero already count.

    Raises:
        TypeError: If `amount` is not a number.
        ValueError: If `amount` is out of range, there is no pointwise convolution, or another tool computes its weight.

    Example:
        >>> import timm
        >>> model = prune_pointwise(timm.create_model('lc_resnet20_16x1'), 0.7)
        >>> sum(layer.zeros for layer in pointwise_sparsity(model))
        24550
    """
    check_module(model)
    check_amount(amount)
    if any(isinstance(module, ImplicitLCConv2d) for module in model.modules()):
        raise ValueError('implicit LC-Blocks have no pointwise weights to prune: use to_explicit before')
    convolutions = _matched(model)
    for name, conv in convolutions:
        if not prune.is_pruned(conv):  # by torch, whose masks count on
            check_weight(conv, name)
    weights = [(conv, 'weight') for _, conv in convolutions]
    prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=float(amount))
    for conv, name in weights:
        prune.remove(conv, name)
        with torch.no_grad():
            conv.weight += 0.0  # a mask makes negative weights -0.0, which a packed file would not keep
        # it comes back as the last parameter: restore the order, by which optimizers' states are saved
        for other in [key for key in conv._parameters if key != name]:
            conv._parameters[other] = conv._parameters.pop(other)
    return model


def pointwise_sparsity(model: nn.Module) -> list[LayerSparsity]:
    """Count the zeros in each pointwise convolution that `prune_pointwise` prunes.

    Raises:
        ValueError: If there is no pointwise convolution.
    """
    sizes = [(name, conv.weight.numel(), int((conv.weight == 0).sum())) for name, conv in _matched(model)]
    return [LayerSparsity(name, size, zeros, zeros / size) for name, size, zeros in sizes]


def check_amount(amount: float) -> float:
    """Return `amount` if it is a fraction in [0, 1), else raise."""
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise TypeError(f'`amount` must be a number, got {amount!r}')
    if not 0 <= amount < 1:
        raise ValueError(f'`amount` must be in [0, 1), got {amount}')
    return amount


def _matched(model: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """Return the pointwise convolutions, of those with the same weight the first; at least one."""
    owners: dict[int, tuple[str, nn.Conv2d]] = {}
    for name, conv in pointwise_convolutions(unwrapped(model)):
        owners.setdefault(id(conv.weight), (name, conv))
    if not owners:
        raise ValueError(f'{type(model).__name__} has no pointwise convolution to prune')
    return list(owners.values())
