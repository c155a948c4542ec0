"""One random vector for all spatial convolutions (section 4.3, appendix D): `share_weights`."""

import math

from torch import nn

from timm_lc.arguments import changeable, check_count
from timm_lc.filters import FilterRecord, check_gain, check_seed
from timm_lc.layers.frozen import filter_shape, share_convolution
from timm_lc.layers.implicit import ImplicitLCConv2d
from timm_lc.layers.shared import SharedFilters
from timm_lc.spatial import FilterFn
from timm_lc.transforms.freeze import settle, targets

__all__ = ['share_weights']


def share_weights(
    model: nn.Module,
    seed: int = 0,
    recycle: int = 1,
    filter_fn: FilterFn | None = None,
    *,
    shared_length: int | None = None,
    gain: float = 1.0,
) -> nn.Module:
    """Let, in place, all spatial convolutions slice their filters from one random vector; return `model`.

    Shared filters are random and frozen: convolutions that still learn are frozen by this. Slices are scaled by
    gain / sqrt(C_in/groups * k_h * k_w) for each layer.

    Args:
        model: Any network with `nn.Conv2d` layers.
        seed: Filter seed in [0, 2**32).
        recycle: r; the vector is r times shorter than the longest slice and repeats, rounded up to whole filters of the
            longest layer (below that to whole k_h x k_w kernels).
        filter_fn: `filter_fn(module, name)` narrows which spatial convolutions share.
        shared_length: Length of the vector, in place of `recycle` (figure 10), rounded up in the same way.
        gain: As in `freeze_spatial`.

    Raises:
        ValueError: If nothing matches or an argument is out of range.
    """
    network = changeable(model)
    matched = targets(network, filter_fn)
    for name, conv in matched:
        if isinstance(conv, ImplicitLCConv2d):
            raise ValueError(f'layer `{name}` is an implicit LC-Block: share_weights before to_implicit')
    check_seed(seed)
    shapes = [filter_shape(conv) for _, conv in matched]
    longest = max(shapes, key=math.prod)
    period = _period(longest, recycle, shared_length)
    like = matched[0][1].weight
    shared = SharedFilters(seed, math.prod(longest), period, device=like.device, dtype=like.dtype)
    records = [FilterRecord(shape, seed, period=period, gain=float(check_gain(gain))) for shape in shapes]
    units = shared.fill()  # once for all: layers of a shape have equal records
    fingerprints = {} if units is None else {record: record.fingerprint_of(units) for record in set(records)}
    for (_, conv), record in zip(matched, records, strict=True):
        share_convolution(conv, record, shared, fingerprints.get(record))
    settle(network)
    return model


def _period(longest: tuple[int, ...], recycle: int, shared_length: int | None) -> int:
    """Return where the vector repeats, 0 if it is as long as the longest slice, of (C_out, C_in/groups, k_h, k_w)."""
    for name, value in (('recycle', recycle), ('shared_length', shared_length)):
        if value is not None:
            check_count(name, value)
    if shared_length is not None and recycle != 1:
        raise ValueError(f'give `recycle` or `shared_length`, not both: got {recycle} and {shared_length}')
    wanted = math.ceil(math.prod(longest) / recycle) if shared_length is None else shared_length
    whole_filter, kernel = math.prod(longest[1:]), math.prod(longest[2:])
    unit = whole_filter if wanted >= whole_filter else kernel
    period = math.ceil(wanted / unit) * unit
    return period if period < math.prod(longest) else 0
