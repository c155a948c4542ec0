"""What a network from `timm.create_model` and its classes are called, and the stock network behind an `lc_` name."""

from collections.abc import Iterable

from timm.models import is_model
from torch import nn

__all__ = ['PREFIX', 'architecture_of', 'class_names', 'has_lc_name', 'is_stock', 'name_classes', 'stock_name']

PREFIX = 'lc_'


def architecture_of(model: nn.Module) -> str:
    """Return the registered name of a network.

    Raises:
        ValueError: If `model` is not timm's.
    """
    architecture = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture')
    if not architecture:
        inner = ': give its `module`' if hasattr(getattr(model, 'module', None), 'pretrained_cfg') else ''
        raise ValueError(
            f'`model` must come from timm.create_model: a {type(model).__name__} has no architecture{inner}'
        )
    return architecture


def has_lc_name(model: nn.Module) -> bool:
    """Return whether a network was built by an `lc_` name; one that is not timm's was not."""
    return (getattr(model, 'pretrained_cfg', None) or {}).get('architecture', '').startswith(PREFIX)


def stock_name(architecture: str) -> str:
    """Return the name without `lc_`.

    Example:
        >>> stock_name('lc_resnet50'), stock_name('resnet50')
        ('resnet50', 'resnet50')
    """
    return architecture.removeprefix(PREFIX)


def is_stock(architecture: str) -> bool:
    """Return whether stock timm has the network, folded."""
    return is_model(stock_name(architecture))


def class_names(model: nn.Module) -> list[str]:
    """Return the names of a network's classes in their order, [] if it does not tell one for each."""
    names = (getattr(model, 'pretrained_cfg', None) or {}).get('label_names')
    if not isinstance(names, list | tuple) or len(names) != getattr(model, 'num_classes', None):
        return []
    return [str(name) for name in names]


def name_classes(model: nn.Module, names: Iterable[str]) -> None:
    """Name the classes of a network from `timm.create_model`, in place; its config and card then tell them."""
    model.pretrained_cfg = {**model.pretrained_cfg, 'label_names': list(names), 'num_classes': model.num_classes}
    model.default_cfg = model.pretrained_cfg
