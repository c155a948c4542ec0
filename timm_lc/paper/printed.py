"""The numbers that the paper's tables and text print. Its pictures are not read off."""

import dataclasses
import math
from collections.abc import Iterable

from timm_lc.paper.experiment import FROZEN, GAP, LEARNABLE, Printed

__all__ = [
    'AS_PRINTED', 'AT_128', 'NETWORKS', 'ROWS', 'TABLE1', 'TABLE2', 'TABLE3', 'in_panel', 'lowres_gap',
]  # fmt: skip

# Rows of table 1; table 3 has all but the regularised one
ROWS = (
    'Baseline', '+ Freezing', '+ Weight sharing', '+ Recycled WS (1/16)', '+ 1x1 regularization (5e-5)',
    '+ 1x1 pruning (0.7)',
)  # fmt: skip
AS_PRINTED = "two convolutions, as the paper's"

# Accuracy and its deviation, total and learnable in millions. Our text of the paper runs columns together: the
# recycled row reads '91.93 ± 0.13 91.92 ± 0.21', and the shared row has no counts.
_REDUCTION = (
    (91.39, 0.29, 38.4, 38.4), (91.89, 0.10, 38.4, 4.2), (91.58, 0.15, None, None),
    (91.93, 0.13, 4.6, 4.2), (91.57, 0.28, 4.6, 4.2), (91.34, 0.24, 1.7, 4.2),
)  # fmt: skip
TABLE1 = tuple(
    Printed('version 1, table 1', '', row, number, std=std, key=key)
    for row, (accuracy, deviation, total, learnable) in zip(ROWS, _REDUCTION, strict=True)
    for key, number, std in (
        ('accuracy', accuracy, deviation),
        ('nonzero', total and 1e6 * total, None),
        ('learnable', learnable and 1e6 * learnable, None),
    )
    if number
)
AT_128 = (
    Printed('version 1, table 1', FROZEN, 128, 91.89, std=0.10),
    Printed('version 1, table 1', LEARNABLE, 128, 91.39, std=0.29),
    Printed('version 1, table 1, by difference', GAP, 128, 0.50),
)


def in_panel(facet: str, printed: Iterable[Printed]) -> tuple[Printed, ...]:
    """Return printed numbers as those of one panel of a figure."""
    return tuple(dataclasses.replace(number, facet=facet) for number in printed)


# Top-1 and top-5 of frozen random, of learnable, and the gap; that of ResNet-50d is 4.12 by its own accuracies
_IMAGENET = {
    'ResNet-18': (36.54, 59.84, 71.88, 90.27, 35.34),
    'ResNet-50': (74.45, 91.93, 79.50, 94.50, 5.05),
    'ResNet-50d': (75.66, 92.28, 79.78, 94.41, 4.32),
    'ResNeXt-50-32x4d': (76.60, 93.00, 79.81, 94.50, 3.21),
    'Wide-ResNet-50x2': (76.70, 92.83, 80.09, 94.51, 3.39),
    'MobileNet v2 S 1.00': (66.34, 86.63, 71.69, 90.45, 5.35),
    'MobileNet v3 L 1.00': (68.41, 87.96, 76.60, 93.00, 8.19),
}
NETWORKS = tuple(_IMAGENET)
TABLE2 = tuple(
    Printed('version 1, table 2', series, row, number, key=key)
    for row, (frozen, frozen5, learnable, learnable5, gap) in _IMAGENET.items()
    for series, key, number in (
        (FROZEN, 'top1', frozen),
        (FROZEN, 'top5', frozen5),
        (LEARNABLE, 'top1', learnable),
        (LEARNABLE, 'top5', learnable5),
        (GAP, 'top1', -gap),
    )
)

# Milliseconds and their deviations, then MB, which its checkpoints show to be MiB
_COSTS = (
    (35.7, 0.145, 124, 1.490, 1002, 8352, 8428, 146.66), (35.7, 0.180, 82.3, 0.092, 1002, 8352, 8428, 146.66),
    (35.9, 0.165, 82.6, 0.131, 888, 8408, 8484, 33.84), (36.2, 0.170, 83, 0.065, 870, 8410, 8486, 17.74),
    (36.1, 0.168, 82.8, 0.008, 870, 8410, 8486, 17.74),
)  # fmt: skip
TABLE3 = tuple(
    Printed('version 1, table 3', '', row, number, std=std, key=key, facet=AS_PRINTED)
    for row, (forward, forward_std, both, both_std, model, forward_peak, both_peak, checkpoint) in zip(
        (*ROWS[:4], ROWS[5]), _COSTS, strict=True
    )
    for key, number, std in (
        ('forward_ms', forward, forward_std),
        ('both_ms', both, both_std),
        ('model_memory', model, None),
        ('forward_peak', forward_peak, None),
        ('both_peak', both_peak, None),
        ('checkpoint', checkpoint, None),
    )
)

# Section 4.1: those whose pointwise convolutions combine filters lose 1.6 to 1.9 points, the others 16 or more
_COMBINING = ('ResNet-50', 'ResNet-101', 'Wide-ResNet-50x2', 'MobileNet v2')


def lowres_gap(network: str) -> Printed:
    """Return the range of figure 3's gap."""
    low, high = (-1.9, -1.6) if network in _COMBINING else (-math.inf, -16.0)
    return Printed('version 1, section 4.1', GAP, network, low, high=high)
