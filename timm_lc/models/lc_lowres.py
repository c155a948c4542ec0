"""Figure 3's networks for 32x32 images, `lc_lowres_<name>`: timm's own, changed to keep their resolution longer.

Against ImageNet's versions: ResNets and the Wide-ResNet have a 3x3 stem of stride 1 in place of 7x7 of stride 2, and no
max pooling; MobileNetV2's stem and second stage have stride 1. All reduce by 8, not 32. ResNet-14 has (1, 1, 2, 2)
basic blocks. The authors did not publish their versions; `lc_lowres_resnet20` is the CIFAR ResNet of He et al.
"""

import dataclasses
import functools
from typing import Any

from timm.models import model_entrypoint
from torch import nn

from timm_lc.models._build import register
from timm_lc.models.lc_resnet_cifar import CIFAR_CFG, create_cifar_resnet

__all__: list[str] = []

RESNETS: dict[str, tuple[str, dict[str, Any]]] = {
    'resnet14': ('resnet18', {'layers': (1, 1, 2, 2)}),
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
            nn.init.kaiming_normal_(parent.conv1.weight, mode='fan_out', nonlinearity='relu')
            parent.maxpool = nn.Identity()
    return _lower_reduction(model, stem=2)


def _create_mobilenetv2(**kwargs: Any) -> nn.Module:
    model = model_entrypoint('mobilenetv2_100')(pretrained=False, **kwargs)
    for name, module in model.named_modules():
        if name.replace('_', '.').endswith(('conv.stem', 'blocks.1.0.conv.dw')):
            module.stride = (1, 1)
    return _lower_reduction(model, stem=2)


def _lower_reduction(model: nn.Module, *, stem: int) -> nn.Module:
    """Correct, in place, the reductions that timm reports: the stem's by `stem`, the others by 4."""
    infos = model.feature_info if isinstance(model.feature_info, list) else model.feature_info.info
    for info in infos:
        info['reduction'] = max(1, info['reduction'] // (stem if info['reduction'] == 2 else 4))
    return model


def _register_all() -> None:
    cfg = dataclasses.replace(CIFAR_CFG, pool_size=(4, 4))
    doc = 'Low-resolution `{}` of figure 3, frozen random; keyword arguments: `timm_lc.models.LCOptions`.'
    for name, (base, defaults) in RESNETS.items():
        create = functools.partial(_create_resnet, base, defaults)
        register(globals(), f'lc_lowres_{name}', create, cfg, ('conv1',), {}, doc.format(name))
    mobilenet = dataclasses.replace(cfg, classifier='classifier')
    register(
        globals(),
        'lc_lowres_mobilenetv2_100',
        _create_mobilenetv2,
        mobilenet,
        ('conv_stem',),
        {},
        doc.format('mobilenetv2_100'),
    )
    create = functools.partial(create_cifar_resnet, 'lc_lowres_resnet20', {})
    register(globals(), 'lc_lowres_resnet20', create, CIFAR_CFG, ('conv1',), {}, doc.format('resnet20'))


_register_all()
