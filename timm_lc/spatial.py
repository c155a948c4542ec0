"""What counts as a spatial or a pointwise convolution (sections 2 and 4)."""

from collections.abc import Callable, Iterator

from timm.layers import CondConv2d
from torch import nn

__all__ = ['FilterFn', 'is_pointwise', 'is_spatial', 'pointwise_convolutions', 'spatial_convolutions']

FilterFn = Callable[[nn.Module, str], bool]

# Convolutions below these names belong to the classifier: VGG's fully connected layers are a 7x7 convolution.
_HEAD = 'pre_logits'


def is_spatial(module: nn.Module) -> bool:
    """Return whether `module` is an `nn.Conv2d` (any subclass) with some kernel side above 1."""
    return isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1


def is_pointwise(module: nn.Module) -> bool:
    """Return whether `module` is an `nn.Conv2d` (any subclass) with a 1x1 kernel."""
    return isinstance(module, nn.Conv2d) and max(module.kernel_size) == 1


def pointwise_convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    """Yield (qualified name, module) of the pointwise convolutions that are not the classifier's; each once."""
    classifier = (getattr(model, 'pretrained_cfg', None) or {}).get('classifier') or ()
    left_out = {classifier} if isinstance(classifier, str) else set(classifier)
    for name, module in model.named_modules():
        if is_pointwise(module) and name not in left_out and _HEAD not in name.split('.'):
            yield name, module


def spatial_convolutions(model: nn.Module, filter_fn: FilterFn | None = None) -> Iterator[tuple[str, nn.Conv2d]]:
    """Yield (qualified name, module) of the spatial convolutions that `filter_fn(module, name)` accepts.

    The classifier's own convolutions are left out. A convolution used twice is yielded once.

    Raises:
        ValueError: If the model has k x k weights in a `CondConv2d`, which is no `nn.Conv2d`.
    """
    for name, module in model.named_modules():
        if _HEAD in name.split('.') or (filter_fn is not None and not filter_fn(module, name)):
            continue
        if isinstance(module, CondConv2d) and max(module.kernel_size) > 1:
            raise ValueError(
                f'layer `{name}` is a CondConv2d, whose mixed filters cannot be frozen; leave it out by `filter_fn`'
            )
        if is_spatial(module):
            yield name, module


def matched_convolutions(model: nn.Module, filter_fn: FilterFn | None) -> list[tuple[str, nn.Conv2d]]:
    """Return all of `spatial_convolutions`, at least one.

    Raises:
        ValueError: If nothing matches.
    """
    matched = list(spatial_convolutions(model, filter_fn))
    if not matched:
        reason = (
            'has no spatial convolution' if filter_fn is None else 'has no spatial convolution that `filter_fn` accepts'
        )
        raise ValueError(f'{type(model).__name__} {reason}')
    return matched
