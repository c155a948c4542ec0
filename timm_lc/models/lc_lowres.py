"""Figure 3's networks for 32x32 images, `lc_lowres_<name>`, as the authors' public code has them.

They are timm's own, changed to keep their resolution longer. ResNets and the Wide-ResNet have a 3x3 stem of stride 1 in
place of 7x7 of stride 2, keep the 3x3 max pool of stride 2, and start from PyTorch's default initialisation: 32x32 ends
at 2x2. ResNet-14 has three stages of two basic blocks, of 64, 128 and 256 channels, and ends at 4x4. MobileNetV2's stem
and second stage have stride 1, dropout of 0.2 stands before its classifier; its initialisation is timm's.
`lc_lowres_resnet20` is the CIFAR ResNet.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from timm.models import model_entrypoint
from torch import nn

from timm_lc.models._build import register
from timm_lc.models.lc_resnet_cifar import CIFAR_CFG, create_cifar_resnet

__all__: list[str] = []

RESNETS: dict[str, tuple[str, dict[str, Any]]] = {
    'resnet14': ('resnet18', {'layers': (2, 2, 2, 0), 'channels': (64, 128, 256, 256)}),  # the fourth stage is empty
    'resnet18': ('resnet18', {}),
    'resnet34': ('resnet34', {}),
    'resnet50': ('resnet50', {}),
    'resnet101': ('resnet101', {}),
    'wide_resnet50_2': ('wide_resnet50_2', {}),
}


def _create_resnet(base: str, defaults: dict[str, Any], **kwargs: Any) -> nn.Module:
    model = model_entrypoint(base)(pretrained=False, **{**defaults, **kwargs})
    for parent in (model, getattr(model, 'model', model)):  # timm's getter wraps the network
        if hasattr(parent, 'conv1'):
            stem = parent.conv1
            factory = {'device': stem.weight.device, 'dtype': stem.weight.dtype}
            parent.conv1 = nn.Conv2d(stem.in_channels, stem.out_channels, 3, padding=1, bias=False, **factory)
    for module in model.modules():  # timm's ResNets start from He's initialisation, and blocks at zero
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            module.reset_parameters()
    deepest = 8 if 'layers' in defaults else 16
    return _set_reductions(model, lambda reduction: min(reduction // 2, deepest))


def _create_mobilenetv2(**kwargs: Any) -> nn.Module:
    model = model_entrypoint('mobilenetv2_100')(pretrained=False, **{'drop_rate': 0.2, **kwargs})
    for name, module in model.named_modules():
        if name.replace('_', '.').endswith(('conv.stem', 'blocks.1.0.conv.dw')):
            module.stride = (1, 1)
    return _set_reductions(model, lambda reduction: max(1, reduction // 4))


def _set_reductions(model: nn.Module, change: Callable[[int], int]) -> nn.Module:
    """Correct, in place, the reductions that timm reports, which are those of its own strides."""
    infos = model.feature_info if isinstance(model.feature_info, list) else model.feature_info.info
    for info in infos:
        info['reduction'] = change(info['reduction'])
    return model


def _register_all() -> None:
    doc = 'Low-resolution `{}` of figure 3, frozen random; keyword arguments: `timm_lc.models.LCOptions`.'
    for name, (base, defaults) in RESNETS.items():
        create = functools.partial(_create_resnet, base, defaults)
        cfg = dataclasses.replace(CIFAR_CFG, pool_size=(4, 4) if defaults else (2, 2))
        register(globals(), f'lc_lowres_{name}', create, cfg, ('conv1',), {}, doc.format(name))
    name, cfg = 'mobilenetv2_100', dataclasses.replace(CIFAR_CFG, pool_size=(4, 4), classifier='classifier')
    register(globals(), f'lc_lowres_{name}', _create_mobilenetv2, cfg, ('conv_stem',), {}, doc.format(name))
    create = functools.partial(create_cifar_resnet, 'lc_lowres_resnet20', {})
    register(globals(), 'lc_lowres_resnet20', create, CIFAR_CFG, ('conv1',), {}, doc.format('resnet20'))


_register_all()
