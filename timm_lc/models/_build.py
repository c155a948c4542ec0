"""From a timm entry point to an `lc_` one: options, transforms, pretrained weights, feature wrappers."""

import functools
import re
from collections.abc import Callable
from typing import Any

from timm.models import PretrainedCfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from torch import nn

from timm_lc._timm import describe_as, load_weights, record_arguments
from timm_lc.layers.frozen import freeze_convolution, is_frozen, share_convolution
from timm_lc.layers.packing import add_unpacking
from timm_lc.layers.sliced import is_shared
from timm_lc.models._adapted import build_adapted
from timm_lc.models.lc_shipped import forget_shipped
from timm_lc.transforms.options import LC_ARGUMENTS, LCOptions

__all__ = ['build', 'register']

CreateBase = Callable[..., nn.Module]

# Arguments of timm's feature wrappers
_OF_FEATURES = ('features_only', 'feature_cls', 'out_indices', 'feature_location')
# What timm's feature wrappers put before the names of the network's own layers
_WRAPPER = re.compile(r'^(model|graph.module|body)\.')


def build(
    name: str,
    create_base: CreateBase,
    first_conv: tuple[str, ...],
    *,
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: Any = None,
    **kwargs: Any,
) -> nn.Module:
    """Create the model `name` as timm's factory asks for it.

    Args:
        name: Architecture to be written into configs.
        create_base: `create_base(pretrained_cfg=..., **kwargs)` returns the stock network.
        first_conv: The stock network's input convolutions.
        pretrained: As in `timm.create_model`.
        pretrained_cfg: As in `timm.create_model`.
        pretrained_cfg_overlay: As in `timm.create_model`.
        cache_dir: As in `timm.create_model`.
        **kwargs: The fields of `LCOptions`, and the stock network's own arguments.
    """
    options = LCOptions(**{key: kwargs.pop(key) for key in LC_ARGUMENTS if key in kwargs})
    cfg = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay).to_dict()
    cfg = cfg if pretrained else forget_shipped(cfg)
    feature_kwargs = {key: kwargs.pop(key) for key in _OF_FEATURES if key in kwargs}
    if options.adapter is None:
        create = functools.partial(_create_whole, create_base) if feature_kwargs.get('features_only') else create_base
        model = options.keep(options.apply(create(pretrained_cfg=cfg, **kwargs)))
    elif feature_kwargs.get('features_only'):
        raise ValueError('`adapter` has no `features_only`: call `forward_intermediates`, or build it from the folded')
    else:
        model = build_adapted(name, options, cfg if pretrained_cfg else None, cache_dir=cache_dir, **kwargs)
        model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, **(pretrained_cfg_overlay or {})}
    add_unpacking(model)
    describe_as(model, name, _learnable_stem(model, first_conv))
    if pretrained:
        classes, channels = getattr(model, 'num_classes', 0), kwargs.get('in_chans', 3)
        load_weights(model, classes, channels, cache_dir)
    if not feature_kwargs.get('features_only'):
        return model
    wrapped = options.apply(create_base(pretrained_cfg=cfg, **kwargs, **feature_kwargs))
    _take_over(wrapped, model)
    return wrapped


def register(
    module: dict[str, Any],
    name: str,
    create_base: CreateBase,
    cfg: PretrainedCfg,
    first_conv: tuple[str, ...],
    defaults: dict[str, Any],
    doc: str,
) -> None:
    """Register `name` with timm as an entry point of the module with these globals; arguments win over `defaults`."""

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        given = {**({} if kwargs.get('adapter') else defaults), **kwargs}  # the defaults are those of the base itself
        model = build(name, create_base, first_conv, pretrained=pretrained, **given)
        record_arguments(model, kwargs)
        return model

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__module__, entrypoint.__doc__ = module['__name__'], doc
    module.setdefault('default_cfgs', {}).update(generate_default_cfgs({f'{name}.{cfg.tag}' if cfg.tag else name: cfg}))
    module[name] = register_model(entrypoint)


def _create_whole(create_base: CreateBase, **kwargs: Any) -> nn.Module:
    """Create the whole network behind features; timm's MobileNetV3 takes `output_stride` for its features alone.

    A Byobnet of another stride has other layers: there the argument counts.
    """
    try:
        return create_base(**kwargs)
    except TypeError:
        if kwargs.pop('output_stride', None) is None:
            raise
        return create_base(**kwargs)


def _learnable_stem(model: nn.Module, first_conv: tuple[str, ...]) -> tuple[str, ...]:
    """Return which input convolutions timm adapts to other input channels; frozen ones adapt as they load."""
    modules = dict(model.named_modules())
    names = (f'{name}.spatial' if f'{name}.spatial' in modules else name for name in first_conv)
    return tuple(name for name in names if name in modules and not is_frozen(modules[name]))


def _take_over(wrapped: nn.Module, model: nn.Module) -> None:
    """Give a feature wrapper, in place, the filters and weights of the whole network, whatever it calls its layers."""
    modules = {name.replace('_', '.'): module for name, module in model.named_modules()}
    state = {name.replace('_', '.'): tensor for name, tensor in model.state_dict().items()}

    def plain(name: str) -> str:
        dotted = name.replace('_', '.')  # a TResNet has a `body` of its own, the name of one of timm's wrappers
        return dotted if dotted in modules or dotted in state else _WRAPPER.sub('', dotted)

    for name, conv in wrapped.named_modules():
        if not is_frozen(conv):
            continue
        source: Any = modules[plain(name)]
        if is_shared(source):
            share_convolution(conv, source.filter_record, source.shared)
        else:
            freeze_convolution(conv, source.filter_record)
    if not any(tensor.is_meta for tensor in state.values()):
        wrapped.load_state_dict({name: state[plain(name)] for name in wrapped.state_dict()})
