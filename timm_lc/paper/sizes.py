"""What each step of section 4.3 leaves of a network's weights and of its file: `timm-lc info --steps`."""

import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from timm_lc.analysis.counting import count_parameters
from timm_lc.checkpoints.checkpoint import WEIGHTS, save_pretrained
from timm_lc.paper.printed import ROWS, TABLE1, TABLE3
from timm_lc.paper.tables import markdown
from timm_lc.paper.variants import AMOUNT, RECYCLED
from timm_lc.transforms.fold import fold
from timm_lc.transforms.prune import prune_pointwise

__all__ = ['Step', 'measure_steps', 'steps_page']

PRINTED = 'lc_resnet20_16x128'  # the network of tables 1 and 3
LEARNABLE, FROZEN, SHARED, _, _, PRUNED = ROWS  # a penalty changes no size
HALF, FOLDED = '+ float16 values', 'the recycled one, folded'
ARGUMENTS: dict[str, dict[str, Any]] = {
    LEARNABLE: {'freeze_spatial': False, 'share_weights': False},
    FROZEN: {'share_weights': False},
    SHARED: {'share_weights': True},
}
FORMS: dict[str, dict[str, Any]] = {PRUNED: {'sparse': True}, HALF: {'sparse': True, 'dtype': torch.float16}}
MEBI = 2**20


class Step(NamedTuple):
    """A step: numbers of weights, a shared vector counted once, and bytes of `model.safetensors`."""

    title: str
    total: int
    nonzero: int
    learnable: int
    bytes: int


def measure_steps(name: str, **model_kwargs: Any) -> list[Step]:
    """Build a network anew for each step, save it, and count. Nothing is trained, which changes no size.

    Args:
        name: An `lc_` model.
        **model_kwargs: Arguments of `timm.create_model`; those of a step win over them, and all but the first freeze.

    Raises:
        ValueError: If `name` is not an `lc_` model, or has no pointwise convolution to prune.
    """
    if not name.startswith('lc_'):
        raise ValueError(f'the steps are for lc_ models, got {name!r}')
    return [_measure(title, name, model_kwargs) for title in (*ROWS[:4], PRUNED, HALF, FOLDED)]


def steps_page(name: str, **model_kwargs: Any) -> str:
    """Return the steps as Markdown, for the network of the paper's tables beside their figures."""
    steps = measure_steps(name, **model_kwargs)
    options = ' '.join([' --model-kwargs', *(f'{key}={value}' for key, value in model_kwargs.items())])
    lines = [
        f'# Weights and bytes of {name}',
        '',
        f'`timm-lc info {name} --steps{options if model_kwargs else ""}`, with timm {timm.__version__} and torch '
        f'{torch.__version__.partition("+")[0]}. Nothing is trained, which changes no size.',
        '',
        f'Each step is taken after those above it: filters frozen, shared, recycled, {AMOUNT:.0%} of pointwise weights '
        'pruned. Bytes are those of the `model.safetensors` that `save_pretrained` writes: learned weights, statistics '
        "of norms, a record for each layer's filters, a checksum for each tensor.",
    ]
    if name == PRINTED:
        lines += [
            '',
            'The paper (tables 1 and 3; its MB are 2^20 bytes) stores filters and zeros too, and its total of the '
            'pruned network is what is not zero. Its counts of the shared network are illegible in our text of it. '
            'A vector a sixteenth as long, as it is defined there, makes 4.46 M and not the 4.6 M printed.',
        ]
    return '\n'.join([*lines, '', markdown(_table(steps, paper=name == PRINTED)), ''])


def _measure(title: str, name: str, model_kwargs: dict[str, Any]) -> Step:
    model = _build(title, name, model_kwargs)
    counts = count_parameters(model)
    with tempfile.TemporaryDirectory() as folder:
        size = (save_pretrained(model, folder, card='', **FORMS.get(title, {})) / WEIGHTS).stat().st_size
    nonzero = counts.nonzero if title in FORMS else counts.total  # a weight that is drawn as 0 is one
    return Step(title, counts.total, nonzero, counts.learnable, size)


def _build(title: str, name: str, model_kwargs: dict[str, Any]) -> nn.Module:
    """Return the network of a step, the same every time."""
    set_by_steps = ('freeze_spatial', 'recycle', 'shared_length')
    given = {key: value for key, value in model_kwargs.items() if key not in set_by_steps}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, **{**given, **ARGUMENTS.get(title, RECYCLED)})
    if title in FORMS:
        return prune_pointwise(model, AMOUNT)
    return fold(model) if title == FOLDED else model


def _table(steps: Sequence[Step], *, paper: bool) -> list[list[str]]:
    """Return the header and the rows; with `paper`, its figures and our deviation stand beside ours."""
    beside = ['paper', 'deviation'] if paper else []
    rows = [['step', 'total', 'not zero', *beside, 'learnable', *beside, 'bytes', 'MiB', *beside]]
    for step in steps:
        printed = {found.key: found.low for found in (*TABLE1, *TABLE3) if found.x == step.title}
        row = [step.title, f'{step.total:,}', f'{step.nonzero:,}']
        row += _beside(step.nonzero / 1e6, printed.get('nonzero', 0) / 1e6, '.1f', ' M') if paper else []
        row += [f'{step.learnable:,}']
        row += _beside(step.learnable / 1e6, printed.get('learnable', 0) / 1e6, '.1f', ' M') if paper else []
        row += [f'{step.bytes:,}', f'{step.bytes / MEBI:.2f}']
        row += _beside(step.bytes / MEBI, printed.get('checkpoint', 0), '.2f', '') if paper else []
        rows.append(row)
    return rows


def _beside(ours: float, paper: float, form: str, unit: str) -> list[str]:
    return [f'{paper:{form}}{unit}', f'{100 * (ours / paper - 1):+.1f} %'] if paper else ['', '']
