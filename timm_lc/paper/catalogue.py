"""The figures and tables of the paper's first version as data, and all of both versions by id.

Values of the paper are those that its text and tables print, with the place; its pictures are not read off. A gap is
the accuracy of the first series less that of the second, in points of percent.
"""

import difflib
import math
import re
from collections.abc import Iterable
from typing import Any

from timm_lc.paper.experiment import ACCURACY, FROZEN, GAP, LEARNABLE, PLAIN, Experiment, Printed, Value, Variant
from timm_lc.paper.measures import COUNTS
from timm_lc.paper.printed import AS_PRINTED, AT_128, NETWORKS, ROWS, TABLE1, TABLE2, TABLE3, in_panel, lowres_gap
from timm_lc.paper.second_version import SECOND_VERSION
from timm_lc.paper.theory import THEORY
from timm_lc.paper.variants import (
    AMOUNT,
    BY_EXPANSION,
    BY_KERNEL,
    DEPTHS,
    EXPANSION,
    EXPANSIONS,
    IMPLICIT,
    LEARNS,
    RECYCLED,
    WIDTHS,
    both,
    flat,
)

__all__ = ['EXPERIMENTS', 'find']

LAMBDAS = (0.0, 1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3)
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
SHARED = {'share_weights': True}
WIDEST = 'lc_resnet20_16x128'
AMBIGUOUS = (
    'In our text of the paper columns of table 1 run together: the accuracy of the recycled row reads "91.93 ± 0.13 '
    '91.92 ± 0.21".'
)
PENALTY = 5e-5

LOWRES = {
    'ResNet-14': 'resnet14', 'ResNet-18': 'resnet18', 'ResNet-20': 'resnet20', 'ResNet-34': 'resnet34',
    'ResNet-50': 'resnet50', 'ResNet-101': 'resnet101', 'Wide-ResNet-50x2': 'wide_resnet50_2',
    'MobileNet v2': 'mobilenetv2_100',
}  # fmt: skip

# Figure 10: lengths of all slices of LCResNet-20-64x1, and by how much the vector is shorter than the longest
SLICES = tuple(c_out * c_in * 9 for c_in, c_out in ((3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256)))
REDUCTIONS = (1, 2, 4, 8, 10, 16, 32, 64, 128, 512, 2048, 8192, 65536)

# Table 1: row, arguments, penalty, pruned share
METHODS: tuple[tuple[str, dict[str, Any], float, float], ...] = (
    (ROWS[0], LEARNS, 0.0, 0.0),
    (ROWS[1], {}, 0.0, 0.0),
    (ROWS[2], SHARED, 0.0, 0.0),
    (ROWS[3], RECYCLED, 0.0, 0.0),
    (ROWS[4], RECYCLED, PENALTY, 0.0),
    (ROWS[5], RECYCLED, PENALTY, AMOUNT),
)
IMAGENET = (
    'lc_resnet18', 'lc_resnet50', 'lc_resnet50d', 'lc_resnext50_32x4d', 'lc_wide_resnet50_2', 'lc_mobilenetv2_100',
    'lc_mobilenetv3_large_100',
)  # fmt: skip
COSTS = (
    Value('forward_ms', 'forward [ms]', digits=1, relative=True),
    Value('both_ms', 'forward + backward [ms]', digits=1, relative=True),
    Value('model_memory', 'model [MiB]', digits=0, relative=True),
    Value('forward_peak', 'forward peak [MiB]', digits=0, relative=True),
    Value('both_peak', 'forward + backward peak [MiB]', digits=0, relative=True),
    Value('checkpoint', 'checkpoint [MiB]', digits=2, relative=True),
)  # fmt: skip


def find(name: str) -> Experiment:
    """Return an experiment by its id.

    Raises:
        ValueError: If there is none; the nearest is suggested.
    """
    if name not in EXPERIMENTS:
        plain = re.sub(r'^(fig|tab)\D*', lambda match: {'fig': 'fig', 'tab': 'table'}[match[1]], name.lower())
        if plain == 'fig5':
            raise ValueError('fig5 is a drawing of the LC-Block: there is nothing to run')
        if plain == 'v2-table4':
            raise ValueError('v2-table4 is of hours: `timm-lc report` adds up those of the results')
        near = [plain] if plain in EXPERIMENTS else difflib.get_close_matches(name, EXPERIMENTS, n=1, cutoff=0.5)
        hint = f'; did you mean {near[0]}?' if near else '; `timm-lc reproduce --list` shows all'
        raise ValueError(f'unknown experiment {name!r}{hint}')
    return EXPERIMENTS[name]


def _length(reduction: int) -> int:
    """Return the length of figure 10's vector: whole filters of the longest layer, below one of them whole kernels."""
    unit = 256 * 9 if SLICES[-1] / reduction >= 256 * 9 else 9
    return math.ceil(SLICES[-1] / reduction / unit) * unit


def _timed() -> Iterable[Variant]:
    """Return table 3's rows in both forms; the penalty is no part of it."""
    for two in (True, False):
        for row, arguments, l1, amount in METHODS:
            if amount or not l1:
                facet = AS_PRINTED if two else 'one convolution'
                yield Variant('', row, WIDEST, arguments, amount=amount, facet=facet, two_convolutions=two)


def _recycled(reduction: int) -> tuple[Variant, ...]:
    length, model = _length(reduction), 'lc_resnet20_64x1'
    recycled = SHARED if length == SLICES[-1] else {**SHARED, 'shared_length': length}
    series: dict[str, dict[str, Any]] = {'recycled': recycled, 'full length': SHARED, 'not shared': {}}
    return tuple(Variant(name, length, model, arguments) for name, arguments in series.items())


COMBINED = tuple(variant for variant in BY_KERNEL if variant.series != PLAIN)
ON_IMAGENET = flat(both(row, model) for row, model in zip(NETWORKS, IMAGENET, strict=True))
TOP1, TOP5 = Value('top1', 'top-1 [%]'), Value('top5', 'top-5 [%]')

_ALL = (
    Experiment(
        'fig1', 'Accuracy of LCResNet-20-16x{E} over the expansion', variants=BY_EXPANSION,
        x_label=EXPANSION, printed=AT_128,
        says=(
            'version 1, section 4.2: the two break even at an expansion of about 8; beyond it frozen random is better',
        ),
    ),
    Experiment(
        'fig2', 'Learned filters from linear combinations of random ones',
        variants=(Variant(LEARNABLE, 'first layer', 'lc_resnet20_16x1', LEARNS),),
        x_label='filters of', values=tuple(Value(f'error_{n}', f'error, {n} random', digits=3) for n in COUNTS),
        measures=('reconstruction',),
        kind='reconstruction', pair=None, log=False,
        notes=(
            'The paper shows pictures and does not say of which network: these are of the first layer of '
            'LCResNet-20-16x1. The error is what least squares leaves, over the norm of the learned filters; '
            '27 random filters span all.',
        ),
    ),
    Experiment(
        'fig3', 'Accuracy of off-the-shelf networks',
        variants=flat(both(name, f'lc_lowres_{model}') for name, model in LOWRES.items()),
        x_label='network', kind='dots', log=False,
        printed=tuple(map(lowres_gap, LOWRES)),
        notes=("Networks are those of the authors' public code; MobileNet v2 starts from timm's initialisation.",),
    ),
    Experiment(
        'fig4', 'Robust accuracy of LCResNet-20-16x{E} over the expansion', variants=BY_EXPANSION,
        x_label=EXPANSION,
        values=(Value('fgsm', 'accuracy under FGSM [%]'), Value('pgd', 'accuracy under PGD [%]')),
        measures=('fgsm', 'pgd'),
        says=('version 1, section 4.2: robustness shows similar trends as accuracy',),
        notes=('Epsilon is 1/255 in pixels. PGD, ten steps on 1,000 images, is ours.',),
    ),
    Experiment(
        'fig6', 'Variance entropy of the first layer over the randomness threshold',
        variants=BY_EXPANSION, x_label=EXPANSION,
        values=(Value('entropy_normalized', 'normalized variance entropy', digits=3),),
        measures=('entropy_normalized',),
        says=(
            'version 1, section 4.2: learnable does not fluctuate with expansion; frozen random is almost random at '
            'E = 1, falls with it, and stays more diverse',
        ),
    ),
    Experiment(
        'fig7', 'Accuracy of LCResNet-20-{W}x1 over the width',
        variants=flat(both(w, f'lc_resnet20_{w}x1') for w in WIDTHS), x_label='width W',
        says=('version 1, section 4.2: the gap falls with the width',),
        notes=('Of the widths the text names 16 and 64.',),
    ),
    Experiment(
        'fig8', 'Accuracy of LCResNet-{D}-16x1 over the depth',
        variants=flat(both(d, f'lc_resnet{d}_16x1') for d in DEPTHS), x_label='depth D',
        says=('version 1, section 4.2: the two break even at a depth of about 260',),
        notes=('Of the depths the text names 20 and about 260.',),
    ),
    Experiment(
        'fig9', 'Accuracy with and without weight sharing over the expansion',
        variants=flat(
            (
                Variant('shared', e, f'lc_resnet20_16x{e}', {**SHARED, **IMPLICIT}),
                Variant('not shared', e, f'lc_resnet20_16x{e}', IMPLICIT),
            )
            for e in EXPANSIONS
        ),
        x_label=EXPANSION, pair=('shared', 'not shared'),
        says=('version 1, section 4.3: the two are about equal, and at some expansions sharing is ahead',),
        printed=(
            Printed('version 1, table 1', 'shared', 128, 91.58, std=0.15),
            Printed('version 1, table 1', 'not shared', 128, 91.89, std=0.10),
            Printed('version 1, section 4.3', GAP, 128, -0.31),
        ),
    ),
    Experiment(
        'fig10', 'Accuracy of LCResNet-20-64x1 over the length of the recycled vector',
        variants=flat(_recycled(r) for r in REDUCTIONS), x_label='length of the shared vector',
        pair=('recycled', 'full length'),
        vertical=SLICES,
        says=('version 1, section 4.3: up to a threshold filters can be recycled, beyond it accuracy falls much',),
        printed=(
            Printed('version 1, section 4.3', GAP, _length(4), -0.17),
            Printed('version 1, section 4.3, approximately', GAP, _length(10), -1.0),
        ),
        notes=(
            'The lengths are ours: the paper does not print its own. Dotted lines are the lengths of the slices. '
            'A tenth is rounded up to whole filters, as all lengths are (whole kernels below one filter).',
        ),
    ),
    Experiment(
        'fig11', 'Gap of frozen random and learnable LCResNet-20-16x{E} for larger kernels',
        variants=BY_KERNEL, x_label=EXPANSION,
        kind='gaps',
        printed=in_panel('k = 3', AT_128),
        says=('version 1, section 4.4: the gap grows with k and falls with E, down to none but for k = 9',),
    ),
    Experiment(
        'fig12', 'Combined 9x9 filters of the first layer, frozen random, beside random and learned ones',
        variants=tuple(v for v in COMBINED if v.facet == 'k = 9' and (v.series == FROZEN or v.x == 1)),
        x_label=EXPANSION, values=(), measures=('filters', 'random'), kind='filters', pair=None, single=True,
        notes=('"Learned" are those of the learnable LCResNet-20-16x1; the paper does not say of which expansion.',),
    ),
    Experiment(
        'fig13', 'Variance of weights by position in the kernel, LCResNet-20-16x1',
        variants=tuple(v for v in COMBINED if v.x == 1), x_label=EXPANSION, values=(), measures=('positions',),
        kind='positions', pair=None,
        says=(
            'version 1, section 4.4: learned kernels of k = 7 and 9 vary less at the border, combined random ones do '
            'not',
        ),
        notes=('"Learnable" are combined filters too: those of the learnable LCResNet.',),
    ),
    Experiment(
        'fig14', 'Combined filters of the first layer', variants=COMBINED, x_label=EXPANSION, values=(),
        measures=('filters',), kind='filters',
        pair=None, single=True,
    ),
    Experiment(
        'fig15', 'Variance entropy of the first layer for larger kernels',
        variants=BY_KERNEL, x_label=EXPANSION,
        values=(Value('entropy', 'variance entropy', digits=3),), measures=('entropy',),
        says=(
            'version 1, appendix E: learnable stays constant over E and falls a little with k; frozen random falls '
            'with E; the gap grows with k',
        ),
    ),
    Experiment(
        'fig16', 'Distributions of pointwise weights by layer',
        variants=flat(both(e, f'lc_resnet20_16x{e}') for e in EXPANSIONS), x_label=EXPANSION, values=(),
        measures=('pointwise',),
        kind='distributions', pair=None, single=True,
        says=('version 1, appendix F: weights become sparser with E, frozen or not',),
        notes=('Five layers of the 19 and the shortcuts are drawn; runs.jsonl has all.',),
    ),
    Experiment(
        'fig17', 'ImageNet accuracy over learnable parameters', variants=ON_IMAGENET, x_label='model',
        values=(TOP1, Value('learnable', 'learnable parameters', digits=0)), measures=(), untrained=('counts',),
        kind='scatter', pair=None, log=False,
        printed=tuple(printed for printed in TABLE2 if printed.key == 'top1' and printed.series != GAP),
        by_train_script=True,
        notes=(
            "Grey: timm's networks trained on ImageNet-1k alone, from results/results-imagenet.csv of the checkout in "
            "$TIMM_SCRIPTS. Hollow: the paper's accuracies (table 2) at our counts.",
        ),
    ),
    Experiment(
        'fig18', 'Accuracy of LCResNet-20-16x128, recycled 1/16, over the penalty',
        variants=tuple(Variant('', f'{value:g}', WIDEST, RECYCLED, l1=value) for value in LAMBDAS),
        x_label='lambda', kind='dots', pair=None, log=False,
        printed=(
            Printed('version 1, table 1', '', '0', 91.93, std=0.13),
            Printed('version 1, table 1', '', f'{PENALTY:g}', 91.57, std=0.28),
        ),
        says=('version 1, appendix H: accuracy is steady up to 5e-5, then falls',),
        notes=('The values of lambda are ours, but 0 and 5e-5; 1/16 is from table 1.', AMBIGUOUS),
    ),
    Experiment(
        'fig19', 'Accuracy of LCResNet-20-16x128, recycled 1/16, over the pruned share of pointwise weights',
        variants=flat(
            (
                Variant('lambda = 5e-5', ratio, WIDEST, RECYCLED, l1=PENALTY, amount=ratio),
                Variant('lambda = 0', ratio, WIDEST, RECYCLED, l1=0.0, amount=ratio),
            )
            for ratio in RATIOS
        ),
        x_label='pruned share', pair=('lambda = 5e-5', 'lambda = 0'), log=False,
        printed=(
            Printed('version 1, table 1', 'lambda = 5e-5', 0.0, 91.57, std=0.28),
            Printed('version 1, table 1', 'lambda = 5e-5', 0.7, 91.34, std=0.24),
            Printed('version 1, table 1', 'lambda = 0', 0.0, 91.93, std=0.13),
        ),
        says=(
            'version 1, appendix H: penalised networks are a little worse, and much better when most weights are '
            'pruned',
        ),
        notes=(
            'The ratios are ours, but 0.7; 1/16 is from table 1. Bands are a standard deviation, in the paper the '
            'absolute deviation from the mean.', AMBIGUOUS,
        ),
    ),
    Experiment(
        'table1', 'Successive reduction of parameters in LCResNet-20-16x128',
        variants=tuple(Variant('', row, WIDEST, kwargs, l1=l1, amount=amount) for row, kwargs, l1, amount in METHODS),
        x_label='method',
        values=(
            Value('nonzero', 'total', digits=0, relative=True),
            Value('learnable', 'learnable', digits=0, relative=True), ACCURACY,
        ),
        untrained=('counts',), kind='', pair=None, log=False,
        printed=TABLE1,
        notes=(
            'Totals count non-zero weights, a shared vector once. The paper prints 4.6 M and 1.7 M for the last rows; '
            'its own definitions give 4.46 M and 1.55 M. A vector of a tenth would give 4.64 M and 1.72 M.',
            'Its reductions, 22.6 and 9.1 times, are of its rounded counts; ours are 24.9 and 9.2 times.',
            f'{AMBIGUOUS} The shared row has no count there.',
        ),
    ),
    Experiment(
        'table2', 'ImageNet accuracy of off-the-shelf networks', variants=ON_IMAGENET, x_label='model',
        values=(TOP1, TOP5), measures=(), kind='',
        log=False, printed=TABLE2, by_train_script=True,
        notes=(
            "Trained by timm's train.py, train_configs/rsb_a2.yaml: commands.sh, then `--train-dirs`.",
            'The paper prints a gap of 4.32 for ResNet-50d; its accuracies give 4.12.',
            "Its authors' later repositories print 74.76 % top-1 for a ResNet-50 of theirs with frozen random filters.",
        ),
    ),
    Experiment(
        'table3', 'Time and memory of LCResNet-20-16x128, 64 images of 32x32', variants=tuple(_timed()),
        x_label='method', values=COSTS,
        measures=(), untrained=('timing',), kind='', pair=None, log=False, printed=TABLE3,
        notes=(
            "The paper's times are of an A100-SXM4-40GB, in seven rounds of 1,000 runs; ours are the mean of up to 21 "
            'training steps, of two convolutions of those that a minute holds.',
            "The paper's memory seems to be that of the process: the model's exceeds its checkpoint by about 854 MiB "
            'in every row. Ours is what the network adds.',
            'Checkpoints of two convolutions hold all weights, a shared '
            'vector once; ours hold what is learned, and pruned weights packed.',
        ),
    ),
)  # fmt: skip

EXPERIMENTS: dict[str, Experiment] = {experiment.id: experiment for experiment in (*_ALL, *SECOND_VERSION, *THEORY)}
