"""What images a network from `timm.create_model` takes, and how timm prepares them."""

from typing import Any

from timm.data import resolve_data_config
from torch import nn

from timm_lc.naming import architecture_of

__all__ = ['data_config', 'input_size']


def input_size(model: nn.Module) -> tuple[int, int, int]:
    """Return (C_in, H, W).

    Raises:
        ValueError: If `model` is not timm's.
    """
    architecture_of(model)
    channels, height, width = model.pretrained_cfg['input_size']
    stem = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), channels)
    return getattr(model, 'in_chans', stem), height, width  # which timm tells from 1.0.31 on


def data_config(model: nn.Module) -> dict[str, Any]:
    """Return size, normalisation, interpolation and crop; for the channels of `model`, whatever timm has recorded.

    Where the recorded mean and deviation are of another number of channels, their means stand in.
    """
    config = resolve_data_config(model=model)
    channels = input_size(model)[0]
    config['input_size'] = (channels, *config['input_size'][1:])
    for key in ('mean', 'std'):
        values = config[key]
        config[key] = values if len(values) == channels else (sum(values) / len(values),) * channels
    return {key: config[key] for key in ('input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')}
