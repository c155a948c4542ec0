"""`lc_<timm name>`: timm's convolutional architectures with frozen random spatial filters (section 4.5, table 2)."""

import dataclasses
import functools
from typing import Any

from timm.models import PretrainedCfg, get_pretrained_cfg, list_models, model_entrypoint

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


def stock_cfg(base: str) -> PretrainedCfg:
    """Return the data configuration of a timm architecture without any source of weights."""
    cfg = get_pretrained_cfg(base) or PretrainedCfg()
    sources = {
        'url': None,
        'file': None,
        'state_dict': None,
        'hf_hub_id': None,
        'hf_hub_filename': None,
        'source': None,
    }
    about = {'license': None, 'description': None, 'origin_url': None, 'notes': None, 'label_offset': None}
    known = {field.name for field in dataclasses.fields(PretrainedCfg)}
    cleared = {**sources, **about, 'architecture': None, 'tag': None, 'custom_load': False, 'first_conv': ()}
    return dataclasses.replace(cfg, **{key: value for key, value in cleared.items() if key in known})


def stem_names(base: str) -> tuple[str, ...]:
    """Return the names of a timm architecture's input convolutions."""
    cfg = get_pretrained_cfg(base)
    first_conv = cfg.first_conv if cfg else None
    return (first_conv,) if isinstance(first_conv, str) else tuple(first_conv or ())


def _create(base: str, **kwargs: Any) -> Any:
    return model_entrypoint(base)(pretrained=False, **kwargs)


def _register_all() -> None:
    for module in MODULES:
        for base in list_models(module=module):
            doc = f"timm's `{base}` with frozen random spatial filters; keyword arguments: `timm_lc.models.LCOptions`."
            register(
                globals(), f'lc_{base}', functools.partial(_create, base), stock_cfg(base), stem_names(base), {}, doc
            )


_register_all()
