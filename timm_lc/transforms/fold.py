"""The stock network that a trained LC network is (definition 3.1): `fold`."""

import copy
from typing import Any

from timm.models import get_pretrained_cfg
from torch import nn

from timm_lc._timm import describe_as, replace_arguments
from timm_lc.arguments import unwrapped
from timm_lc.layers.adapter import AdaptedConv2d
from timm_lc.layers.frozen import is_frozen, thaw_convolution, unseed_convolution
from timm_lc.layers.implicit import ImplicitLCConv2d
from timm_lc.layers.lc_conv import LCConv2d
from timm_lc.layers.lc_pair import LCPair
from timm_lc.layers.packing import remove_unpacking
from timm_lc.layers.recorded import refuse_program
from timm_lc.naming import architecture_of, has_lc_name, is_stock, stock_name
from timm_lc.transforms.adapt import release_base
from timm_lc.transforms.combine import replace_modules
from timm_lc.transforms.freeze import unsettle
from timm_lc.transforms.options import LC_ARGUMENTS

__all__ = ['fold']


def fold(model: nn.Module) -> nn.Module:
    """Return the same function as a plain network: LC-Blocks and adapters merged, all filters ordinary weights.

    The argument is untouched. An `lc_<timm name>` network becomes that architecture, which loads where this package
    is not installed; one that stock timm lacks becomes its plain form, such as `lc_resnet_cifar` with `expansion=None`.
    A network with nothing to fold is copied.

    Raises:
        ValueError: If an LC-Block has an operation between its two convolutions (`between=`).
        RuntimeError: If another tool has hooked or replaced a convolution of a layer that merges.
        TypeError: If `model` is a program of torch.export or TorchScript.

    Example:
        >>> import timm, timm_lc
        >>> fold(timm.create_model('lc_resnet18')).pretrained_cfg['architecture']
        'resnet18'
    """
    model = unwrapped(model)
    refuse_program(model)
    if pair := next((name for name, module in model.named_modules() if isinstance(module, LCPair)), None):
        raise ValueError(f'layer `{pair}` has an operation between its two convolutions, which then fold into none')
    folded = copy.deepcopy(model)
    merged = LCConv2d | ImplicitLCConv2d | AdaptedConv2d
    if isinstance(folded, merged):
        return folded.fuse()
    replace_modules(
        folded, {module: _fuse(name, module) for name, module in folded.named_modules() if isinstance(module, merged)}
    )
    release_base(folded)
    for module in folded.modules():
        if is_frozen(module):
            thaw_convolution(module)
        elif isinstance(module, nn.Conv2d):
            unseed_convolution(module)
    unsettle(folded)
    _name_plain(folded)
    return remove_unpacking(folded)


def _fuse(name: str, layer: Any) -> nn.Module:
    """Merge a layer; errors name it."""
    try:
        return layer.fuse()
    except RuntimeError as error:
        raise RuntimeError(f'layer `{name}`: {error}') from None


def _name_plain(model: nn.Module) -> None:
    """Tell timm, in place, from which architecture and arguments to build a folded `lc_` network again."""
    if not has_lc_name(model):
        return
    architecture = architecture_of(model)
    base = stock_name(architecture)
    if is_stock(architecture):
        stock = get_pretrained_cfg(base)
        describe_as(model, base, stock.first_conv if stock else None)
        replace_arguments(model, LC_ARGUMENTS, {})
    else:
        plain_form: tuple[str, dict[str, Any]] = getattr(model, 'plain_form', (architecture, {}))
        name, geometry = plain_form
        describe_as(model, name, model.pretrained_cfg['first_conv'])  # building it finds the stem
        replace_arguments(model, LC_ARGUMENTS, {**geometry, 'expansion': None, 'freeze_spatial': False})
