"""What the implicit LC-Block says about the paper, as experiments of ours: ids `theory1` to `theory7` (docs/theory.md).

Frozen networks run in the implicit form, the same trajectory under SGD at the plain network's cost; learnable ones
have none. The limit of many filters, `filters='expected'`, is a plain network with the learning rate, decay and
initial scale of an LC-Block.
"""

from typing import Any

from timm_lc.paper.experiment import FROZEN, LEARNABLE, PLAIN, Experiment, Value, Variant
from timm_lc.paper.variants import EXPANSION, EXPANSIONS, KERNELS, LEARNS, flat, plain

__all__ = ['THEORY']

EXPLICIT, IMPLICIT, EXPECTED, ORTHOGONAL = 'explicit', 'implicit', 'expected', 'orthogonal'
BEYOND = (256, 512, 1024, 2048, 4096)
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)  # 1e-2 is appendix C's
SHOWN = (8, 128)


def _implicit(series: str, expansion: int, filters: str = 'uniform', *, facet: str = '', **geometry: Any) -> Variant:
    kwargs = {**geometry, 'implicit': True} | ({} if filters == 'uniform' else {'filters': filters})
    if expansion in EXPANSIONS:
        return Variant(series, expansion, f'lc_resnet20_16x{expansion}', kwargs, facet=facet)
    kwargs |= {'depth': 20, 'width': 16, 'expansion': expansion}
    return Variant(series, expansion, 'lc_resnet_cifar', kwargs, facet=facet)


def _by_kernel(expansion: int, kernel_size: int) -> tuple[Variant, Variant, Variant]:
    """Return frozen random, learnable and the limit."""
    facet = f'k = {kernel_size}'
    geometry: dict[str, Any] = {} if kernel_size == 3 else {'kernel_size': kernel_size}
    return (
        _implicit(FROZEN, expansion, facet=facet, **geometry),
        Variant(LEARNABLE, expansion, f'lc_resnet20_16x{expansion}', {**geometry, **LEARNS}, facet=facet),
        _implicit(EXPECTED, expansion, EXPECTED, facet=facet, **geometry),
    )


def _control(expansion: int) -> tuple[Variant, ...]:
    """Return what separates filters from learning rate at an expansion."""
    model, facet = f'lc_resnet20_16x{expansion}', f'E = {expansion}'
    frozen = {'implicit': True}
    return (
        Variant(PLAIN, 'recipe', 'lc_lowres_resnet20', LEARNS, facet=facet),
        Variant(FROZEN, 'recipe', model, frozen, facet=facet),
        Variant(LEARNABLE, 'recipe', model, LEARNS, facet=facet),
        Variant(EXPECTED, 'recipe', model, {**frozen, 'filters': EXPECTED}, facet=facet),
        *(Variant(PLAIN, f'lr {rate:g}', 'lc_lowres_resnet20', LEARNS, facet=facet, lr=rate) for rate in RATES),
        *(Variant(FROZEN, f'lr {rate:g}', model, frozen, facet=facet, lr=rate) for rate in RATES),
    )


THEORY = (
    Experiment(
        'theory1', 'Explicit and implicit LCResNet-20-16x{E} of the same seeds',
        variants=flat(
            (Variant(EXPLICIT, e, f'lc_resnet20_16x{e}', {}), _implicit(IMPLICIT, e)) for e in (1, 8, 64)
        ),
        x_label=EXPANSION, pair=(IMPLICIT, EXPLICIT), measures=('accuracy', 'losses'), kind='losses',
        notes=('In float64 the two differ by rounding alone; training amplifies that of float32.',),
    ),
    Experiment(
        'theory2', 'Figure 1 continued to E = 4,096, and the limit of many filters',
        variants=flat(
            (_implicit(FROZEN, e), _implicit(EXPECTED, e, EXPECTED), plain(e)) for e in (*EXPANSIONS, *BEYOND)
        ),
        x_label=EXPANSION, pair=(FROZEN, EXPECTED),
    ),
    Experiment(
        'theory3', 'The control: filters, or learning rate?', variants=flat(_control(e) for e in SHOWN),
        x_label='learning rate', pair=(FROZEN, PLAIN), kind='', log=False,
        notes=(
            'The recipe\'s rate is 1e-2. "expected" is the plain network with the learning rate c lr, the decay wd / c '
            "and the initial scale 1 / sqrt(3) in each LC-Block's place, c = E C_out / (3 C_in k^2).",
        ),
    ),
    Experiment(
        'theory4', 'Span without conditioning: orthonormal filters',
        variants=flat(
            (_implicit(FROZEN, e), _implicit(ORTHOGONAL, e, ORTHOGONAL), _implicit(EXPECTED, e, EXPECTED))
            for e in (1, 2, 4, 8, 16, 128)
        ),
        x_label=EXPANSION, pair=(ORTHOGONAL, FROZEN),
        notes=('With orthonormal rows G is a multiple of a projector, at full rank of the identity.',),
    ),
    Experiment(
        'theory5', 'Rank and condition of G in the last stage of LCResNet-20-16x{E}',
        variants=tuple(_by_kernel(e, k)[0] for k in KERNELS for e in EXPANSIONS),
        x_label=EXPANSION, measures=(), untrained=('conditioning',), kind='', pair=None,
        values=(
            Value('reach', 'reached share of the filters'), Value('log_condition', 'log10 of the condition number'),
            Value('smallest', 'smallest E that reaches all', digits=0),
        ),
        notes=('Of the last of its 64-to-64 convolutions; the measured gaps are those of theory7.',),
    ),
    Experiment(
        'theory6', 'How fast filters turn: c / |W_eff|^2, the geometric mean over spatial layers',
        variants=tuple(v for e in SHOWN for v in _control(e) if v.x == 'recipe' and v.series != LEARNABLE),
        x_label='learning rate', measures=('rate',), untrained=('rate',), kind='', pair=None, log=False,
        values=(Value('rate_at_start', 'at the start', digits=3), Value('rate', 'at the end', digits=3)),
        notes=(
            'In front of a norm a step of SGD turns a filter by the learning rate times c / |W_eff|^2; in the plain '
            'network c is 1.',
        ),
    ),
    Experiment(
        'theory7', 'The gap to learnable filters and to none, over the kernel size',
        variants=flat(_by_kernel(e, k) for k in KERNELS for e in (8, 32, 128)),
        x_label=EXPANSION, pair=(FROZEN, EXPECTED), kind='', log=False,
        notes=(
            'Reach and condition are those of theory5. "expected" starts like frozen random, reaches every filter and '
            'has a condition of 1.',
        ),
    ),
)  # fmt: skip
