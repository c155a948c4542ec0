"""What counts as a spatial or a pointwise convolution (sections 2 and 4)."""

import warnings
from collections.abc import Callable, Iterator

from timm.layers import CondConv2d
from torch import nn
from torch.nn.parameter import is_lazy

__all__ = [
    'FilterFn',
    'check_weight',
    'classifying_convolution',
    'is_flat',
    'is_pointwise',
    'is_spatial',
    'matched_convolutions',
    'owners',
    'pointwise_convolutions',
    'spatial_convolutions',
    'warn_of_others',
]

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
    """Yield (qualified name, module) of the pointwise convolutions that are not the classifier's; each once.

    Frozen filters of 1x1, as those of an LC-Block, are no pointwise weights.
    """
    heads = _heads(model)
    for name, module in model.named_modules():
        if is_pointwise(module) and 'weight' not in module._buffers and not _is_in(name, heads):
            yield name, module


def _heads(model: nn.Module) -> set[str]:
    """Return names of the layers that classify: timm's, and a last layer that gives as many outputs as classes."""
    classifier = (getattr(model, 'pretrained_cfg', None) or {}).get('classifier') or ()
    heads = {classifier} if isinstance(classifier, str) else set(classifier)
    return heads | classifying_convolution(model).keys()


def classifying_convolution(model: nn.Module) -> dict[str, nn.Module]:
    """Return the last layer of `model` by its name if it is a convolution with as many outputs as `num_classes`."""
    layers = [(name, m) for name, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))]
    classes = getattr(model, 'num_classes', ...)
    return {name: module for name, module in layers[-1:] if getattr(module, 'out_channels', None) == classes}


def _is_in(name: str, heads: set[str]) -> bool:
    return name in heads or _HEAD in name.split('.')


def spatial_convolutions(model: nn.Module, filter_fn: FilterFn | None = None) -> Iterator[tuple[str, nn.Conv2d]]:
    """Yield (qualified name, module) of the spatial convolutions that `filter_fn(module, name)` accepts.

    The classifier's own convolutions are left out. A convolution used twice is yielded once.

    Raises:
        ValueError: If the model has k x k weights in a `CondConv2d`, which is no `nn.Conv2d`, or a convolution that
            does not know its input channels yet.
    """
    heads = _heads(model)
    for name, module in model.named_modules():
        if _is_in(name, heads) or (filter_fn is not None and not filter_fn(module, name)):
            continue
        if isinstance(module, CondConv2d) and max(module.kernel_size) > 1:
            raise ValueError(
                f'layer `{name}` is a CondConv2d, whose mixed filters cannot be frozen; leave it out by `filter_fn`'
            )
        if is_spatial(module):
            if is_lazy(module._parameters.get('weight')):
                raise ValueError(f'layer `{name}` is lazy: pass an image through the network first')
            yield name, module


def matched_convolutions(model: nn.Module, filter_fn: FilterFn | None) -> list[tuple[str, nn.Conv2d]]:
    """Return all of `spatial_convolutions`, at least one.

    Raises:
        ValueError: If nothing matches, or another tool computes the weight of one.
    """
    matched = list(spatial_convolutions(model, filter_fn))
    if not matched:
        reason = (
            'has no spatial convolution' if filter_fn is None else 'has no spatial convolution that `filter_fn` accepts'
        )
        raise ValueError(f'{type(model).__name__} {reason}')
    for name, conv in matched:
        check_weight(conv, name)
    return matched


def check_weight(conv: nn.Conv2d, name: str) -> None:
    """Refuse a weight that another tool computes."""
    if 'weight' in vars(conv) or 'weight' in getattr(conv, 'parametrizations', ()):
        raise ValueError(
            f'layer `{name}` has a weight that another tool computes (weight norm, pruning, a parametrization): '
            'let that tool make it an ordinary one first'
        )


def owners(matched: list[tuple[str, nn.Conv2d]]) -> dict[nn.Conv2d, str]:
    """Return for each convolution the name of the first one with the same weight, its own where none is tied to it."""
    first: dict[int, str] = {}
    return {
        conv: first.setdefault(id(conv._parameters['weight']), name) if 'weight' in conv._parameters else name
        for name, conv in matched
    }


def is_flat(module: nn.Module, name: str) -> bool:
    """Return whether `module` convolves over two dimensions: a `filter_fn` that leaves out the others in silence."""
    return isinstance(module, nn.Conv2d | CondConv2d)


def warn_of_others(model: nn.Module, filter_fn: FilterFn | None) -> None:
    """Warn of spatial filters that go on learning because they are in no `nn.Conv2d`."""
    others = [
        f'`{name}` ({type(module).__name__})'
        for name, module in model.named_modules()
        if _is_other(module) and (filter_fn is None or filter_fn(module, name))
    ]
    if others:
        warnings.warn(
            f'spatial filters go on learning in {", ".join(others)}: only those of nn.Conv2d are frozen; '
            '`filter_fn=lambda module, name: isinstance(module, torch.nn.Conv2d)` leaves out the others in silence',
            stacklevel=4,
        )


def _is_other(module: nn.Module) -> bool:
    """Return whether `module` convolves over space, with kernels larger than 1, and is no `nn.Conv2d`."""
    names = {kind.__name__ for kind in type(module).__mro__}
    kinds = {'Conv1d', 'Conv3d', 'ConvTranspose1d', 'ConvTranspose2d', 'ConvTranspose3d', 'DeformConv2d'}
    return bool(names & kinds) and max(module.kernel_size) > 1
