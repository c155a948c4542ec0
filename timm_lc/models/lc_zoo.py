"""`lc_<timm name>`: timm's convolutional architectures with frozen random spatial filters (section 4.5, table 2)."""

import functools
from typing import Any

from timm.models import PretrainedCfg, list_models, model_entrypoint

from timm_lc._timm import default_cfg
from timm_lc.models._adapted import IMAGES
from timm_lc.models._build import register

__all__: list[str] = []

# timm's modules whose networks are convolutional from stem to head, normalised or not
MODULES = (
    'byobnet', 'convmixer', 'convnext', 'cspnet', 'cspnext', 'densenet', 'dla', 'dpn', 'efficientnet', 'fasternet',
    'ghostnet', 'hardcorenas', 'hgnet', 'hrnet', 'inception_next', 'inception_resnet_v2', 'inception_v3',
    'inception_v4', 'lcnetv2', 'mambaout', 'mobilenetv3', 'mobilenetv5', 'nasnet', 'nfnet', 'pnasnet', 'rdnet',
    'regnet', 'repghost', 'repvit', 'res2net', 'resnest', 'resnet', 'resnetv2', 'rexnet', 'selecsls', 'senet',
    'sknet', 'starnet', 'tresnet', 'vgg', 'vovnet', 'xception', 'xception_aligned',
)  # fmt: skip


_KEPT = (*IMAGES, 'num_classes', 'classifier', 'paper_name', 'paper_ids')


def stock_cfg(cfg: PretrainedCfg) -> PretrainedCfg:
    """Return the data configuration of a timm architecture, which says nothing of weights or their stem."""
    return PretrainedCfg(**{name: getattr(cfg, name) for name in _KEPT}, first_conv=())


def stem_names(cfg: PretrainedCfg) -> tuple[str, ...]:
    """Return the names of a timm architecture's input convolutions."""
    return (cfg.first_conv,) if isinstance(cfg.first_conv, str) else tuple(cfg.first_conv or ())


def _create(base: str, **kwargs: Any) -> Any:
    return model_entrypoint(base)(pretrained=False, **kwargs)


def _register_all() -> None:
    for module in MODULES:
        for base in list_models(module=module):
            doc = f"timm's `{base}` with frozen random spatial filters; keyword arguments: `timm_lc.models.LCOptions`."
            cfg, create = default_cfg(base), functools.partial(_create, base)
            register(globals(), f'lc_{base}', create, stock_cfg(cfg), stem_names(cfg), {}, doc)


_register_all()
