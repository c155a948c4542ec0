"""Adapters in any trained network: `add_adapters`, `remove_adapters`.

The base network's tensors are held: no state dict has them. In their place it has `base_fingerprint`, a CRC-32 of each
layer of the base, by which loading refuses another base.
"""

import copy
import dataclasses
from typing import Any

from torch import Tensor, nn

from timm_lc.arguments import changeable, check_count
from timm_lc.filters import ORTHOGONAL, UNIFORM, FilterRecord, check_gain, check_seed, layer_stream
from timm_lc.layers.adapter import AdaptedConv2d, adapter_shape, check_class
from timm_lc.layers.frozen import is_frozen, remove_hook
from timm_lc.layers.held import hold_tensors, is_held, release_tensors, tensors_of
from timm_lc.layers.norm_packing import unpack_norms
from timm_lc.spatial import FilterFn, pointwise_convolutions, spatial_convolutions
from timm_lc.transforms.combine import replace_modules
from timm_lc.transforms.fingerprint import (
    FINGERPRINT,
    classifiers,
    decode_checksums,
    describe_difference,
    encode_checksums,
    fingerprint_base,
    rounded_layers,
)
from timm_lc.transforms.freeze import settle, unsettle

__all__ = [
    'ADAPTER_GAIN',
    'LAYERS',
    'Adaptation',
    'adapt',
    'add_adapters',
    'changed_layers',
    'is_adapted',
    'learned_norms',
    'recorded_base',
    'release_base',
    'remove_adapters',
]

LAYERS = ('spatial', 'pointwise', 'all')
# Rows of length 2 learn better than rows of length 1 or uniform ones: results/adapters
ADAPTER_GAIN = 2 * 3.0**0.5


@dataclasses.dataclass
class Adaptation:
    """What a network with adapters knows of its base.

    Attributes:
        base: What `timm.create_model` builds it from; None if it is not known.
        norms: Whether norms learn.
        layers: Names of the base's layers, in the order of `base_fingerprint`.
        originals: The base's norms and classifier, by name, where they learn.
        num_classes: Of the base.
        ties: Names of each parameter of the base that has several.
        settings: Arguments of `add_adapters`; None if a file decided.
    """

    base: str | None
    norms: bool
    layers: tuple[str, ...]
    originals: dict[str, nn.Module]
    num_classes: int | None
    ties: list[list[str]]
    settings: tuple[Any, ...] | None = None


def add_adapters(
    model: nn.Module,
    rank: int = 8,
    seed: int = 0,
    layers: str = 'spatial',
    norms: bool = True,
    filter_fn: FilterFn | None = None,
    *,
    gain: float = ADAPTER_GAIN,
    filters: str = 'orthogonal',
) -> nn.Module:
    """Let, in place, a trained network learn by combinations of random filters added to its own; return `model`.

    The weight of each matched convolution becomes W_0 + P W: W comes from the seed, P is 0 at first, so that outputs
    are those of the base. P, the classifier and the norms learn; all else is held, and no longer in the state dict.

    Args:
        model: Any trained network with `nn.Conv2d` layers, itself not one.
        rank: Random filters for each group of a convolution; fewer where a filter has fewer values.
        seed: Filter seed in [0, 2**32).
        layers: Which convolutions: 'spatial', 'pointwise' or 'all'; never the classifier's.
        norms: Whether norms learn and update their statistics; if not, batch norm computes as in evaluation.
        filter_fn: `filter_fn(module, name)` narrows which convolutions are matched.
        gain: Rows of W, those of each group, are orthogonal and have length gain / sqrt(3); the default is length 2.
        filters: 'orthogonal', or 'uniform' for filters as `freeze_spatial` draws them.

    Raises:
        ValueError: If nothing matches, an argument is out of range, the network has frozen filters or other adapters,
            or a matched layer has standardised weights.

    Example:
        >>> import timm
        >>> model = add_adapters(timm.create_model('resnet18'), rank=8)
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)
        553832
    """
    network = changeable(model)
    check_count('rank', rank), check_seed(seed), check_gain(gain)
    if layers not in LAYERS:
        raise ValueError(f'`layers` must be one of {", ".join(map(repr, LAYERS))}, got {layers!r}')
    if filters not in _SETS:
        raise ValueError(f'`filters` must be one of {", ".join(map(repr, _SETS))}, got {filters!r}')
    settings = (rank, seed, layers, norms, float(gain), filters)
    if is_adapted(network):
        if filter_fn is None and network.adaptation.settings == settings:
            return model
        raise ValueError(f'{type(network).__name__} has adapters already: call remove_adapters first')
    records = {
        name: _record(conv, name, rank, seed, gain, _SETS[filters])
        for name, conv in _matched(network, layers, filter_fn).items()
    }
    adapt(network, records, norms=norms)
    network.adaptation.settings = settings if filter_fn is None else None
    return model


def adapt(model: nn.Module, records: dict[str, FilterRecord], *, norms: bool) -> nn.Module:
    """Add an adapter of each record to the convolution of that name, in place; return `model`."""
    if any(is_frozen(module) for module in model.modules()):
        raise ValueError(f'{type(model).__name__} has frozen random filters: adapt what `timm_lc.fold` makes of it')
    convolutions = {name: model.get_submodule(name) for name in records}
    for name, conv in convolutions.items():
        check_class(conv, name)
    base, heads = fingerprint_base(model), classifiers(model)
    originals = {**heads, **(_norms(model, heads) if norms else {})}
    learned = {child for module in originals.values() for child in module.modules()}
    model.adaptation = Adaptation(
        _name_base(model),
        norms,
        tuple(base),
        {name: copy.deepcopy(module) for name, module in originals.items()},
        getattr(model, 'num_classes', None),
        _ties(model),
    )
    for module in originals.values():
        module.requires_grad_(True)  # whoever froze the base before meant what is held now
    for module in model.modules():
        if module not in learned and module not in convolutions.values():
            hold_tensors(module)
    replace_modules(model, {conv: AdaptedConv2d(conv, records[name]) for name, conv in convolutions.items()})
    device = next(iter(convolutions.values())).weight.device
    model.register_buffer(FINGERPRINT, encode_checksums(list(base.values())).to(device))
    model.register_load_state_dict_pre_hook(_check_base)
    _ignore_base_in_ddp(model)
    return model


def remove_adapters(model: nn.Module) -> nn.Module:
    """Give, in place, a network with adapters back its base: weights, norms and classifier to the bit; return `model`.

    Raises:
        ValueError: If it has no adapters.
    """
    network = changeable(model)
    if not is_adapted(network):
        raise ValueError(f'{type(network).__name__} has no adapters')
    replace_modules(network, {m: m.release() for m in network.modules() if isinstance(m, AdaptedConv2d)})
    for name, original in network.adaptation.originals.items():
        _restore(network, name, original)
    if network.adaptation.num_classes is not None:
        network.num_classes = network.adaptation.num_classes
    ties = network.adaptation.ties
    release_base(network)
    for first, *others in ties:
        for name in others:
            parent, _, leaf = name.rpartition('.')
            setattr(network.get_submodule(parent), leaf, network.get_parameter(first))
    return model


def release_base(model: nn.Module) -> nn.Module:
    """Turn, in place, all held tensors of `model` into ordinary ones again; return `model`."""
    for module in model.modules():
        if is_held(module):
            release_tensors(module)
            module.training = model.training
    if is_adapted(model):
        del model.adaptation, model._buffers[FINGERPRINT]
        remove_hook(model._load_state_dict_pre_hooks, _check_base)
        unsettle(model)
    return model


def is_adapted(model: nn.Module) -> bool:
    """Return whether `model` is a network with adapters."""
    return 'adaptation' in vars(model)


def learned_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return the norms of an adapted network that learn, by name."""
    return _norms(model, classifiers(model)) if model.adaptation.norms else {}


def recorded_base(model: nn.Module) -> dict[str, int]:
    """Return the CRC-32 of each layer of the base that an adapted network was made from, by name."""
    return dict(zip(model.adaptation.layers, decode_checksums(model.base_fingerprint), strict=True))


def changed_layers(model: nn.Module) -> list[str]:
    """Return the names of held layers of an adapted network that are not those of its base any more.

    Of a network in half precision no change is known: its cast has rounded them.
    """
    skipped = learned_norms(model).keys() | rounded_layers(model)
    present = {name: crc for name, crc in fingerprint_base(model).items() if name not in skipped}
    recorded = recorded_base(model)
    return [name for name, crc in present.items() if crc != recorded[name]]


_SETS = {'uniform': UNIFORM, 'orthogonal': ORTHOGONAL}


def _record(conv: nn.Conv2d, name: str, rank: int, seed: int, gain: float, filter_set: int) -> FilterRecord:
    shape, stream = adapter_shape(conv, rank), layer_stream(f'{name}.spatial')
    groups = conv.groups if filter_set == ORTHOGONAL else 1
    return FilterRecord(shape, seed, stream, gain=float(gain), filter_set=filter_set, groups=groups)


def _matched(model: nn.Module, layers: str, filter_fn: FilterFn | None) -> dict[str, nn.Conv2d]:
    matched = dict(spatial_convolutions(model, filter_fn)) if layers != 'pointwise' else {}
    if layers != 'spatial':
        matched |= {
            name: conv for name, conv in pointwise_convolutions(model) if not filter_fn or filter_fn(conv, name)
        }
    if not matched:
        kind = '' if layers == 'all' else f'{layers} '
        raise ValueError(
            f'{type(model).__name__} has no {kind}convolution' + (' that `filter_fn` accepts' if filter_fn else '')
        )
    if '' in matched:
        raise ValueError('`model` is itself a convolution, which cannot be replaced in place')
    return matched


def _norms(model: nn.Module, heads: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the norms outside the classifier by name; containers of them have no tensors of their own."""
    return {
        name: module
        for name, module in model.named_modules()
        if 'Norm' in type(module).__name__ and tensors_of(module) and name not in heads
    }


def _ties(model: nn.Module) -> list[list[str]]:
    """Return the names of each parameter that has several."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [found for found in names.values() if len(found) > 1]


def _name_base(model: nn.Module) -> str | None:
    """Return what `timm.create_model` built `model` from, as far as timm tells."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    if cfg.get('source') in ('hf-hub', 'local-dir') and (cfg.get('file') or not cfg.get('tag')):
        return f'{cfg["source"]}:{cfg.get("file") or cfg.get("hf_hub_id")}'
    return '.'.join(filter(None, (cfg.get('architecture'), cfg.get('tag')))) or None


def _restore(model: nn.Module, name: str, original: nn.Module) -> None:
    present = model.get_submodule(name)
    expected = original.state_dict()
    if {key: t.shape for key, t in present.state_dict().items()} == {key: t.shape for key, t in expected.items()}:
        present.load_state_dict(expected)
        for parameter, of_base in zip(present.parameters(), original.parameters(), strict=True):
            parameter.requires_grad_(of_base.requires_grad)
    else:
        model.set_submodule(name, original.to(next(model.parameters())))


def _check_base(
    model: nn.Module,
    state_dict: dict[str, Tensor],
    prefix: str,
    local_metadata: dict,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Refuse a state of another base or without adapters, whatever `strict` says; unpack norms as a file holds them."""
    error_msgs += unpack_norms(state_dict, prefix, learned_norms(model))
    adapted = [name for name, module in model.named_modules() if isinstance(module, AdaptedConv2d)]
    has_adapters = any(f'{prefix}{name}.pointwise.weight' in state_dict for name in adapted)
    if not has_adapters and (left_out := [name for name in adapted if f'{prefix}{name}.weight' in state_dict]):
        error_msgs.append(
            f'a state without adapters, whose `{left_out[0]}` is held here: load it before they are added'
        )
    fingerprint = state_dict.get(prefix + FINGERPRINT)
    if fingerprint is None or model.base_fingerprint.is_meta:
        return
    difference = describe_difference(recorded_base(model), fingerprint)
    if difference:
        error_msgs.append(f'adapters of another base than {model.adaptation.base}: {difference}')


def _ignore_base_in_ddp(model: nn.Module) -> None:
    """Spare DistributedDataParallel the broadcast of the base, which every rank has loaded for itself."""
    settle(model)
    model._ddp_params_and_buffers_to_ignore += [
        f'{name}.{tensor}'.lstrip('.')
        for name, module in model.named_modules(remove_duplicate=False)
        if is_held(module)
        for tensor in (*module.held.parameters, *module.held.buffers)
    ]
