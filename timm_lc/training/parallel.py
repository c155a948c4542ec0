"""Several runs at once, each in a process of its own."""

import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from timm_lc.arguments import check_count

__all__ = ['in_parallel']


def in_parallel(function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]], jobs: int) -> Iterator[Any]:
    """Yield `function(*task)` of each task as it ends, `jobs` at a time; they share the CPU's threads.

    Raises:
        ValueError: If `jobs` is not positive.
        ChildProcessError: If a process dies. Other errors are those of `function`; any of them ends all processes.
    """
    check_count('jobs', jobs)
    if jobs == 1:
        yield from itertools.starmap(function, tasks)
        return
    others = multiprocessing.active_children()  # of the caller
    threads = max(1, torch.get_num_threads() // jobs)
    context = torch.multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(jobs, context, _prepare, (threads,)) as pool:
        try:
            for future in as_completed([pool.submit(function, *task) for task in tasks]):
                yield future.result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                'the process of a run died, perhaps for lack of memory; what was finished is kept, and the same '
                f'command goes on, perhaps with fewer than {jobs} `--jobs`'
            ) from error
        except BaseException:
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
            raise


def _prepare(threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process once its parent was killed, which else would leave it training, and holding its run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
