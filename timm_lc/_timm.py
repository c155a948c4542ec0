"""The only file that touches timm's non-public names."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg, adapt_input_conv, load_pretrained
from timm.models._features import feature_take_indices as feature_take_indices
from timm.models._hub import save_config_for_hf
from timm.models._registry import _model_pretrained_cfgs
from timm.optim._optim_factory import default_registry as optimizer_registry
from torch import Tensor, nn

__all__ = [
    'default_cfg',
    'describe_as',
    'describe_images',
    'feature_take_indices',
    'load_weights',
    'name_local_weights',
    'optimizer_registry',
    'record_arguments',
    'replace_arguments',
    'save_config',
]

# What timm's factory passes beside the arguments that make a network what it is
_RUNTIME = ('pretrained_cfg', 'pretrained_cfg_overlay', 'pretrained_model_args', 'cache_dir', 'device', 'dtype')


def default_cfg(architecture: str) -> PretrainedCfg:
    """Return timm's own configuration of an architecture, only to be read: timm's deep copies take time."""
    return _model_pretrained_cfgs.get(architecture, PretrainedCfg())


def describe_as(model: nn.Module, architecture: str, first_conv: str | tuple[str, ...] | None) -> None:
    """Change, in place, what timm saves and reads as the architecture and the input convolutions of `model`."""
    model.pretrained_cfg = {**model.pretrained_cfg, 'architecture': architecture, 'first_conv': first_conv}
    model.default_cfg = model.pretrained_cfg
    if hasattr(model, '_traits'):  # timm 1.0.31 on
        model._traits = {**model._traits, 'first_conv': first_conv}


def describe_images(model: nn.Module, input_size: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> None:
    """Change, in place, what timm saves and reads as the images that `model` takes: (C, H, W), whole, normalised so."""
    images: dict[str, Any] = {'input_size': tuple(input_size), 'mean': tuple(mean), 'std': tuple(std), 'crop_pct': 1.0}
    images |= {'test_input_size': None, 'test_crop_pct': None}  # those of the architecture's own weights
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, **images}


def record_arguments(model: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Keep, in place, the keyword arguments that build `model` again; timm's factory does so from 1.0.31 on."""
    model._model_args = {key: value for key, value in arguments.items() if key not in _RUNTIME}


def replace_arguments(model: nn.Module, forgotten: tuple[str, ...], given: dict[str, Any]) -> None:
    """Remove and add, in place, keyword arguments of those that build `model` again."""
    kept = {key: value for key, value in getattr(model, '_model_args', {}).items() if key not in forgotten}
    model._model_args = {**kept, **given}


def name_local_weights(pretrained_cfg: dict[str, Any]) -> dict[str, Any]:
    """Return a config that names the weights in a local folder, where timm before 1.0.26 cannot read safetensors."""
    weights = Path(pretrained_cfg.get('file') or '', 'model.safetensors')
    is_folder = pretrained_cfg.get('source') == 'local-dir' and weights.is_file()
    return {**pretrained_cfg, 'source': 'file', 'file': str(weights)} if is_folder else pretrained_cfg


def load_weights(model: nn.Module, num_classes: int, channels: int, cache_dir: Any) -> None:
    """Load the weights that the config of `model` names, its stem adapted only where it does not fit as it is.

    timm before 1.0.31 adapts every stem as if it had 3 input channels, and leaves one of others random.
    """
    cfg, stems = name_local_weights(model.pretrained_cfg), model.pretrained_cfg['first_conv']
    if hasattr(model, '_traits'):
        load_pretrained(model, cfg, num_classes, channels, cache_dir=cache_dir)
        return

    def fit(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        parameters = dict(model.named_parameters())
        for key in {f'{name}.weight' for name in stems} & state.keys() & parameters.keys():
            if state[key].shape[1:2] != parameters[key].shape[1:2]:
                with contextlib.suppress(NotImplementedError, AssertionError):  # `load_state_dict` then tells the layer
                    state[key] = adapt_input_conv(channels, state[key])
        return state

    load_pretrained(model, {**cfg, 'first_conv': None}, num_classes, channels, fit, cache_dir=cache_dir)


def save_config(model: nn.Module, path: Path, *, model_config: dict[str, Any], model_args: dict[str, Any]) -> None:
    """Write timm's config.json with the recorded arguments, which timm itself does not look for before 1.0.31."""
    if not hasattr(model, '_traits'):
        recorded = getattr(model, '_model_args', {})
        model_args = {**recorded, 'num_classes': model.num_classes, **model_args}
    save_config_for_hf(model, path, model_config=model_config, model_args=model_args)
    config = json.loads(path.read_text(encoding='utf-8'))
    config.get('model_args', {}).pop('num_classes', None)  # stands above them, and transformers takes no second one
    config['pretrained_cfg'].pop('label_names', None)
    if model.num_classes != model.pretrained_cfg.get('num_classes'):  # it tells how good another classifier is
        config['pretrained_cfg'].pop('description', None)
    path.write_text(json.dumps(config, indent=2), encoding='utf-8')
