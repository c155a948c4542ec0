"""A queue: a file whose lines are IDs and arguments of `timm-lc reproduce`."""

import argparse
import contextlib
import shlex
from collections.abc import Callable, Iterator
from typing import NoReturn

__all__ = ['naming_place', 'read_queue']


def read_queue(
    args: argparse.Namespace, add_arguments: Callable[[argparse.ArgumentParser], None]
) -> list[tuple[str, argparse.Namespace]]:
    """Return (place, arguments) of each line, which win over those of the command; '#' begins a comment.

    Raises:
        ValueError: If the file is not there or not text, or a line is not understood, which is named.
    """
    if args.experiments:
        raise ValueError(f'give IDs or `--queue`, not both; got {" ".join(args.experiments)}')
    if not args.queue.is_file():
        raise ValueError(f'`--queue` must be a file of IDs and arguments, got {args.queue}, which is not there')
    try:
        lines = args.queue.read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f'`--queue` must be a file of UTF-8 text, got {args.queue}: {error}') from error
    parser = _LineParser(add_help=False, allow_abbrev=False)
    add_arguments(parser)
    queue = []
    for number, text in enumerate(lines, 1):
        place = f'{args.queue}, line {number}'
        with naming_place(place):
            if words := shlex.split(text, comments=True):
                queue.append((place, _read_line(parser, words, args)))
    return queue


@contextlib.contextmanager
def naming_place(place: str) -> Iterator[None]:
    """Name the place, unless it is '', in the errors of what is done meanwhile."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f'{place}: {error}' if place else str(error)) from error


class _LineParser(argparse.ArgumentParser):
    """Raises what is wrong, in place of leaving."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _read_line(parser: _LineParser, words: list[str], args: argparse.Namespace) -> argparse.Namespace:
    given = parser.parse_args(words, argparse.Namespace(**{**vars(args), 'queue': None, 'adopt': []}))
    if given.queue or given.adopt or not given.experiments:
        raise ValueError(f'must hold IDs and arguments, got {shlex.join(words)}')
    return given
