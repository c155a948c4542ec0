"""The numbers of the paper's second version (arXiv 2301.11360v2, June 2023), each with its place there."""

from timm_lc.paper.experiment import FROZEN, GAP, LEARNABLE, PLAIN, Printed

__all__ = ['BLOCKS', 'BY_DATA', 'HOURS', 'OPERATIONS', 'SECOND_TABLE2', 'SECOND_TABLE3', 'by_data']

# Table 1, E = 128: accuracy and its deviation over four runs, of plain, learnable and frozen
BY_DATA = {
    'CIFAR-10': ((91.60, 0.23), (91.39, 0.29), (91.89, 0.10)),
    'CIFAR-100': ((60.84, 0.52), (59.44, 0.55), (61.31, 0.74)),
    'Fashion-MNIST': ((93.65, 0.18), (93.44, 0.18), (93.65, 0.06)),
    'SVHN': ((96.36, 0.04), (96.31, 0.08), (96.34, 0.11)),
}

# Table 2, ResNet-18d, best checkpoint of one run: top-1 and top-5 of frozen, then of learnable; the last learnable
# network needed more memory than four A100 have
_IMAGENET: dict[str, tuple[tuple[float, float], ...]] = {
    'no LC-Block': ((37.85, 61.37), (72.60, 90.69)),
    'E = 1': ((61.28, 83.11), (71.82, 90.44)),
    'E = 8': ((71.30, 90.03), (71.88, 90.40)),
    'E = 64': ((72.46, 90.57), (71.94, 90.41)),
    'E = 128': ((72.31, 90.64),),
}
BLOCKS = dict(zip(_IMAGENET, (None, 1, 8, 64, 128), strict=True))
SECOND_TABLE2 = tuple(
    Printed('version 2, table 2', series, row, number, key=key)
    for row, networks in _IMAGENET.items()
    for series, numbers in zip((FROZEN, LEARNABLE), networks, strict=False)
    for key, number in zip(('top1', 'top5'), numbers, strict=True)
)

# Table 3, E = 64: frozen, then learnable
_OPERATIONS = {
    'none': ((91.71, 0.08), (91.18, 0.10)),
    'ReLU': ((92.78, 0.31), (93.38, 0.15)),
    'batch norm': ((91.50, 0.15), (91.06, 0.23)),
    'batch norm and ReLU': ((93.26, 0.18), (94.72, 0.16)),
}
OPERATIONS = dict(zip(_OPERATIONS, (None, 'relu', 'bn', 'bn_relu'), strict=True))
SECOND_TABLE3 = tuple(
    Printed('version 2, table 3', series, row, number, std=std)
    for row, networks in _OPERATIONS.items()
    for series, (number, std) in zip((FROZEN, LEARNABLE), networks, strict=True)
)

# Table 4, hours of an A100; 2,901.6 in all
HOURS = {
    'ImageNet, baselines': 870.0, 'CIFAR-10, baselines': 183.0, 'CIFAR-10, LC-Blocks': 787.3,
    'CIFAR-100, LC-Blocks': 2.8, 'SVHN, LC-Blocks': 3.9, 'Fashion-MNIST, LC-Blocks': 3.0,
    'ImageNet, LC-Blocks': 869.2, 'attacks': 1.3, 'ablation': 20.2, 'abandoned': 160.9,
}  # fmt: skip


def by_data(data: str, x: int | str = 128) -> tuple[Printed, ...]:
    """Return table 1's numbers of a data set for place `x` of an axis: three accuracies and a gap."""
    means = [number for number, _ in BY_DATA[data]]
    numbers = tuple(
        Printed('version 2, table 1', series, x, number, std=std)
        for series, (number, std) in zip((PLAIN, LEARNABLE, FROZEN), BY_DATA[data], strict=True)
    )
    return *numbers, Printed('version 2, table 1, by difference', GAP, x, round(means[2] - means[1], 2))
