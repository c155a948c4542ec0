"""The only file that touches timm's non-public names."""

from typing import Any

from timm.models._features import feature_take_indices as feature_take_indices
from timm.models._hub import save_config_for_hf as save_config_for_hf
from timm.optim._optim_factory import default_registry as optimizer_registry
from torch import nn

__all__ = ['describe_as', 'feature_take_indices', 'optimizer_registry', 'replace_arguments', 'save_config_for_hf']


def describe_as(model: nn.Module, architecture: str, first_conv: str | tuple[str, ...] | None) -> None:
    """Change, in place, what timm saves and reads as the architecture and the input convolutions of `model`."""
    model.pretrained_cfg = {**model.pretrained_cfg, 'architecture': architecture, 'first_conv': first_conv}
    model.default_cfg = model.pretrained_cfg
    if hasattr(model, '_traits'):  # timm 1.0.30 on
        model._traits = {**model._traits, 'first_conv': first_conv}


def replace_arguments(model: nn.Module, forgotten: tuple[str, ...], given: dict[str, Any]) -> None:
    """Remove and add, in place, keyword arguments of those that timm saves to build `model` again."""
    if hasattr(model, '_model_args'):  # timm 1.0.30 on
        kept = {key: value for key, value in model._model_args.items() if key not in forgotten}
        model._model_args = {**kept, **given}
