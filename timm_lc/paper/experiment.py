"""What a figure or table of the paper is made of."""

import dataclasses
from typing import Any, NamedTuple

from timm_lc.training.recipe import Recipe, Run

__all__ = [
    'ACCURACY', 'FROZEN', 'GAP', 'LEARNABLE', 'PLAIN', 'Experiment', 'Point', 'Printed', 'Value', 'Variant',
]  # fmt: skip

FROZEN, LEARNABLE, PLAIN, GAP = 'frozen random', 'learnable', 'plain', 'gap'

X = int | float | str


class Point(NamedTuple):
    """A place in an experiment: panel, legend, and place on the axis or row of the table."""

    facet: str
    series: str
    x: X


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
        facet: Panel, or group of rows, where there are several.
        lr: Learning rate in place of the recipe's; 0 is the recipe's.
        two_convolutions: Whether LC-Blocks compute two convolutions, as the paper's do (table 3).
    """

    series: str
    x: X
    model: str
    model_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    _: dataclasses.KW_ONLY
    l1: float = 0.0
    amount: float = 0.0
    facet: str = ''
    lr: float = 0.0
    two_convolutions: bool = False

    @property
    def point(self) -> Point:
        """Its place."""
        return Point(self.facet, self.series, self.x)

    @property
    def name(self) -> str:
        """What `--only` searches."""
        return ' '.join(str(part) for part in self.point if part != '')

    def run(self, seed: int, recipe: Recipe) -> Run:
        """Return the training run of a seed."""
        return Run(
            self.model, self.model_kwargs, seed, dataclasses.replace(recipe, l1=self.l1, lr=self.lr or recipe.lr)
        )


@dataclasses.dataclass(frozen=True)
class Printed:
    """A number that the paper prints, or a range: `low` to `high`, either of which may be infinite."""

    place: str
    series: str
    x: X
    low: float
    high: float | None = None
    _: dataclasses.KW_ONLY
    std: float | None = None
    key: str = 'accuracy'
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
    _: dataclasses.KW_ONLY
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
        untrained: Names in `UNTRAINED`, of networks that need no training.
        kind: Which drawing of `figures.draw`; '' for a table alone.
        single: Whether the first training seed is enough, as for a picture.
        data: Name of the images that it is of, where they are not CIFAR-10.
        by_train_script: Whether timm's own train.py trains the networks, not our CIFAR trainer.
        pair: Two series that differ in one thing, compared run by run.
        log: Whether the axis is logarithmic (base 2).
        vertical: Places of vertical lines.
        printed: The paper's numbers.
        says: What the paper says in words.
        notes: Where our reading had to guess, or differs.
    """

    id: str
    title: str
    _: dataclasses.KW_ONLY
    variants: tuple[Variant, ...]
    x_label: str
    values: tuple[Value, ...] = (ACCURACY,)
    measures: tuple[str, ...] = ('accuracy',)
    untrained: tuple[str, ...] = ()
    kind: str = 'curves'
    single: bool = False
    data: str = ''
    by_train_script: bool = False
    pair: tuple[str, str] | None = (FROZEN, LEARNABLE)
    log: bool = True
    vertical: tuple[float, ...] = ()
    printed: tuple[Printed, ...] = ()
    says: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def facets(self) -> list[str]:
        """Panels, or groups of rows, in order."""
        return list(dict.fromkeys(variant.facet for variant in self.variants))

    @property
    def series(self) -> list[str]:
        """Legends, in order."""
        return list(dict.fromkeys(variant.series for variant in self.variants))

    @property
    def places(self) -> list[X]:
        """Places on the axis, or rows of the table, in order."""
        return list(dict.fromkeys(variant.x for variant in self.variants))

    @property
    def is_ours(self) -> bool:
        """Whether it is none of the paper's."""
        return self.id.startswith('theory')
