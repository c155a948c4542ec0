"""What is told of a training run: how two of them differ, and what the card of a finished one says."""

import shlex
from collections.abc import Mapping
from typing import Any

from timm_lc.checkpoints.facts import Facts
from timm_lc.training.recipe import Run

__all__ = ['differences', 'run_facts']


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two runs, part by part of their recipes and arguments.

    Example:
        >>> differences({'seed': 0, 'recipe': {'epochs': 5}}, {'seed': 0, 'recipe': {'epochs': 75}})
        ['`epochs` was 5 and is 75']
    """
    found = []
    for key in dict.fromkeys([*now, *then]):
        before, after = then.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after)
        elif before != after:
            found.append(f'`{key}` was {before!r} and is {after!r}')
    return found


def run_facts(run: Run, data: str, metrics: Mapping[str, Any], limit: int | None = None, *, amp: bool) -> Facts:
    """Return what config and card say of a finished run, and the command that trains it again.

    Args:
        run: What was trained.
        data: Name of the images.
        metrics: Its last line of metrics.
        limit: Images of each split that were taken; None is all.
        amp: Whether it was trained under autocast.
    """
    recipe = run.recipe
    options: dict[str, Any] = {'model': run.model, 'data': data, 'epochs': recipe.epochs, 'seed': run.seed}
    options |= {'batch-size': recipe.batch_size, 'lr': recipe.lr} | ({'l1': recipe.l1} if recipe.l1 else {})
    options |= {} if limit is None else {'limit': limit}
    parts = [text for key, value in options.items() for text in (f'--{key}', str(value))]
    parts.append('--amp' if amp else '--no-amp')
    if run.model_kwargs:
        parts += ['--model-kwargs', *(f'{key}={value}' for key, value in run.model_kwargs.items())]
    found = {'epoch': recipe.epochs - 1, 'eval_top1': metrics['accuracy'], 'eval_loss': metrics['validation_loss']}
    return Facts({'dataset': data}, found, command=shlex.join(['timm-lc', 'cifar', *parts]))
