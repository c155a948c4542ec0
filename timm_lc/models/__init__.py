"""The `lc_` models; importing this package registers them with timm."""

from timm_lc.transforms.options import LCOptions as LCOptions

from . import lc_lowres, lc_resnet_cifar, lc_zoo

__all__ = ['LCOptions', 'lc_lowres', 'lc_resnet_cifar', 'lc_zoo']
