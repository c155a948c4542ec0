"""Checks of arguments that many functions have: what is wrong is said with the name and the value."""

from typing import Any

import torch
from torch import nn

__all__ = ['changeable', 'check_count', 'check_module', 'device_of', 'unwrapped']


_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


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


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network in what `torch.compile`, DataParallel or DistributedDataParallel made of it, else `model`.

    Raises:
        TypeError: If `model` is not an `nn.Module`.
    """
    check_module(model)
    while isinstance(model, _PARALLEL) or '_orig_mod' in model._modules:
        model = model.get_submodule('module' if isinstance(model, _PARALLEL) else '_orig_mod')
    return model


def changeable(model: nn.Module) -> nn.Module:
    """Return the network whose layers a transform changes: its layers' names, from which filters follow, are its own.

    Raises:
        TypeError: If `model` is not an `nn.Module`.
        ValueError: If it is in DistributedDataParallel, which has hooks on the parameters that there are.
    """
    network = unwrapped(model)
    if isinstance(model._modules.get('_orig_mod', model), nn.parallel.DistributedDataParallel):
        raise ValueError('`model` is in DistributedDataParallel, which would not see the change: wrap it afterwards')
    return network


def device_of(device: Any) -> torch.device:
    """Return the device that an argument means, None that of new tensors.

    `torch.get_default_device` does not know of `with torch.device(...)` before torch 2.7.
    """
    return torch.empty(0).device if device is None else torch.device(device)
