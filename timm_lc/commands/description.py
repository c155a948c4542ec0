"""What a network is made of, layer by layer: `timm-lc info`."""

import math
from typing import Any, NamedTuple

import timm
import torch
from safetensors.torch import save
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from timm_lc.analysis.counting import ParameterCount, count_parameters
from timm_lc.checkpoints.checkpoint import file_metadata
from timm_lc.inputs import input_size
from timm_lc.layers.frozen import is_frozen
from timm_lc.layers.lc_conv import LCConv2d
from timm_lc.spatial import is_pointwise, is_spatial

__all__ = ['LayerInfo', 'ModelInfo', 'describe']


class LayerInfo(NamedTuple):
    """One convolution: its shape is (C_out, C_in/groups, k_h, k_w)."""

    name: str
    role: str
    shape: tuple[int, ...]
    state: str


class ModelInfo(NamedTuple):
    """All convolutions and the totals: bytes of `model.safetensors`, multiply-adds of one image's forward pass."""

    layers: list[LayerInfo]
    parameters: ParameterCount
    checkpoint_bytes: int
    multiply_adds: int
    input_size: tuple[int, int, int]


def describe(name: str, **model_kwargs: Any) -> ModelInfo:
    """Build a model without allocating its weights, and describe it."""
    with torch.device('meta'):
        model = timm.create_model(name, **model_kwargs).eval()
        image = torch.empty(1, *input_size(model))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    layers = [_layer(name, module, model) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    empty = {key: torch.empty_like(tensor, device='cpu') for key, tensor in model.state_dict().items()}
    size, multiply_adds = len(save(empty, file_metadata(empty))), counter.get_total_flops() // 2
    return ModelInfo(layers, count_parameters(model), size, multiply_adds, input_size(model))


def _layer(name: str, conv: nn.Conv2d, model: nn.Module) -> LayerInfo:
    role = 'spatial' if is_spatial(conv) else 'pointwise' if is_pointwise(conv) else 'convolution'
    if isinstance(model.get_submodule(name.rpartition('.')[0]), LCConv2d):
        role = f'LC-Block {role}'
    if not is_frozen(conv):
        return LayerInfo(name, role, tuple(conv.weight.shape), 'learnable')
    record = conv.filter_record
    state = 'kept' if record.is_kept else 'frozen'
    if record.is_shared:
        recycled = record.period and record.period < math.prod(conv.weight.shape)
        state = f'shared, repeats every {record.period:,}' if recycled else 'shared'
    return LayerInfo(name, role, tuple(conv.weight.shape), state)
