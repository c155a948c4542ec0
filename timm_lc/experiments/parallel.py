"""Several runs at once, each in a process of its own."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

__all__ = ['in_parallel']


def in_parallel(function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]], jobs: int) -> Iterator[Any]:
    """Yield `function(*task)` of each task as it ends, `jobs` at a time; they share the CPU's threads.

    Raises:
        ValueError: If `jobs` is not positive.
    """
    if jobs < 1:
        raise ValueError(f'`jobs` must be a positive integer, got {jobs}')
    if jobs == 1:
        yield from itertools.starmap(function, tasks)
        return
    context = torch.multiprocessing.get_context('spawn')
    with context.Pool(jobs, _prepare, (max(1, torch.get_num_threads() // jobs),)) as pool:
        yield from pool.imap_unordered(_Starred(function), tasks)


class _Starred:
    """A function of a tuple of arguments, which can be pickled."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, task: tuple[Any, ...]) -> Any:
        return self.function(*task)


def _prepare(threads: int) -> None:
    torch.set_num_threads(threads)
    os.environ['TQDM_DISABLE'] = '1'
