"""Checks of arguments that many functions have: what is wrong is said with the name and the value."""

from typing import Any

import torch
from torch import nn

__all__ = ['check_count', 'check_module', 'device_of']


def check_count(name: str, value: int) -> int:
    """Return `value` if it is a positive integer.

    Raises:
        ValueError: If it is not; True and 1.0 are not.

    Example:
        >>> check_count('expansion', 8)
        8
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f'`{name}` must be a positive integer, got {value!r}')
    return value


def check_module(model: object) -> None:
    """Refuse what is no network, such as its name.

    Raises:
        TypeError: If `model` is not an `nn.Module`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f'`model` must be an nn.Module, got {model!r}')


def device_of(device: Any) -> torch.device:
    """Return the device that an argument means, None that of new tensors.

    `torch.get_default_device` does not know of `with torch.device(...)` before torch 2.7.
    """
    return torch.empty(0).device if device is None else torch.device(device)
