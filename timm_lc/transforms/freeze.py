"""Frozen random filters in any network (section 4): `freeze_spatial`."""

from typing import Any

import torch
from torch import nn

from timm_lc.arguments import changeable, check_module
from timm_lc.filters import (
    KEPT,
    FilterRecord,
    check_filters,
    check_gain,
    check_seed,
)
from timm_lc.layers.bound import BoundMethod
from timm_lc.layers.changes import is_changed
from timm_lc.layers.frozen import filter_shape, freeze_convolution, is_frozen, named_record, seed_convolution
from timm_lc.layers.held import is_held
from timm_lc.layers.implicit import ImplicitLCConv2d
from timm_lc.layers.ranks import LeftToRanks
from timm_lc.layers.sliced import is_shared
from timm_lc.layers.verify import restore
from timm_lc.spatial import FilterFn, matched_convolutions, owners, warn_of_others

__all__ = ['freeze_spatial', 'seed_spatial', 'settle', 'targets', 'unsettle']


def freeze_spatial(
    model: nn.Module,
    seed: int | None = 0,
    filter_fn: FilterFn | None = None,
    *,
    gain: float = 1.0,
    filters: str = 'uniform',
) -> nn.Module:
    """Replace, in place, the filters of the spatial convolutions by random ones that never learn; return `model`.

    Biases, norms, pointwise and linear layers go on learning. The filters leave `parameters()` and the state dict,
    which holds a record of their seed instead. Layers that share their filters stay as they are. Convolutions of one
    weight have one again. Those of one or three dimensions and transposed ones go on learning, which a warning tells.

    Args:
        model: Any network with `nn.Conv2d` layers.
        seed: Filter seed in [0, 2**32); None freezes the present weights, which the state dict then keeps.
        filter_fn: `filter_fn(module, name)` narrows which spatial convolutions are frozen. The classifier of a timm
            network, or a last convolution with as many outputs as classes, is left out; another network's
            `head.predict` is by `filter_fn=lambda module, name: name != 'head.predict'`.
        gain: Filters are uniform in +-gain / sqrt(C_in/groups * k_h * k_w); 1 is PyTorch's default, sqrt(6) He's.
        filters: 'uniform' as in the paper, or 'orthogonal': orthonormal rows per group, of the same mean square.

    Raises:
        ValueError: If nothing matches, an argument is out of range, or a layer shares filters of another seed.

    Example:
        >>> import timm
        >>> model = freeze_spatial(timm.create_model('resnet18'), seed=1)
        >>> sum(p.numel() for p in model.parameters())
        694632
    """
    network = changeable(model)
    matched = targets(network, filter_fn)
    if seed is not None:
        check_seed(seed)
    check_gain(gain), check_filters(filters)
    for name, conv in matched:
        is_implicit = isinstance(conv, ImplicitLCConv2d)
        if (is_shared(conv) or is_implicit) and seed not in (None, conv.filter_record.seed):
            kind, remedy = ('learns by', 'build it anew') if is_implicit else ('shares', 'use share_weights')
            raise ValueError(
                f'`seed` is {seed}, but layer `{name}` {kind} filters of seed {conv.filter_record.seed}: {remedy}'
            )
    for conv, owner in owners(matched).items():
        if isinstance(conv, ImplicitLCConv2d) or (is_shared(conv) and not (seed is None and is_changed(conv))):
            continue
        if seed is not None:
            freeze_convolution(conv, named_record(conv, owner, seed, gain, filters))
        elif not is_frozen(conv) or is_changed(conv):
            freeze_convolution(conv, FilterRecord(filter_shape(conv), filter_set=KEPT))
    settle(network)
    return model


def targets(model: nn.Module, filter_fn: FilterFn | None) -> list[tuple[str, nn.Conv2d]]:
    """Return (qualified name, module) of what a transform changes, at least one; warn of what it leaves.

    Raises:
        TypeError: If `model` is no module.
        ValueError: If it has adapters, nothing matches, or another tool computes a weight.
    """
    check_module(model)
    if any(is_held(module) for module in model.modules()):
        kind = type(model).__name__
        raise ValueError(f'{kind} has adapters: change its base before, or what `timm_lc.fold` makes of it')
    warn_of_others(model, filter_fn)
    return matched_convolutions(model, filter_fn)


def seed_spatial(model: nn.Module, seed: int, *, gain: float = 1.0, filters: str = 'uniform') -> nn.Module:
    """Start the learnable spatial convolutions, in place, from the filters that `freeze_spatial` would freeze."""
    for conv, name in owners(matched_convolutions(model, None)).items():
        seed_convolution(conv, named_record(conv, name, check_seed(seed), check_gain(gain), filters))
    return model


def settle(model: nn.Module) -> None:
    """Let `model`, in place, keep its filters when it initialises itself and when it is trained by several processes.

    DistributedDataParallel is spared the broadcast of filters that every rank draws for itself; kept ones need it.
    """
    names = [
        f'{name}.{tensor}'.lstrip('.')
        for name, module in model.named_modules(remove_duplicate=False)
        if (is_frozen(module) and not module.filter_record.is_kept) or isinstance(module, ImplicitLCConv2d)
        for tensor in (*dict(module.named_buffers()), *(['weight'] if is_shared(module) else []))  # if overwritten
    ]
    model._ddp_params_and_buffers_to_ignore = LeftToRanks(names, model)
    if callable(getattr(type(model), 'init_weights', None)) and 'init_weights' not in vars(model):
        model.init_weights = BoundMethod('init_weights', _init_weights, model)


def unsettle(model: nn.Module) -> None:
    """Undo `settle`, in place."""
    vars(model).pop('_ddp_params_and_buffers_to_ignore', None)
    if isinstance(vars(model).get('init_weights'), BoundMethod):
        del model.init_weights


def _init_weights(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call the initialiser of the class of `model`, and put back the frozen filters that it overwrote."""
    frozen = [module for module in model.modules() if is_frozen(module) and not module.is_unfilled]
    kept = [(conv.weight, conv.weight.clone()) for conv in frozen if conv.filter_record.is_kept]
    result = type(model).init_weights(model, *args, **kwargs)
    with torch.no_grad():
        for weight, before in kept:
            weight.copy_(before)
    for conv in frozen:
        if is_changed(conv):
            restore(conv)
    return result
