"""Parameter counts as in table 1: learnable, total, stored, nonzero."""

import math
from typing import Any, NamedTuple

from torch import nn

from timm_lc.arguments import check_module
from timm_lc.layers.changes import is_stored
from timm_lc.layers.frozen import filter_shape, is_frozen
from timm_lc.layers.held import held_parameters
from timm_lc.layers.ranks import LeftToRanks
from timm_lc.layers.recorded import refuse_program
from timm_lc.layers.sliced import is_shared
from timm_lc.spatial import is_pointwise

__all__ = ['ParameterCount', 'count_parameters']


class ParameterCount(NamedTuple):
    """Numbers of weights; statistics of norms and filter records are not counted.

    Attributes:
        learnable: Weights with a gradient.
        total: Learnable and frozen weights, a shared vector counted once.
        stored: Weights that a checkpoint holds: all but the filters that a seed gives.
        nonzero: `total` less the zeros in pointwise weights.
    """

    learnable: int
    total: int
    stored: int
    nonzero: int


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the weights of any network.

    Raises:
        TypeError: If `model` is a program of torch.export or TorchScript that has frozen filters.

    Example:
        >>> import timm, timm_lc
        >>> count_parameters(timm.create_model('lc_resnet18'))
        ParameterCount(learnable=694632, total=11689512, stored=694632, nonzero=11689512)
    """
    check_module(model)
    refuse_program(model)
    parameters = list(model.parameters())
    learnable = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = [module for module in model.modules() if is_frozen(module)]
    in_file = {m for m in frozen if is_stored(m)}
    buffers = [m for m in in_file if is_shared(m) or not isinstance(m.weight, nn.Parameter)]  # that are no parameters
    kept = {_place(m): _size(m) for m in buffers}
    stored = sum(p.numel() for p in parameters) + sum(kept.values())
    networks = _networks(model)
    # layers of one record in a network were tied: no two layers have one name; others have only a vector in common
    records = {
        (networks.get(m, None if m.filter_record.is_shared else m), m.filter_record): _size(m)
        for m in frozen
        if m not in in_file
    }
    drawn = sum(size for (_, record), size in records.items() if not record.is_shared)
    vectors: dict[tuple[Any, int, int], int] = {}
    for network, record in records:
        if record.is_shared:
            key, length = (network, record.seed, record.period), min(record.numel, record.period or record.numel)
            vectors[key] = max(vectors.get(key, 0), length)
    held = sum(tensor.numel() for module in model.modules() for tensor in held_parameters(module))  # a base's
    total = stored + drawn + sum(vectors.values()) + held
    pointwise = {id(m.weight): m.weight for m in model.modules() if is_pointwise(m)}.values()
    zeros = sum(int((w == 0).sum()) for w in pointwise if not w.is_meta)
    return ParameterCount(learnable, total, stored, total - zeros)


def _networks(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Return for each module the outermost network around it that was frozen as a whole."""
    found: dict[nn.Module, nn.Module] = {}
    for network in model.modules():
        if isinstance(vars(network).get('_ddp_params_and_buffers_to_ignore'), LeftToRanks):
            for module in network.modules():
                found.setdefault(module, network)
    return found


def _size(conv: nn.Conv2d) -> int:
    """Return the number of filter values, which the record tells of a stem before its input channels were adapted."""
    return math.prod(filter_shape(conv))


def _place(conv: nn.Conv2d) -> int:
    """Return what tells filters from those of another layer: tied layers have one storage, slices are their own."""
    if is_shared(conv):
        return id(conv)
    return id(conv.weight) if conv.weight.is_meta else conv.weight.data_ptr()
