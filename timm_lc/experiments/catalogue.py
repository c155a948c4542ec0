"""The paper's figures and tables as data: which networks, which measures, and what the paper prints.

Values of the paper are those that its text and tables print, with the place; its pictures are not read off. A gap is
the accuracy of the first series less that of the second, in points of percent.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable
from typing import Any

from timm_lc.experiments.trainer import Recipe, Run

__all__ = ['EXPERIMENTS', 'GAP', 'Experiment', 'Printed', 'Value', 'Variant', 'find']

FROZEN, LEARNABLE, GAP = 'frozen random', 'learnable', 'gap'
EXPANSIONS = tuple(1 << power for power in range(8))
KERNELS = (3, 5, 7, 9)
LEARNS = {'freeze_spatial': False}
SHARED = {'share_weights': True}
RECYCLED = {'share_weights': True, 'recycle': 16}
WIDEST = 'lc_resnet20_16x128'

X = int | float | str


@dataclasses.dataclass(frozen=True)
class Variant:
    """One point of a figure: a network, trained, perhaps pruned.

    Args:
        series: Legend.
        x: Place on the axis, or row of a table.
        model: Registered name.
        model_kwargs: Its arguments.
        l1: Factor of the penalty on pointwise weights.
        amount: Share of pointwise weights pruned after training.
        facet: Panel, where a figure has several.
    """

    series: str
    x: X
    model: str
    model_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    l1: float = 0.0
    amount: float = 0.0
    facet: str = ''

    @property
    def name(self) -> str:
        """What `--only` searches."""
        return ' '.join(part for part in (self.facet, self.series, str(self.x)) if part)

    def run(self, seed: int, recipe: Recipe) -> Run:
        """Return the training run of a seed."""
        return Run(self.model, self.model_kwargs, seed, dataclasses.replace(recipe, l1=self.l1))


@dataclasses.dataclass(frozen=True)
class Printed:
    """A number that the paper prints, or a range: `low` to `high`."""

    place: str
    series: str
    x: X
    low: float
    high: float | None = None
    std: float | None = None
    value: str = 'accuracy'
    facet: str = ''


@dataclasses.dataclass(frozen=True)
class Value:
    """A column of the table, and what a figure shows.

    Args:
        key: Of the measures' values.
        title: Of the column or axis.
        digits: After the point.
        relative: Whether deviations are in percent of the paper's number.
    """

    key: str
    title: str
    digits: int = 2
    relative: bool = False


ACCURACY = Value('accuracy', 'validation accuracy [%]')


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One figure or table.

    Args:
        id: `fig1` and the like.
        title: What it shows.
        variants: All points.
        x_label: Of the axis, or of the first column.
        values: What the table lists; a figure of curves draws one panel for each.
        measures: Names in `MEASURES`, of trained networks.
        fresh: Names in `FRESH`, of networks that need no training.
        kind: Which drawing: curves, gaps, dots, filters, positions, distributions, or '' for a table alone.
        pair: Two series that differ in one thing, compared run by run.
        log: Whether the axis is logarithmic (base 2).
        printed: The paper's numbers.
        says: What the paper says in words.
        notes: Where our reading had to guess, or differs.
    """

    id: str
    title: str
    variants: tuple[Variant, ...]
    x_label: str
    values: tuple[Value, ...] = (ACCURACY,)
    measures: tuple[str, ...] = ('accuracy',)
    fresh: tuple[str, ...] = ()
    kind: str = 'curves'
    pair: tuple[str, str] | None = (FROZEN, LEARNABLE)
    log: bool = True
    printed: tuple[Printed, ...] = ()
    says: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def find(name: str) -> Experiment:
    """Return an experiment by its id.

    Raises:
        ValueError: If there is none; the nearest is suggested.
    """
    if name not in EXPERIMENTS:
        plain = re.sub(
            r'^(figure|fig|table|tab)[ ._-]*', lambda match: match[1][:3].replace('tab', 'table'), name.lower()
        )
        near = [plain] if plain in EXPERIMENTS else difflib.get_close_matches(name, EXPERIMENTS, n=1, cutoff=0.5)
        hint = f'; did you mean {near[0]}?' if near else '; `timm-lc reproduce --list` shows all'
        raise ValueError(f'unknown experiment {name!r}{hint}')
    return EXPERIMENTS[name]


def _both(x: X, model: str, facet: str = '', **model_kwargs: Any) -> tuple[Variant, Variant]:
    """Return the frozen random network and the learnable one from the same filters."""
    return (
        Variant(FROZEN, x, model, model_kwargs, facet=facet),
        Variant(LEARNABLE, x, model, {**model_kwargs, **LEARNS}, facet=facet),
    )


def _flat(pairs: Iterable[tuple[Variant, ...]]) -> tuple[Variant, ...]:
    return tuple(variant for pair in pairs for variant in pair)


BY_EXPANSION = _flat(_both(e, f'lc_resnet20_16x{e}') for e in EXPANSIONS)
BY_KERNEL = _flat(
    _both(e, f'lc_resnet20_16x{e}', f'k = {k}', **({} if k == 3 else {'kernel_size': k}))
    for k in KERNELS
    for e in EXPANSIONS
)
EXPANSION = 'LC expansion E'

_ALL = (
    Experiment(
        'fig1',
        'Validation accuracy of LCResNet-20-16x{E} on CIFAR-10',
        BY_EXPANSION,
        EXPANSION,
        printed=(
            Printed('table 1, + Frozen', FROZEN, 128, 91.89, std=0.10),
            Printed('table 1, Baseline', LEARNABLE, 128, 91.39, std=0.29),
            Printed('table 1', GAP, 128, 0.50),
        ),
        says=('Section 4.2: the two break even at an expansion of about 8; beyond it frozen random is better.',),
    ),
    Experiment(
        'table1',
        'Successive reduction of parameters in LCResNet-20-16x128',
        (
            Variant('', 'Baseline', WIDEST, LEARNS),
            Variant('', '+ Frozen', WIDEST),
            Variant('', '+ Weight sharing', WIDEST, SHARED),
            Variant('', '+ Recycled WS (1/16)', WIDEST, RECYCLED),
            Variant('', '+ 1x1 reg. (5e-5)', WIDEST, RECYCLED, l1=5e-5),
            Variant('', '+ 1x1 pruning (0.7)', WIDEST, RECYCLED, l1=5e-5, amount=0.7),
        ),
        'method',
        values=(
            Value('nonzero', 'total', 0, relative=True),
            Value('learnable', 'learnable', 0, relative=True),
            ACCURACY,
        ),
        fresh=('counts',),
        kind='',
        pair=None,
        log=False,
        printed=(
            *(
                Printed('table 1', '', x, low, std=std)
                for x, low, std in (
                    ('Baseline', 91.39, 0.29),
                    ('+ Frozen', 91.89, 0.10),
                    ('+ Weight sharing', 91.58, 0.15),
                    ('+ Recycled WS (1/16)', 91.93, 0.13),
                    ('+ 1x1 reg. (5e-5)', 91.57, 0.28),
                    ('+ 1x1 pruning (0.7)', 91.34, 0.24),
                )
            ),
            *(
                Printed('table 1', '', x, low, value='nonzero')
                for x, low in (
                    ('Baseline', 38.4e6),
                    ('+ Frozen', 38.4e6),
                    ('+ Recycled WS (1/16)', 4.6e6),
                    ('+ 1x1 reg. (5e-5)', 4.6e6),
                    ('+ 1x1 pruning (0.7)', 1.7e6),
                )
            ),
            Printed('table 1', '', 'Baseline', 38.4e6, value='learnable'),
            *(
                Printed('table 1', '', x, 4.2e6, value='learnable')
                for x in ('+ Frozen', '+ Recycled WS (1/16)', '+ 1x1 reg. (5e-5)', '+ 1x1 pruning (0.7)')
            ),
        ),
        notes=(
            'Totals count non-zero weights, a shared vector once. The paper prints 4.6 M and 1.7 M for the last rows; '
            'its own definitions give 4.46 M and 1.55 M.',
            'In our text of the paper, columns of table 1 run together: the accuracy of the recycled row reads '
            '"91.93 ± 0.13 91.92 ± 0.21", and the shared row has no count.',
        ),
    ),
)

EXPERIMENTS: dict[str, Experiment] = {experiment.id: experiment for experiment in _ALL}
