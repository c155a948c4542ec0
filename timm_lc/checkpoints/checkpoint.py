"""Checkpoints: safetensors beside a config that `timm.create_model('local-dir:...')` reads; timm's own are read too.

Nothing here runs code from a file: safetensors holds tensors only, and timm's `.pth.tar` is read with `weights_only`.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.data import resolve_data_config
from timm.models import clean_state_dict
from timm.utils import natural_key
from torch import Tensor, nn

from timm_lc._timm import name_local_weights, replace_arguments, save_config
from timm_lc.analysis.counting import count_parameters
from timm_lc.arguments import unwrapped
from timm_lc.checkpoints.card import MARKER, model_card
from timm_lc.checkpoints.facts import Facts
from timm_lc.checkpoints.reading import ADAPTER, checksums, read_checkpoint
from timm_lc.filters import VERSION
from timm_lc.layers.changes import is_stored
from timm_lc.layers.frozen import is_frozen
from timm_lc.layers.norm_packing import pack_norms
from timm_lc.layers.packing import pack_pointwise
from timm_lc.layers.recorded import RECORD
from timm_lc.layers.verify import verify
from timm_lc.naming import architecture_of, class_names, has_lc_name, name_classes, stock_name
from timm_lc.transforms.adapt import is_adapted, learned_norms
from timm_lc.transforms.fingerprint import FINGERPRINT

__all__ = [
    'file_metadata', 'is_foreign_card', 'load_model', 'save_pretrained', 'stored_tensors',
    'stored_weights', 'train_arguments', 'weights_file', 'write_tensors',
]  # fmt: skip

WEIGHTS, CONFIG, CARD = 'model.safetensors', 'config.json', 'README.md'


def save_pretrained(
    model: nn.Module,
    directory: str | Path,
    *,
    sparse: bool = False,
    dtype: torch.dtype | None = None,
    model_args: Mapping[str, Any] | None = None,
    facts: Facts | None = None,
    card: str | None = None,
) -> Path:
    """Write `model.safetensors`, `config.json` and a model card; timm builds `model` again, with the same outputs.

    The weights are the learned ones; filters are drawn again from their records. The files appear only when whole.

    Args:
        model: A network from `timm.create_model`, or what DistributedDataParallel or `torch.compile` made of it.
        directory: Folder to write to; made if need be.
        sparse: Whether to store pruned pointwise weights as a bit mask and values; only `lc_` models load this form.
        dtype: Floating type to store matrices and filters in; vectors (norms, biases) keep theirs.
        model_args: Arguments of `timm.create_model` to build `model` again, beside those that timm has recorded.
        facts: What config and model card say of the training.
        card: Text of README.md; None for `model_card(model, ...)`, '' for no file. One that somebody else wrote stays.

    Returns:
        `directory`.

    Raises:
        ValueError: If its architecture and arguments would not build `model` again, or values overflow in `dtype`.

    Example:
        >>> import tempfile, timm, timm_lc
        >>> model = timm.create_model('lc_resnet20_16x1', seed=7)
        >>> folder = timm_lc.save_pretrained(model, tempfile.mkdtemp())
        >>> model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    """
    directory, model = Path(directory), unwrapped(model)
    verify(model)  # so that the state dict knows of filters that were overwritten behind the version counters
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix='.saving-') as staged:
        _write_config(model, Path(staged, CONFIG), model_args, facts or Facts())
        _check_rebuilds(model, Path(staged))
        tensors = stored_tensors(model, sparse=sparse, dtype=dtype)
        write_tensors(tensors, Path(staged, WEIGHTS), file_metadata(tensors, model))
        if card is None:
            card = model_card(model, facts=facts, stored=stored_weights(model, sparse=sparse, dtype=dtype))
        Path(staged, CARD).write_text(card, encoding='utf-8')
        keeps_card = card == '' or is_foreign_card(directory / CARD)
        for name in (WEIGHTS, CONFIG) if keeps_card else (WEIGHTS, CONFIG, CARD):
            Path(staged, name).replace(directory / name)
    return directory


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file; what a full disk makes of that is an `OSError`."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f'cannot write {path}: {error}') from error
    path.chmod(mode)  # safetensors lets the owner alone read it


def stored_weights(model: nn.Module, *, sparse: bool = False, dtype: torch.dtype | None = None) -> int:
    """Return the number of weights in the file that `save_pretrained` writes: no filters of seeds, no packed zeros."""
    total, whole = count_parameters(model).stored, model.state_dict()
    packed = stored_tensors(model, sparse=True, dtype=dtype) if sparse else {}
    values = {name: tensor for name, tensor in packed.items() if name not in whole and name.endswith('.values')}
    return total - sum(whole[name.removesuffix('.values')].numel() - tensor.numel() for name, tensor in values.items())


def load_model(path: str | Path, name: str | None = None, **model_kwargs: Any) -> nn.Module:
    """Build the network that a checkpoint holds, with its weights, in eval mode.

    Args:
        path: A folder of `save_pretrained`, the folder of a train.py run (its best checkpoint, else its last), or one
            checkpoint: `.safetensors` or timm's `.pth.tar`. The moving average of weights is taken if there is one.
        name: Architecture, for a file that does not tell it.
        **model_kwargs: Arguments of `timm.create_model`; they win over those that the checkpoint tells.

    Raises:
        FileNotFoundError: If there is no checkpoint at `path`.
        ValueError: If it is not readable, does not tell its architecture, or does not fit it.
    """
    path = weights_file(Path(path))
    checkpoint = read_checkpoint(path)
    _warn_of_values(path, _weights(checkpoint))
    try:
        if name is None and path.name == WEIGHTS and path.with_name(CONFIG).is_file():
            return _load_folder(path, model_kwargs)
        args = train_arguments(path, checkpoint)
        name = name or args.get('model')
        if name is None:
            raise ValueError(f'{path} does not tell its architecture: give its name, `--model` in a command')
        model = timm.create_model(name, **{**_arguments(args), **model_kwargs})
        model.load_state_dict(_weights(checkpoint))
    except RuntimeError as error:
        raise ValueError(f'cannot load {path}: {error}') from error
    if args:  # the run's data config; what timm recommends for testing is of its own weights
        data_config = {**resolve_data_config(args, model=model), 'test_input_size': None, 'test_crop_pct': None}
        model.pretrained_cfg = {**model.pretrained_cfg, **data_config}
        name_classes(model, run_classes(args))
    return model.eval()


def _warn_of_values(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Warn of values that are not finite: a training that diverged leaves them."""
    tensors = sorted((name, value) for name, value in weights.items() if isinstance(value, Tensor))
    names = [name for name, tensor in tensors if tensor.is_floating_point() and not tensor.float().isfinite().all()]
    if names:
        others = f' and {len(names) - 1} more tensors hold' if len(names) > 1 else ' holds'
        warnings.warn(f'{path}: {names[0]!r}{others} values that are not finite', stacklevel=3)


def _load_folder(path: Path, model_kwargs: dict[str, Any]) -> nn.Module:
    """Build the network of the config beside the weights `path`."""
    config = path.with_name(CONFIG)
    try:
        json.loads(config.read_text(encoding='utf-8'))['architecture']
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{config} does not tell the architecture of a timm model: {error}') from error
    weights = name_local_weights({'source': 'local-dir', 'file': str(path.parent)})
    return timm.create_model(
        f'local-dir:{path.parent}', pretrained=True, pretrained_cfg_overlay=weights, **model_kwargs
    ).eval()


def file_metadata(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, str]:
    """Return what a file says beside its tensors: a CRC-32 of each, and what an adapter's base is.

    It is one entry: safetensors would shuffle several.
    """
    crc32 = checksums(tensors)
    if not is_adapted(model):
        return {'crc32': json.dumps(crc32)}
    adaptation = model.adaptation
    architecture = stock_name(architecture_of(model)) if hasattr(model, 'pretrained_cfg') else None
    about = {'base': adaptation.base, 'architecture': architecture, 'norms': adaptation.norms}
    about |= {'num_classes': getattr(model, 'num_classes', None), 'crc32': crc32}
    return {ADAPTER: json.dumps(about, separators=(',', ':'))}


def weights_file(path: Path) -> Path:
    """Return the checkpoint that a folder stands for; a file stands for itself.

    Raises:
        FileNotFoundError: If the folder has none.
    """
    if not path.is_dir():
        return path
    for name in (WEIGHTS, 'model_best.pth.tar', 'last.pth.tar'):
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f'no {WEIGHTS}, model_best.pth.tar or last.pth.tar in {path}')


def train_arguments(path: Path, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the train.py run that wrote a checkpoint, from it and from args.yaml beside it, or {}.

    Raises:
        ValueError: If args.yaml is not one of train.py's.
    """
    args, beside = checkpoint.get('args'), path.with_name('args.yaml')
    written = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}
    if not beside.is_file():
        return dict(written)
    try:
        arguments = yaml.safe_load(beside.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'cannot read {beside}: {" ".join(str(error).split())}') from error
    if not isinstance(arguments, dict):
        raise ValueError(f'{beside} holds no arguments of train.py')
    return {**arguments, **written}


def run_classes(arguments: Mapping[str, Any]) -> list[str]:
    """Return the classes of a train.py run on a folder of images, in timm's order; [] if the folder is not there."""
    if not arguments.get('data_dir') or arguments.get('dataset') or arguments.get('class_map'):
        return []
    root = Path(arguments['data_dir'])
    split = next(
        (root / name for name in (arguments.get('train_split') or 'train', '') if (root / name).is_dir()), root
    )
    return sorted((path.name for path in split.iterdir() if path.is_dir()), key=natural_key) if split.is_dir() else []


def is_foreign_card(path: Path) -> bool:
    """Return whether there is a model card that somebody else wrote or changed."""
    return path.is_file() and MARKER not in path.read_text(encoding='utf-8', errors='replace')


def _write_config(model: nn.Module, path: Path, model_args: Mapping[str, Any] | None, facts: Facts) -> None:
    """Write timm's own config, and beside it what a reader may want to know of the filters."""
    architecture_of(model)  # before anything is written
    if not hasattr(model, 'num_classes'):
        raise ValueError(f'`model` is a {type(model).__name__}, a part of a network: save the whole network')
    frozen = {name: module for name, module in model.named_modules() if is_frozen(module)}
    records = [module.filter_record for module in frozen.values()]
    about = {
        'generator': VERSION,
        'seeds': sorted({module.filter_record.seed for module in frozen.values() if not is_stored(module)}),
        'shared': any(record.is_shared for record in records),
        'parameters': count_parameters(model)._asdict(),
    }
    if facts.public():
        about['training'] = facts.public()
    if has_lc_name(model) and not is_adapted(model):
        kept = ' '.join(name for name, module in frozen.items() if is_stored(module))
        replace_arguments(model, ('kept',), {'kept': kept} if kept else {})
    config = {'timm_lc': about, 'label_names': class_names(model)}
    save_config(model, path, model_config=config, model_args=dict(model_args or {}))


def _check_rebuilds(model: nn.Module, directory: Path) -> None:
    """Refuse a network that was changed since timm created it, which the saved name would not build.

    Kept filters are in the file and need not be in the network that it is loaded into: that adopts their record.
    """
    config = json.loads((directory / CONFIG).read_text())
    with torch.device('meta'):
        rebuilt = timm.create_model(f'local-dir:{directory}').state_dict()
    saved = model.state_dict()
    kept = {f'{name}.weight' for name, module in model.named_modules() if is_frozen(module)}
    differing = [
        key
        for key in {**saved, **rebuilt}
        if key not in kept and (key not in saved or key not in rebuilt or saved[key].shape != rebuilt[key].shape)
    ]
    if differing:
        call = f'timm.create_model({config["architecture"]!r}, **{config.get("model_args", {})})'
        raise ValueError(
            f'`model` is not what {call} builds: {differing[0]!r} differs. '
            'Build it by its lc_ name, give `model_args`, or save its state dict'
        )


def stored_tensors(model: nn.Module, *, sparse: bool, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return the state dict as a file stores it: on the CPU, contiguous, cast and packed."""
    if sparse and not (has_lc_name(model) or is_adapted(model)):
        name = architecture_of(model)
        raise ValueError(f'`sparse` is for lc_ networks: {name!r}, which is not one, loads ordinary weights only')
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f'`dtype` must be a floating type, got {dtype}')
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    for name, tensor in tensors.items():
        if dtype is not None and tensor.is_floating_point() and tensor.ndim > 1:
            tensors[name] = tensor.to(dtype)
            if not tensors[name].float().isfinite().all() and tensor.isfinite().all():
                raise ValueError(f'{name!r} overflows in `dtype` {dtype}: its largest value is {tensor.abs().max():g}')
    if is_adapted(model):
        tensors = pack_norms(tensors, learned_norms(model))
        small = (FINGERPRINT, *(key for key in tensors if key.endswith(f'.{RECORD}')))
        tensors |= {key: tensors[key].to(torch.uint8) for key in small}
    return pack_pointwise(tensors, model) if sparse else tensors


def _arguments(args: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `timm.create_model` among those of train.py."""
    channels = (args.get('input_size') or (None,))[0] if args.get('in_chans') is None else args['in_chans']
    given = {'num_classes': args.get('num_classes'), 'in_chans': channels, 'global_pool': args.get('gp')}
    given |= {name: args.get(name) for name in ('bn_momentum', 'bn_eps')}
    return {**{key: value for key, value in given.items() if value is not None}, **args.get('model_kwargs', {})}


def _weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    keys = ('state_dict_ema', 'model_ema', 'state_dict', 'model')
    return clean_state_dict(next((checkpoint[key] for key in keys if checkpoint.get(key) is not None), checkpoint))
