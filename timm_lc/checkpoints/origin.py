"""Where the weights of a network come from, in the words of a model card."""

from timm.models import is_model
from torch import nn

from timm_lc.filters import RECORD_DIGITS
from timm_lc.layers.adapter import AdaptedConv2d
from timm_lc.layers.changes import is_stored
from timm_lc.layers.frozen import is_frozen
from timm_lc.layers.implicit import ImplicitLCConv2d
from timm_lc.layers.lc_conv import LCConv2d
from timm_lc.transforms.adapt import is_adapted

__all__ = ['base_repository', 'origin']


def origin(model: nn.Module, *, is_written_out: bool = False) -> str:
    """Say in plain words which weights of a network never learned, and where they come from.

    Args:
        model: As it was trained.
        is_written_out: Whether the file of the card is another form of it, with every filter in it.
    """
    frozen = [module for module in model.modules() if is_frozen(module)]
    records = [module.filter_record for module in frozen]
    blocks = [module for module in model.modules() if isinstance(module, ImplicitLCConv2d)]
    if is_adapted(model):
        return _adapters(model, is_written_out)
    if not records:
        return _implicit(blocks) if blocks else 'Nothing.'
    text = (
        f'The {len(records)} convolutions with kernels larger than 1x1 keep the filters that they began with. '
        '1x1 convolutions, norms, biases and the classifier learned.'
    )
    if any(isinstance(module, LCConv2d) for module in model.modules()):
        text += (
            ' Each spatial convolution is an LC-Block (section 4.2 of the paper): random filters, of which a 1x1 '
            'convolution learned the linear combinations (LC) that act as filters.'
        )
    if any(record.is_shared for record in records):
        text += ' The filters of all layers are slices of one random vector (section 4.3 of the paper).'
    if any(record.set_name == 'orthogonal' for record in records):
        text += ' The random filters were made orthonormal.'
    seeds = sorted({module.filter_record.seed for module in frozen if not is_stored(module)})
    if is_written_out:
        text += ' So it was in training; in this form every filter is an ordinary weight of the file.'
    elif seeds:
        text += (
            f' The filters are not in the file: loading draws them again, from seed {", ".join(map(str, seeds))} and a '
            f'record of {RECORD_DIGITS} hexadecimal digits a layer, and verifies their checksum.'
        )
    return text


def base_repository(model: nn.Module) -> str | None:
    """Return the repository on the Hub of an adapted network's base, if it has one."""
    base = getattr(getattr(model, 'adaptation', None), 'base', None) or ''
    if base.startswith(('hf-hub:', 'hf_hub:')):
        return base.partition(':')[2].partition('@')[0]
    return f'timm/{base}' if '.' in base and is_model(base.partition('.')[0]) else None


def _implicit(blocks: list[ImplicitLCConv2d]) -> str:
    """Say what implicit LC-Blocks learned, and what of it was random."""
    seeds = ', '.join(map(str, sorted({block.filter_record.seed for block in blocks})))
    return (
        f'No weight of the file. The {len(blocks)} convolutions with kernels larger than 1x1 are implicit LC-Blocks '
        '(section 4.2 of the paper): each learned its own filters as the combinations of random ones, its gradient '
        f'multiplied by G = W^T W of random filters W that seed {seeds} gives.'
    )


def _adapters(model: nn.Module, is_written_out: bool) -> str:
    """Say what adapters learned, and of what base."""
    adapted = [module for module in model.modules() if isinstance(module, AdaptedConv2d)]
    seeds = ', '.join(map(str, sorted({module.spatial.filter_record.seed for module in adapted})))
    base = getattr(getattr(model, 'adaptation', None), 'base', None) or ''
    is_public = base.startswith(('hf-hub:', 'hf_hub:')) or not {'/', ':'} & set(base)
    named = f' `{base}`' if base and is_public else ''  # a path is of the machine that trained it
    text = (
        f'The base{named}, a trained network. To each of {len(adapted)} of its convolutions a learned combination of '
        f'random filters was added (seed {seeds}); that, norms and the classifier are what learned.'
    )
    if is_written_out:
        return f'{text} In this form the sums are ordinary weights of the file.'
    return f'{text} Neither base nor random filters are in the file: loading needs the base, and verifies both.'
