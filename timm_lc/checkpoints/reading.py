"""What a checkpoint's file holds, verified: safetensors, or timm's `.pth.tar`, of which no code runs."""

import argparse
import contextlib
import json
import pickle
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

__all__ = ['ADAPTER', 'checksums', 'open_safetensors', 'read_checkpoint']

ADAPTER = 'adapter'  # entry of a safetensors file's metadata


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a checkpoint file holds: a state dict, or what train.py saves around one. Runs no code of the file.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is damaged, or holds anything but tensors and plain values.
    """
    if not path.is_file():
        raise FileNotFoundError(f'no checkpoint at {path}')
    with _readable(path):
        if path.suffix == '.safetensors':
            return _read_safetensors(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location='cpu', weights_only=True)
    if not isinstance(loaded, dict):
        raise ValueError(f'{path} is not a checkpoint: it holds a {type(loaded).__name__}')
    return loaded


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file as `safe_open` does; what is wrong with it is said as `read_checkpoint` says it."""
    with _readable(path), safe_open(path, framework='pt') as file:
        yield file


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever is raised inside into a `ValueError` that names the file."""
    try:
        yield
    except pickle.UnpicklingError as error:
        reason = 'it is damaged, or holds more than tensors and plain values, which could run code'
        raise ValueError(f'{path} is not a readable checkpoint: {reason}') from error
    except Exception as error:  # a damaged pickle can raise anything
        said = ' '.join(filter(None, [type(error).__name__, str(error).partition('\n')[0]]))
        reason = f'it is damaged, or a file of another kind ({said})'
        raise ValueError(f'{path} is not a readable checkpoint: {reason}') from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, verified if `save_pretrained` wrote it."""
    with safe_open(path, framework='pt') as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
        metadata = file.metadata() or {}
    expected = json.loads(metadata.get('crc32', '{}')) or json.loads(metadata.get(ADAPTER, '{}')).get('crc32', {})
    found = checksums(tensors)
    damaged = [name for name in {**expected, **found} if expected and expected.get(name) != found.get(name)]
    if damaged:
        raise ValueError(f'{damaged[0]!r} does not match its checksum')
    return tensors


def checksums(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the CRC-32 of each tensor, in hexadecimal, by name."""
    return {name: f'{zlib.crc32(t.flatten().view(torch.uint8).numpy()):08x}' for name, t in sorted(tensors.items())}
