"""LC-Blocks in any network (section 4.2, figure 5): `add_linear_combinations`."""

from torch import nn

from timm_lc.arguments import changeable, check_count
from timm_lc.filters import check_gain, check_seed
from timm_lc.layers.frozen import named_record
from timm_lc.layers.implicit import ImplicitLCConv2d
from timm_lc.layers.lc_conv import LCConv2d
from timm_lc.layers.lc_pair import LCPair
from timm_lc.layers.sliced import is_shared
from timm_lc.spatial import FilterFn, owners
from timm_lc.transforms.freeze import settle, targets

__all__ = ['add_linear_combinations', 'replace_modules']


def add_linear_combinations(
    model: nn.Module,
    expansion: int,
    seed: int = 0,
    freeze_spatial: bool = True,
    filter_fn: FilterFn | None = None,
    *,
    gain: float = 1.0,
    implicit: bool = False,
    filters: str = 'uniform',
) -> nn.Module:
    """Replace, in place, each spatial convolution by an `LCConv2d` of the same geometry; return `model`.

    Give it before `share_weights`. Convolutions that are in an LC-Block already are left alone.

    Args:
        model: Any network with `nn.Conv2d` layers, itself not one.
        expansion: E, spatial filters for each output channel.
        seed: Filter seed in [0, 2**32).
        freeze_spatial: Whether the filters keep their random values.
        filter_fn: `filter_fn(module, name)` narrows which spatial convolutions are replaced.
        gain: As in `freeze_spatial`.
        implicit: Whether the blocks learn P W itself, an `ImplicitLCConv2d` each, which trains alike under SGD.
        filters: As in `freeze_spatial`; implicit blocks have 'expected' as well, the limit of many filters.

    Raises:
        ValueError: If nothing matches, an argument is out of range, a layer has standardised weights, shares its
            filters, or is an LC-Block of another expansion.
    """
    network = changeable(model)
    matched = targets(network, filter_fn)
    check_count('expansion', expansion)
    check_seed(seed)
    check_gain(gain)
    if implicit and not freeze_spatial:
        raise ValueError('`implicit=True` needs `freeze_spatial=True`: where filters learn, G is not fixed')
    blocks: dict[nn.Module, nn.Module] = {}
    names = owners(matched)
    for name, conv in matched:
        if _is_in_block(network, name, conv, expansion):
            continue
        record = named_record(conv, f'{names[conv]}.spatial', seed, gain, filters, implicit=implicit)
        try:
            blocks[conv] = LCConv2d.from_convolution(
                conv, expansion, record, freeze_spatial=freeze_spatial, implicit=implicit
            )
        except ValueError as error:
            raise ValueError(f'layer `{name}`: {error}') from None
    _tie(blocks, names)
    replace_modules(network, blocks)
    settle(network)
    return model


def _is_in_block(model: nn.Module, name: str, conv: nn.Conv2d, expansion: int) -> bool:
    """Return whether `conv` is in an LC-Block of that expansion already, or raise if it cannot become one."""
    parent = name.rpartition('.')[0]
    holder = conv if isinstance(conv, ImplicitLCConv2d) else model.get_submodule(parent)
    if isinstance(holder, LCConv2d | ImplicitLCConv2d | LCPair):
        if holder.expansion != expansion:
            raise ValueError(
                f'`expansion` is {expansion}, but layer `{parent or name}` has LC-Blocks of {holder.expansion}'
            )
        return True
    if not name:
        raise ValueError('`model` is itself a convolution, which cannot be replaced in place: use LCConv2d')
    if is_shared(conv):
        raise ValueError(f'layer `{name}` shares its filters already: add linear combinations before share_weights')
    return False


def _tie(blocks: dict[nn.Module, nn.Module], names: dict[nn.Conv2d, str]) -> None:
    """Tie the blocks, in place, of convolutions that had one weight."""
    first: dict[str, nn.Module] = {}
    for conv, block in blocks.items():
        owner = first.setdefault(names[conv], block)
        for name, parameter in list(owner.named_parameters()):
            if owner is not block and name.endswith('weight'):
                parent, _, leaf = name.rpartition('.')
                block.get_submodule(parent)._parameters[leaf] = parameter


def replace_modules(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    """Put, in place, each replacement wherever its module is a child: one may be used twice."""
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if child in replacements:
                setattr(module, name, replacements[child])
