"""What tells one base network from another: a CRC-32 of each of its layers, as a tensor that travels in state dicts."""

import zlib

import numpy as np
import torch
from torch import Tensor, nn

from timm_lc.layers.adapter import AdaptedConv2d
from timm_lc.layers.held import tensors_of
from timm_lc.spatial import classifying_convolution

__all__ = [
    'FINGERPRINT',
    'classifiers',
    'decode_checksums',
    'describe_difference',
    'encode_checksums',
    'fingerprint_base',
    'rounded_layers',
]

FINGERPRINT = 'base_fingerprint'  # entry of the state dict


def fingerprint_base(model: nn.Module) -> dict[str, int]:
    """Return a CRC-32 of each layer that has tensors, in order of names, the classifier's and adapters' left out."""
    return {name: _checksum(tensors) for name, tensors in _layers(model).items()}


def rounded_layers(model: nn.Module) -> set[str]:
    """Return the layers of a base that hold numbers of fewer bits than float32, of which no CRC-32 tells a change."""
    return {
        name
        for name, tensors in _layers(model).items()
        if any(tensor.is_floating_point() and tensor.element_size() < 4 for tensor in tensors.values())
    }


def _layers(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each layer of a base, in order of names."""
    left_out = {child for module in classifiers(model).values() for child in module.modules()}
    for module in model.modules():
        if isinstance(module, AdaptedConv2d):
            left_out |= {module.spatial, module.pointwise}
    layers = {
        _plain_name(model, name): {key: tensor for key, tensor in tensors_of(module).items() if key != FINGERPRINT}
        for name, module in model.named_modules()
        if module not in left_out
    }
    return {name: tensors for name, tensors in sorted(layers.items()) if tensors}


def classifiers(model: nn.Module) -> dict[str, nn.Module]:
    """Return timm's classifier modules by name, or what classifies last in a network that is not timm's."""
    if hasattr(model, 'get_classifier'):
        found = model.get_classifier()
        heads = {*found} if isinstance(found, tuple | list | nn.ModuleList) else {found}
    else:
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
        heads = {*(classifying_convolution(model).values() or linear)}
    return {name: module for name, module in model.named_modules() if module in heads}


def encode_checksums(checksums: list[int]) -> Tensor:
    """Return CRC-32s as float32 (layers, 4), their bytes: casts and averages of states keep them."""
    return torch.tensor([[crc >> shift & 255 for shift in (0, 8, 16, 24)] for crc in checksums], dtype=torch.float32)


def decode_checksums(fingerprint: Tensor) -> list[int]:
    """Return the CRC-32s of a tensor of `encode_checksums`."""
    rows = fingerprint.detach().cpu().float().round().to(torch.int64).reshape(-1, 4).tolist()
    return [sum(byte << 8 * index for index, byte in enumerate(row)) for row in rows]


def describe_difference(base: dict[str, int], fingerprint: Tensor) -> str:
    """Return in which layers a base differs from that of a fingerprint, '' if in none."""
    other = decode_checksums(fingerprint)
    if len(base) != len(other):
        return f'it has {len(other)} layers, not {len(base)}'
    differing = [name for (name, crc), found in zip(base.items(), other, strict=True) if crc != found]
    if not differing:
        return ''
    return f'{len(differing)} of {len(base)} layers differ, `{differing[0]}` first'


def _plain_name(model: nn.Module, name: str) -> str:
    """Return what a layer is called in the base."""
    parent, _, leaf = name.rpartition('.')
    is_base = leaf == 'base' and isinstance(model.get_submodule(parent), AdaptedConv2d)
    return parent if is_base else name


def _checksum(tensors: dict[str, Tensor]) -> int:
    """Return the CRC-32 of the shapes and the little-endian float32 bytes of tensors, by name; 0 on the meta device."""
    crc = 0
    if any(tensor.is_meta for tensor in tensors.values()):
        return crc
    for name, tensor in tensors.items():
        values = np.ascontiguousarray(tensor.detach().cpu().float().numpy(), dtype='<f4')
        crc = zlib.crc32(values.data if values.size else b'', zlib.crc32(f'{name}{tuple(tensor.shape)}'.encode(), crc))
    return crc
