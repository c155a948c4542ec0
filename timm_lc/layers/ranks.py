"""All ranks of a distributed run compute with the filters of its first.

DistributedDataParallel is spared the broadcast of filters, so it would not notice that a checkpoint was loaded on
rank 0 alone. In its first step ranks compare their records, a few hundred bytes a layer, and take over rank 0's.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from timm_lc.filters import KEPT, FilterRecord
from timm_lc.layers.bound import BoundMethod
from timm_lc.layers.changes import is_changed, kept_digits
from timm_lc.layers.frozen import adopt, freeze_convolution, remove_hook
from timm_lc.layers.implicit import ImplicitLCConv2d
from timm_lc.layers.recorded import decode, draw, filter_shape, is_frozen
from timm_lc.layers.sliced import present_filters
from timm_lc.layers.verify import restore

__all__ = ['LeftToRanks']


class LeftToRanks(list[str]):
    """Names of tensors that DistributedDataParallel leaves out; as it reads them, `model` will compare its filters."""

    def __init__(self, names: list[str], model: nn.Module) -> None:
        super().__init__(names)
        self.announce = BoundMethod('announce', _announce, model)

    def __iter__(self) -> Iterator[str]:
        if not (distributed.is_available() and distributed.is_initialized()):
            return super().__iter__()
        self.announce()
        return itertools.chain(self[:], [f'_orig_mod.{name}' for name in self[:]])  # so are they called once compiled

    def __reduce__(self) -> tuple:  # the inherited one would iterate
        return LeftToRanks, (self[:], self.announce.owner())


def _announce(model: nn.Module) -> None:
    """Let `model` compare its filters at its next forward."""
    remove_hook(model._forward_pre_hooks, _compare_filters)
    model.register_forward_pre_hook(_compare_filters)


@torch.compiler.disable
def _compare_filters(model: nn.Module, args: Any) -> None:
    """Take over the filters of rank 0, once, where all ranks take part in a forward: one alone would wait for ever."""
    parallel = DistributedDataParallel._active_ddp_module
    if parallel is not None and (torch.is_grad_enabled() or parallel.will_sync_module_buffers()):
        remove_hook(model._forward_pre_hooks, _compare_filters)
        _take_over(model, parallel.process_group)


@torch.no_grad()
def _take_over(model: nn.Module, group: Any) -> None:
    blocks = [module for module in model.modules() if isinstance(module, ImplicitLCConv2d)]
    if blocks:
        first = _broadcast(torch.stack([block.lc_record.float() for block in blocks]), group)
        for block, theirs in zip(blocks, first, strict=True):
            block.adopt(*decode(theirs), block.weight.device)
    frozen = [module for module in model.modules() if is_frozen(module)]
    if not frozen:
        return
    own = torch.stack([(kept_digits(conv) if is_changed(conv) else conv.record).float() for conv in frozen])
    first = _broadcast(own.clone(), group)
    for conv, mine, theirs in zip(frozen, own, first, strict=True):
        record, crc = decode(theirs)
        if record.is_kept:
            _take_weight(conv, group)
        elif not torch.equal(mine, theirs):
            drawn = draw(record, crc)
            adopt(conv, record, None if drawn is None else torch.from_numpy(drawn), crc)
            if is_changed(conv):
                restore(conv)


def _take_weight(conv: nn.Conv2d, group: Any) -> None:
    """Keep the filters of rank 0, which no seed gives."""
    present = present_filters(conv)
    weight = _broadcast(present.clone(memory_format=torch.contiguous_format), group)
    if not torch.equal(weight, present):
        if not conv.filter_record.is_kept:
            freeze_convolution(conv, FilterRecord(filter_shape(conv), filter_set=KEPT))
        conv.weight.copy_(weight)


def _broadcast(tensor: Tensor, group: Any) -> Tensor:
    distributed.broadcast(tensor, distributed.get_global_rank(group, 0), group=group)
    return tensor
