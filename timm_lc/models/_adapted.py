"""From `adapter=` and `base=` to a network: the base, from wherever timm finds it, with adapters added."""

import argparse
import pickle
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from timm.models import is_model, load_state_dict
from torch import Tensor, nn

from timm_lc._timm import name_local_weights
from timm_lc.arguments import device_of
from timm_lc.layers.frozen import is_frozen
from timm_lc.layers.recorded import RECORD
from timm_lc.naming import PREFIX, architecture_of, stock_name
from timm_lc.transforms.fold import fold
from timm_lc.transforms.options import LCOptions

__all__ = ['IMAGES', 'build_adapted']

# What timm raises where it cannot read or fetch weights: huggingface_hub's errors have bases of the HTTP library's
_FAILURES: tuple[type[Exception], ...] = (
    *HfHubHTTPError.__bases__, OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError,
)  # fmt: skip
_SCHEMES = ('hf-hub:', 'hf_hub:', 'local-dir:')
# What a configuration says of a network's images
IMAGES = (
    'input_size', 'fixed_input_size', 'min_input_size', 'interpolation', 'crop_pct', 'crop_mode', 'mean', 'std',
    'test_input_size', 'test_crop_pct', 'pool_size',
)  # fmt: skip


def build_adapted(
    name: str, options: LCOptions, cfg: dict[str, Any] | None, *, device: Any = None, dtype: Any = None, **kwargs: Any
) -> nn.Module:
    """Return the base of `options` with its adapters.

    Args:
        name: `lc_` name; the base must be that architecture.
        options: With `adapter` and `base`.
        cfg: The configuration that a checkpoint tells; None takes the base's.
        device: Of the network.
        dtype: Of the network; the base is read, and compared, in its own type.
        **kwargs: Arguments of `timm.create_model`.

    Raises:
        ValueError: If the base cannot be loaded, or is of another architecture.
    """
    base = str(options.base)
    if cfg is not None:  # timm takes the number of classes from there, unless it is given
        kwargs.setdefault('num_classes', cfg['num_classes'])
    on_meta = device_of(device).type == 'meta'
    model = _load(name, base, pretrained=not on_meta, device='meta' if on_meta else None, **kwargs)
    _check_architecture(name, base, architecture_of(model))
    if any(is_frozen(module) for module in model.modules()) or architecture_of(model) == name:
        model = fold(model)
    images = {key: model.pretrained_cfg[key] for key in IMAGES if key in model.pretrained_cfg}
    source = {**timm.get_pretrained_cfg(name).to_dict(), **images} if cfg is None else cfg
    options.adapt(model)
    model.adaptation.base = base
    model.pretrained_cfg = model.default_cfg = source
    return model if on_meta else model.to(device=device, dtype=dtype)


def _load(name: str, base: str, *, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Return the base network with its weights."""
    kwargs = {key: value for key, value in kwargs.items() if value is not None and key != 'pretrained_model_args'}
    given: dict[str, Any] = {}
    model_name = base
    try:
        if Path(base).is_file():
            model_name, given = _of_file(stock_name(name) if is_model(stock_name(name)) else name, base)
        elif base.startswith('local-dir:'):
            folder = base.removeprefix('local-dir:')
            given['pretrained_cfg_overlay'] = name_local_weights({'source': 'local-dir', 'file': folder})
        elif not base.startswith(_SCHEMES):
            _check_architecture(name, base, base.partition('.')[0])
        return timm.create_model(model_name, pretrained=pretrained, **given, **kwargs)
    except _FAILURES as error:
        if '`base`' in str(error):
            raise
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise ValueError(f'`base` {base!r} cannot be loaded: {reason[:300]}. {_advice(base)}') from error


def _of_file(architecture: str, file: str) -> tuple[str, dict[str, Any]]:
    """Return name and arguments that build a network from the checkpoint in a file."""
    with torch.serialization.safe_globals([argparse.Namespace]):  # train.py's arguments; no code of the file runs
        state: dict[str, Tensor] = load_state_dict(file, weights_only=True)
    is_frozen_one = any(key.endswith(f'.{RECORD}') for key in state)
    if is_frozen_one:  # only the `lc_` network knows its records; it is folded afterwards
        architecture = f'{PREFIX}{stock_name(architecture)}'
    cfg = timm.get_pretrained_cfg(architecture)
    classifier = cfg.classifier if cfg else None
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    sizes = [len(state[f'{head}.weight']) for head in heads if f'{head}.weight' in state]
    overlay: dict[str, Any] = {'source': 'state-dict', 'state_dict': state, 'custom_load': False}
    given: dict[str, Any] = {'pretrained_cfg_overlay': overlay | ({'num_classes': sizes[0]} if sizes else {})}
    if architecture.startswith(PREFIX):
        given['freeze_spatial'] = is_frozen_one
    return architecture, given


def _check_architecture(name: str, base: str, architecture: str) -> None:
    if architecture not in (name, stock_name(name)):
        known = f'is a {architecture}' if is_model(architecture) else 'is no network that timm knows'
        raise ValueError(f'`base` {base!r} {known}, but {name} adapts a {stock_name(name)}')


def _advice(base: str) -> str:
    if base.startswith('local-dir:') or Path(base).exists():
        return 'It must be a folder of save_pretrained or a checkpoint of timm'
    return "It is fetched from the network: check the connection, or give 'local-dir:PATH' or a checkpoint file"
