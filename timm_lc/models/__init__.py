"""The `lc_` models; importing this package registers them with timm."""

from . import lc_lowres, lc_resnet_cifar, lc_zoo
from ._build import LCOptions as LCOptions

__all__ = ['LCOptions', 'lc_lowres', 'lc_resnet_cifar', 'lc_zoo']
