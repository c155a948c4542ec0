"""What a checkpoint's own folder tells of its training and its form."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import torch

from timm_lc.checkpoints.checkpoint import CONFIG, WEIGHTS, train_arguments, weights_file
from timm_lc.checkpoints.facts import Facts
from timm_lc.checkpoints.reading import open_safetensors, read_checkpoint

__all__ = ['read_facts', 'read_form', 'read_summary']


def read_facts(path: str | Path, *, dataset: str | None = None, license: str | None = None) -> Facts:
    """Read what is told of a checkpoint's training, by its config or by the train.py run that it is of.

    Of a run that is its arguments, and its epoch's row of summary.csv.

    Args:
        path: As in `load_model`. Of a run's folder it is the best checkpoint.
        dataset: As in `Facts`; None is what the config says.
        license: As in `Facts`; None is what the config says.

    Raises:
        FileNotFoundError: If there is no checkpoint at `path`.
        ValueError: If it, args.yaml or summary.csv is not readable.
    """
    path = weights_file(Path(path))
    if path.name == WEIGHTS and path.with_name(CONFIG).is_file():
        facts = _read_config(path.with_name(CONFIG))
        return dataclasses.replace(facts, dataset=dataset or facts.dataset, license=license or facts.license)
    checkpoint = read_checkpoint(path)
    arguments = train_arguments(path, checkpoint)
    # with this argument train.py measures the weights, but the checkpoint's moving average is what load_model takes
    unmeasured = arguments.get('model_ema') and arguments.get('model_ema_force_cpu')
    epoch: int = -1 if unmeasured else checkpoint.get('epoch', -1)
    return Facts(arguments, read_summary(path.with_name('summary.csv')).get(epoch, {}), dataset, license)


def read_form(path: str | Path) -> tuple[bool, torch.dtype | None]:
    """Return how a checkpoint is stored, as `sparse` and `dtype` of `save_pretrained`.

    The type is None unless all its matrices are of one half-precision type; a file other than safetensors is whole.

    Raises:
        FileNotFoundError: If there is no checkpoint at `path`.
        ValueError: If it is not readable.
    """
    path = weights_file(Path(path))
    if path.suffix != '.safetensors' or not path.is_file():
        return False, None
    with open_safetensors(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
        sparse = any(name.endswith('.weight.mask') for name in slices)
        types = {
            s.get_dtype() for name, s in slices.items() if len(s.get_shape()) > 1 or name.endswith('.weight.values')
        }
    halves = {'F16': torch.float16, 'BF16': torch.bfloat16}
    return sparse, halves.get(types.pop()) if len(types) == 1 else None


def _read_config(path: Path) -> Facts:
    """Return what `save_pretrained` wrote into config.json."""
    try:
        return Facts(**json.loads(path.read_text(encoding='utf-8')).get('timm_lc', {}).get('training', {}))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'cannot read {path}: {error}') from error


def read_summary(path: Path) -> dict[int, dict[str, float]]:
    """Return the finite values of each epoch in train.py's summary.csv, {} without such a file.

    A run that went on in the same folder wrote its header again, and epochs that it had not saved: the last row counts.

    Raises:
        ValueError: If it is not a summary of train.py's.
    """
    header: list[str] = []
    epochs: dict[int, dict[str, float]] = {}
    if not path.is_file():
        return {}
    try:
        with path.open(newline='', encoding='utf-8') as file:
            for row in csv.reader(file):
                if row[:1] == ['epoch']:
                    header = row
                elif row:
                    values = {key: float(value) for key, value in zip(header, row, strict=True) if value}
                    epochs[int(row[0])] = {key: value for key, value in values.items() if math.isfinite(value)}
    except (ValueError, csv.Error) as error:
        raise ValueError(f"cannot read {path} as train.py's summary: {error}") from error
    return epochs
