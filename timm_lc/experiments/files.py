"""Files that an interruption leaves whole: text that appears at once, and JSON lines."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ['append_line', 'read_lines', 'write_lines', 'write_text']


def write_text(path: Path, text: str) -> None:
    """Write a file that appears only when whole, and its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.partial')
    partial.write_text(text, encoding='utf-8')
    partial.replace(path)


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write a file of JSON lines that appears only when whole."""
    write_text(path, ''.join(json.dumps(line) + '\n' for line in lines))


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append a JSON line, and wait until it is on the disk."""
    with path.open('a', encoding='utf-8') as file:
        file.write(json.dumps(line) + '\n')
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a JSON-lines file, [] if there is none; one cut off by an interruption is left out."""
    text = path.read_text(encoding='utf-8') if path.is_file() else ''
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith('\n')]
