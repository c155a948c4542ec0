"""Adapters as files: what was learned, the records, and what tells their base; a hundred kilobytes for a ResNet-50."""

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from timm_lc.arguments import unwrapped
from timm_lc.checkpoints.checkpoint import CONFIG, file_metadata, stored_tensors, write_tensors
from timm_lc.checkpoints.reading import ADAPTER, open_safetensors, read_checkpoint
from timm_lc.filters import FilterRecord
from timm_lc.layers.adapter import AdaptedConv2d
from timm_lc.layers.packing import add_unpacking
from timm_lc.layers.recorded import decode
from timm_lc.naming import PREFIX
from timm_lc.transforms.adapt import ADAPTER_GAIN, adapt, changed_layers, is_adapted, recorded_base, remove_adapters
from timm_lc.transforms.fingerprint import (
    FINGERPRINT,
    classifiers,
    describe_difference,
    fingerprint_base,
    rounded_layers,
)

__all__ = ['AdapterFile', 'is_adapter_file', 'load_adapted', 'load_adapter', 'read_adapter', 'save_adapter']

_RECORD = '.spatial.record'


class AdapterFile(NamedTuple):
    """What a file of `save_adapter` holds.

    Attributes:
        tensors: Learned tensors, records and the base's fingerprint, by name.
        base: What `timm.create_model` builds the base from; None if it was not known.
        architecture: Of the base; None if it is not timm's.
        norms: Whether norms learned.
        num_classes: Of the adapted network; None if it does not tell.
    """

    tensors: dict[str, Tensor]
    base: str | None
    architecture: str | None
    norms: bool
    num_classes: int | None

    @property
    def records(self) -> dict[str, FilterRecord]:
        """Record of the random filters of each adapted layer, by the layer's name in the base."""
        found = {key: bits for key, bits in self.tensors.items() if key.endswith(_RECORD)}
        return {key.removesuffix(_RECORD): decode(bits)[0] for key, bits in found.items()}


def save_adapter(model: nn.Module, path: str | Path, *, dtype: torch.dtype | None = None, sparse: bool = False) -> Path:
    """Write what a network with adapters has learned to one safetensors file; return its path.

    It holds learned tensors, changed statistics, the records of random filters, and the name and a fingerprint of the
    base; neither the base nor a random filter. The file appears only when whole.

    Args:
        model: A network with adapters, or what DistributedDataParallel or `torch.compile` made of it.
        path: File to write to, `.safetensors`; its folder is made if need be.
        dtype: Floating type to store matrices in; vectors (norms, biases) keep theirs.
        sparse: Whether to store pruned coefficients as a bit mask and values.

    Raises:
        ValueError: If `model` has no adapters, `path` is no `.safetensors`, or values overflow in `dtype`.
        RuntimeError: If its base changed since the adapters were added.
    """
    model, path = unwrapped(model), Path(path)
    if not is_adapted(model):
        raise ValueError(
            f'{type(model).__name__} has no adapters: call timm_lc.add_adapters, or save the whole network'
        )
    if path.suffix != '.safetensors':
        raise ValueError(f"`path` must end in .safetensors, by which loading knows the format, got '{path}'")
    changed = changed_layers(model)
    if changed:
        raise RuntimeError(
            f'the base changed since adapters were added: layer `{changed[0]}` is not what it was, and {path.name} '
            'would belong to no base'
        )
    tensors = stored_tensors(model, sparse=sparse, dtype=dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.saving-') as staged:
        written = Path(staged, path.name)
        write_tensors(tensors, written, file_metadata(tensors, model))
        return written.replace(path)


def load_adapter(model: nn.Module, path: str | Path) -> nn.Module:
    """Give a base network the adapters of a file, in place; return `model`.

    Adapters that it has are replaced; those of the same ranks without building anything.

    Args:
        model: The base, with adapters or without. A classifier of another number of classes is replaced.
        path: A file of `save_adapter`, or the `model.safetensors` of a network that was built with `adapter=`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or no adapter, or of another base: the message tells in what they differ.
    """
    network, path = unwrapped(model), Path(path)
    file = read_adapter(path)
    _check_base(network, file, path)
    if (unlike := _unlike(network, file)) and not _can_reset(network, file):
        raise ValueError(
            f'cannot load {path}: its `{unlike[0]}` is {tuple(file.tensors[unlike[0]].shape)}, that of the base '
            f'{tuple(network.get_parameter(unlike[0]).shape)}: give it a classifier of as many classes first'
        )
    if not (is_adapted(network) and _shapes(network) == {name: r.shape for name, r in file.records.items()}
            and network.adaptation.norms == file.norms):  # fmt: skip
        if is_adapted(network):
            remove_adapters(network)
        adapt(network, file.records, norms=file.norms)
    _fit_classifier(network, file)
    if any(key.endswith('.mask') for key in file.tensors):
        add_unpacking(network)
    try:
        network.load_state_dict(file.tensors)
    except RuntimeError as error:
        raise ValueError(f'cannot load {path}: {error}') from error
    network.adaptation.settings = None
    return model


def load_adapted(path: str | Path, **model_kwargs: Any) -> nn.Module:
    """Build the network of an adapter's file by its `lc_` name: its base, with the adapter, in eval mode.

    Args:
        path: As in `load_adapter`.
        **model_kwargs: Arguments of `timm.create_model`; they win over those that the file tells, as `base` may.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, does not tell its base, or belongs to another.
    """
    file = read_adapter(Path(path))
    if file.architecture is None or not (file.base or 'base' in model_kwargs):
        raise ValueError(f'{path} does not tell its base: build it, and call timm_lc.load_adapter')
    model = timm.create_model(f'{PREFIX}{file.architecture}', **{**_arguments(file), **model_kwargs})
    return load_adapter(model, path).eval()


def is_adapter_file(path: Path) -> bool:
    """Return whether `path` is a file of `save_adapter`, not the weights beside a `config.json`."""
    if not path.is_file() or path.suffix != '.safetensors' or path.with_name(CONFIG).is_file():
        return False
    with open_safetensors(path) as opened:
        return ADAPTER in (opened.metadata() or {})


def read_adapter(path: Path) -> AdapterFile:
    """Read a file of `save_adapter`, verified.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or no adapter.
    """
    tensors = read_checkpoint(path)
    about: dict[str, Any] = {}
    if path.suffix == '.safetensors':
        with open_safetensors(path) as opened:
            about = json.loads((opened.metadata() or {}).get(ADAPTER, '{}'))
    if not about or FINGERPRINT not in tensors:
        raise ValueError(f'{path} is not an adapter: timm_lc.save_adapter did not write it')
    return AdapterFile(tensors, about['base'], about['architecture'], about['norms'], about['num_classes'])


def _arguments(file: AdapterFile) -> dict[str, Any]:
    """Return the arguments of `timm.create_model` that build the adapted network of a file, defaults left out."""
    records = list(file.records.values())
    ranks = [record.shape[0] // record.groups for record in records]  # `load_adapter` then has them exactly
    kernels = {max(record.shape[2:]) > 1 for record in records}
    layers = 'all' if len(kernels) == 2 else 'spatial' if True in kernels else 'pointwise'
    given = {'seed': records[0].seed, 'gain': records[0].gain, 'adapter_layers': layers, 'adapter_norms': file.norms}
    defaults = {'seed': 0, 'gain': ADAPTER_GAIN, 'adapter_layers': 'spatial', 'adapter_norms': True}
    chosen = {key: value for key, value in given.items() if value != defaults[key]}
    return {'adapter': max(ranks), 'base': file.base, 'num_classes': file.num_classes, **chosen}


def _check_base(model: nn.Module, file: AdapterFile, path: Path) -> None:
    """Raise `ValueError` if `model` is not the base of the file."""
    base = recorded_base(model) if is_adapted(model) else fingerprint_base(model)
    difference = describe_difference(base, file.tensors[FINGERPRINT])
    if difference:
        hint = ': load it before the base is cast to fewer bits' if rounded_layers(model) else ''
        raise ValueError(f'{path} is an adapter of another base, {file.base}: {difference}{hint}')


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, AdaptedConv2d)}
    return {name: tuple(module.spatial.weight.shape) for name, module in adapted.items()}


def _fit_classifier(model: Any, file: AdapterFile) -> None:
    """Give `model` a new classifier, in place, if that of the file has another number of classes."""
    has_none = not any(isinstance(getattr(head, 'weight', None), Tensor) for head in classifiers(model).values())
    if (has_none or _unlike(model, file)) and _can_reset(model, file):
        model.reset_classifier(file.num_classes)


def _can_reset(model: nn.Module, file: AdapterFile) -> bool:
    return bool(file.num_classes) and hasattr(model, 'reset_classifier')


def _unlike(model: nn.Module, file: AdapterFile) -> list[str]:
    """Return the weights of classifiers, by name, that have another shape in the file."""
    present = {f'{name}.weight': getattr(head, 'weight', None) for name, head in classifiers(model).items()}
    both = {key: weight for key, weight in present.items() if isinstance(weight, Tensor) and key in file.tensors}
    return [key for key, weight in both.items() if weight.shape != file.tensors[key].shape]
