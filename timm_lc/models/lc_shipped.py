"""Networks that ship trained, in the package: `timm.create_model(name, pretrained=True)` needs no network for them.

Each is a safetensors file of half a megabyte beside this one, in float16 but for norms and biases, with a record of its
filters in place of the filters. `weights/README.md` is their card; results/models.csv says how they were measured.
"""

import dataclasses
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg

__all__ = ['WEIGHTS', 'forget_shipped', 'shipped_cfg']

WEIGHTS = Path(__file__).parent / 'weights'

# Of each: what it was trained on, the mean and deviation of its training pixels, and what it reaches
_SHIPPED: dict[str, dict[str, object]] = {
    'lc_resnet20_16x8': {
        'tag': 'cifar10_jpeg',
        'mean': (0.49125, 0.48209, 0.44652),
        'std': (0.24523, 0.24278, 0.26063),
        'description': '86.98 % of the 10,000 validation images of CIFAR-10 as JPEG, after 75 epochs',
        'license': 'apache-2.0',
    },
}


def shipped_cfg(name: str, cfg: PretrainedCfg) -> PretrainedCfg:
    """Return the configuration of a network with its weights, tag and description, if it ships; else as it is."""
    if name not in _SHIPPED:
        return cfg
    return dataclasses.replace(cfg, file=str(WEIGHTS / f'{name}.safetensors'), **_SHIPPED[name])


def forget_shipped(cfg: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a network that starts at random, which is none of those that ship."""
    if not str(cfg.get('file') or '').startswith(str(WEIGHTS)):
        return cfg
    return {key: value for key, value in cfg.items() if key not in ('file', 'tag', 'description', 'license')}
