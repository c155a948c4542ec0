"""A layer's record, as its buffer and a state dict hold it, and the filters that it stands for."""

from collections.abc import Mapping

import numpy as np
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from timm_lc.filters import FilterRecord, fingerprint

__all__ = [
    'COLOURS',
    'RECORD',
    'adapt_channels',
    'copy_filters',
    'decode',
    'draw',
    'draw_into',
    'encode',
    'filter_shape',
    'fit',
    'is_frozen',
    'read',
    'recorded',
    'refuse_program',
]

RECORD = 'record'
COLOURS = 3  # input channels of a stem that can be adapted to others


def is_frozen(module: nn.Module) -> bool:
    """Return whether `module` is a frozen convolution, shared or not."""
    return isinstance(module, nn.Conv2d) and RECORD in module._buffers


def filter_shape(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Return (C_out, C_in/groups, k_h, k_w) of a convolution."""
    k_h, k_w = conv.kernel_size
    return conv.out_channels, conv.in_channels // conv.groups, k_h, k_w


def decode(digits: Tensor) -> tuple[FilterRecord, int]:
    """Return the record and the fingerprint that a tensor of any number type holds.

    Raises:
        ValueError: If it is damaged.
    """
    digits = digits.detach().cpu()
    if digits.dtype == torch.bool:  # as it is stored, since any byte but 0 counts as True
        return FilterRecord.decode(digits.contiguous().view(torch.uint8).numpy())
    return FilterRecord.decode((digits.real if digits.is_complex() else digits).float().numpy())


def encode(record: FilterRecord, crc: int, like: Tensor) -> Tensor:
    """Return the digits of a record and a fingerprint on the device of `like`, in its type if that holds them."""
    digits = torch.from_numpy(record.encode(crc))
    return digits.to(like.device, like.dtype if like.is_floating_point() and like.itemsize > 1 else digits.dtype)


def recorded(conv: nn.Module) -> tuple[FilterRecord, int] | None:
    """Return record and fingerprint in the buffer of `conv`, None if it holds none that is whole."""
    if conv.record.is_meta:
        return None
    try:
        return decode(conv.record)
    except ValueError:
        return None


def refuse_program(model: nn.Module) -> None:
    """Refuse a program of torch.export or TorchScript, whose filters are constants.

    Raises:
        TypeError: If `model` holds the record of a layer that is no convolution.
    """
    for name, module in model.named_modules():
        is_layer = RECORD in module._buffers and not isinstance(module, nn.Conv2d) and module.record is not None
        if is_layer and recorded(module) is not None:
            raise TypeError(
                f'layer `{name}` is part of a program of torch.export or TorchScript, whose filters are constants: '
                'take the network that it was made from'
            )


def draw(record: FilterRecord, crc: int) -> np.ndarray | None:
    """Return the filters of a record, None for kept ones.

    Raises:
        ValueError: If their fingerprint is not `crc`.
    """
    if record.is_kept:
        return None
    filters = record.filters()
    if fingerprint(filters) != crc:
        raise ValueError('the filters drawn from its record do not match the fingerprint in it')
    return filters


def draw_into(conv: nn.Conv2d, record: FilterRecord, *, fingerprinted: bool = True) -> int:
    """Write the filters of a record into the weight of `conv`, in place; return their fingerprint, or 0."""
    weight = conv.weight.detach()
    in_memory = type(weight) is Tensor and weight.device.type == 'cpu' and weight.dtype == torch.float32
    if in_memory and weight.is_contiguous() and weight.shape == record.shape:
        weight[:0].zero_()  # writing through numpy moves no version counter
        return record.draw_into(weight.numpy(), fingerprinted=fingerprinted)
    filters = np.empty(record.shape, np.float32)
    crc = record.draw_into(filters, fingerprinted=fingerprinted)
    copy_filters(conv.weight, fit(torch.from_numpy(filters), conv))
    return crc


def copy_filters(target: Tensor, filters: Tensor) -> None:
    """Write filters into a tensor, in place."""
    with torch.no_grad():
        target.copy_(filters)


def read(state_dict: Mapping[str, Tensor], prefix: str) -> tuple[FilterRecord, int, Tensor | None, Tensor]:
    """Return the verified record of a layer, its fingerprint, the filters that it gives, and those that the layer has.

    Filters that no seed gives are those of the state dict.

    Raises:
        ValueError: If the record is damaged, or its filters are not there or not those of its fingerprint.
    """
    record, crc = decode(state_dict[prefix + RECORD])
    drawn, stored = draw(record, crc), state_dict.get(prefix + 'weight')
    if drawn is not None:
        filters = torch.from_numpy(drawn)
        return record, crc, filters, filters
    if stored is None:
        raise ValueError('its filters were kept as they were, but the checkpoint does not hold them')
    return record, 0, None, stored.detach()


def fit(filters: Tensor, conv: nn.Conv2d) -> Tensor:
    """Adapt filters to the input channels of `conv`.

    Raises:
        ValueError: If more than the input channels differ, or those are not of a colour image.
    """
    shape = filter_shape(conv)
    if filters.shape == shape:
        return filters
    if filters.shape[0] == shape[0] and filters.shape[2:] == shape[2:] and conv.groups == 1:
        return adapt_channels(filters, shape[1])
    raise ValueError(f'its filters have shape {tuple(filters.shape)}, the model needs {shape}: another architecture?')


def adapt_channels(filters: Tensor, channels: int) -> Tensor:
    """Return filters (C_out, C_in, k_h, k_w) of `channels` inputs, adapted as timm adapts a pretrained stem.

    Raises:
        ValueError: If they are of another number than 3 inputs, the only one that timm adapts.
    """
    found = filters.shape[1]
    if found == channels:
        return filters
    if found != COLOURS:
        raise ValueError(f'its filters have {found} input channels, the model {channels}: only those of 3 are adapted')
    return adapt_input_conv(channels, filters)
