"""What a network is made of, layer by layer, as `timm-lc info` prints it."""

from typing import NamedTuple

from torch import nn

from timm_lc.analysis.counting import ParameterCount, count_parameters
from timm_lc.arguments import check_module
from timm_lc.layers.adapter import AdaptedConv2d
from timm_lc.layers.frozen import describe_filters, is_frozen
from timm_lc.layers.implicit import ImplicitLCConv2d
from timm_lc.layers.lc_conv import LCConv2d
from timm_lc.layers.recorded import filter_shape
from timm_lc.spatial import is_pointwise, is_spatial

__all__ = ['Description', 'LayerInfo', 'describe']


class LayerInfo(NamedTuple):
    """One convolution.

    Attributes:
        name: Its qualified name.
        role: 'spatial', 'pointwise' or 'convolution' (of one or three dimensions), after 'LC-Block ' if it is in one;
            of an adapted one 'base spatial', 'adapter filters' and 'adapter P'.
        shape: Of its weight, (C_out, C_in/groups, k_h, k_w).
        state: 'learnable', 'not learnable', 'kept', or 'frozen' or 'shared' with seed and period.
        seed: Of its filters, or of those that an implicit LC-Block learns as by; None where no seed gives them.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    state: str
    seed: int | None


class Description(NamedTuple):
    """All convolutions of a network, and its weights; printed it is a table."""

    layers: list[LayerInfo]
    parameters: ParameterCount

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=5) + 2
        lines = [f'{"layer":<{width}}{"role":<20}{"kernel":<8}{"shape":<24}state']
        for layer in self.layers:
            kernel, shape = ('x'.join(map(str, layer.shape[2:])), ' x '.join(map(str, layer.shape)))
            lines.append(f'{layer.name:<{width}}{layer.role:<20}{kernel:<8}{shape:<24}{layer.state}')
        counts = self.parameters
        totals = f'{counts.learnable:,} learnable, {counts.total:,} total, {counts.stored:,} stored'
        return '\n'.join([*lines, '', f'parameters: {totals}'])


def describe(model: nn.Module) -> Description:
    """Return role, state and seed of each convolution of any network, and the totals; `print` shows a table.

    Example:
        >>> import timm, timm_lc
        >>> model = timm_lc.freeze_spatial(timm.create_model('resnet18'), seed=7)
        >>> timm_lc.describe(model).layers[0]
        LayerInfo(name='conv1', role='spatial', shape=(64, 3, 7, 7), state='frozen, seed=7', seed=7)
    """
    check_module(model)
    return Description(
        [_layer(name, module, model) for name, module in model.named_modules() if _is_convolution(module)],
        count_parameters(model),
    )


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)


def _layer(name: str, conv: nn.Module, model: nn.Module) -> LayerInfo:
    role = 'spatial' if is_spatial(conv) else 'pointwise' if is_pointwise(conv) else 'convolution'
    holder = model.get_submodule(name.rpartition('.')[0])
    if isinstance(holder, LCConv2d):
        role = f'LC-Block {role}'
    elif isinstance(holder, AdaptedConv2d):
        role = f'base {role}' if conv is holder.base else 'adapter ' + ('filters' if conv is holder.spatial else 'P')
    if is_frozen(conv):
        seed = None if conv.filter_record.is_kept else conv.filter_record.seed
        return LayerInfo(name, role, filter_shape(conv), describe_filters(conv), seed)
    state, seed = 'learnable' if conv.weight.requires_grad else 'not learnable', None
    if isinstance(conv, ImplicitLCConv2d):
        role, seed = f'implicit {role}', conv.filter_record.seed
        state = f'learnable as by filters of seed={seed}'
    return LayerInfo(name, role, tuple(conv.weight.shape), state, seed)
