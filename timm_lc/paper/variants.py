"""The axes that figures of both versions of the paper share, and the networks along them."""

from collections.abc import Iterable
from typing import Any

from timm_lc.paper.experiment import FROZEN, LEARNABLE, PLAIN, Variant

__all__ = [
    'AMOUNT', 'BY_EXPANSION', 'BY_KERNEL', 'DEPTHS', 'EXPANSION', 'EXPANSIONS', 'IMPLICIT', 'KERNELS', 'LEARNS',
    'RECYCLED', 'WIDTHS', 'both', 'flat', 'plain',
]  # fmt: skip

EXPANSION = 'LC expansion E'  # the label of most axes
EXPANSIONS = tuple(1 << power for power in range(8))
WIDTHS, DEPTHS, KERNELS = (16, 32, 64, 128), (20, 32, 44, 56, 110, 260), (3, 5, 7, 9)
LEARNS = {'freeze_spatial': False}
IMPLICIT = {'implicit': True}
AMOUNT, RECYCLED = 0.7, {'share_weights': True, 'recycle': 16}  # table 1's pruned share, and its shorter vector


def both(x: int | str, model: str, /, facet: str = '', **model_kwargs: Any) -> tuple[Variant, Variant]:
    """Return the frozen random network and the learnable one from the same filters."""
    return (
        Variant(FROZEN, x, model, model_kwargs, facet=facet),
        Variant(LEARNABLE, x, model, {**model_kwargs, **LEARNS}, facet=facet),
    )


def plain(x: int | str, facet: str = '', **geometry: Any) -> Variant:
    """Return the network without LC-Blocks that learns all, ResNet-20-16 with 3x3 filters unless `geometry` says."""
    if not geometry:
        return Variant(PLAIN, x, 'lc_lowres_resnet20', LEARNS, facet=facet)
    return Variant(PLAIN, x, 'lc_resnet_cifar', {**geometry, **LEARNS}, facet=facet)


def flat(groups: Iterable[tuple[Variant, ...]]) -> tuple[Variant, ...]:
    """Return the variants of all groups in one tuple."""
    return tuple(variant for group in groups for variant in group)


def _three(expansion: int, facet: str = '', **geometry: Any) -> tuple[Variant, ...]:
    """Return frozen random, learnable and plain; frozen random in the implicit form, the same trajectory for less."""
    model = f'lc_resnet20_16x{expansion}'
    return (
        Variant(FROZEN, expansion, model, {**geometry, **IMPLICIT}, facet=facet),
        Variant(LEARNABLE, expansion, model, {**geometry, **LEARNS}, facet=facet),
        plain(expansion, facet, **geometry),
    )


BY_EXPANSION = flat(map(_three, EXPANSIONS))
BY_KERNEL = flat(_three(e, f'k = {k}', **({} if k == 3 else {'kernel_size': k})) for k in KERNELS for e in EXPANSIONS)
