"""What a network from `timm.create_model` is called, and the stock network behind an `lc_` name."""

from timm.models import is_model
from torch import nn

__all__ = ['PREFIX', 'architecture_of', 'has_lc_name', 'is_stock', 'stock_name']

PREFIX = 'lc_'


def architecture_of(model: nn.Module) -> str:
    """Return the registered name of a network.

    Raises:
        ValueError: If `model` is not timm's.
    """
    architecture = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture')
    if not architecture:
        raise ValueError(f'`model` must come from timm.create_model: a {type(model).__name__} has no architecture')
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
