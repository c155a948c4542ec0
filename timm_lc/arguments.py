"""Checks of arguments that many functions have: what is wrong is said with the name and the value."""

from typing import Any

import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

__all__ = ['changeable', 'check_count', 'check_module', 'device_of', 'unwrapped']


_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, ModelEmaV2, ModelEmaV3, AveragedModel)


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
    """Return the network in what compiles it, trains it in parallel or averages its weights, else `model`.

    Raises:
        TypeError: If `model` is not an `nn.Module`.
    """
    check_module(model)
    while isinstance(model, _WRAPPERS) or '_orig_mod' in model._modules:
        model = model.get_submodule('module' if isinstance(model, _WRAPPERS) else '_orig_mod')
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
