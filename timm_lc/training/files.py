"""Files that an interruption leaves whole, and that several processes may write: text, JSON, JSON lines, locks."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

__all__ = ['append_line', 'lock', 'read_json', 'read_lines', 'whole', 'write_lines', 'write_text']


def lock(path: Path, deadline: float = math.inf) -> FileLock:
    """Return a lock of a file or folder, to hold in a `with` statement while it is read and written.

    Args:
        path: Beside it the lock's file stays; its folder is made if need be.
        deadline: Time of `time.monotonic` after which to wait no longer and raise `filelock.Timeout`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    timeout = -1 if math.isinf(deadline) else max(0.0, deadline - time.monotonic())
    return FileLock(path.with_name(f'.{path.name}.lock'), timeout)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield where to write a file, of the same suffix, that appears only when whole; make its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.stem}.{os.getpid()}.partial{path.suffix}')
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file that appears only when whole, and its folder if need be."""
    with whole(path) as partial:
        partial.write_text(text, encoding='utf-8')


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write a file of JSON lines that appears only when whole."""
    write_text(path, ''.join(json.dumps(line) + '\n' for line in lines))


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append a JSON line, and wait until it is on the disk."""
    with path.open('a', encoding='utf-8') as file:
        file.write(json.dumps(line) + '\n')
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} if there is none.

    Raises:
        ValueError: If it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} is damaged: {error}') from error
    if not isinstance(found, dict):
        raise ValueError(f'{path} is damaged: it must hold an object, got {type(found).__name__}')
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file, [] if there is none; a last line that was cut off is left out.

    Raises:
        ValueError: If it is damaged otherwise.
    """
    try:
        lines = path.read_text(encoding='utf-8').split('\n') if path.is_file() else ['']
    except ValueError as error:
        raise ValueError(f'{path} is damaged: {error}') from error
    if not _is_whole(lines[-1]):
        lines.pop()
    return [_parse(line, f'{path} is damaged: line {number}') for number, line in enumerate(lines, 1)]


def _is_whole(line: str) -> bool:
    with contextlib.suppress(json.JSONDecodeError):
        json.loads(line)
        return True
    return False


def _parse(line: str, place: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f'{place}, column {error.colno}: {error.msg}') from error
    if not isinstance(found, dict):
        raise ValueError(f'{place} must hold an object, got {type(found).__name__}')
    return found
