"""The catalogue against the paper's axes and printed numbers; figures made from nothing, shared, never repeated."""

import json
import math
import statistics

import numpy as np
import pytest
import timm
from PIL import Image

from timm_lc.analysis.statistics import mean_and_std, paired_interval
from timm_lc.cli import main
from timm_lc.experiments import runs
from timm_lc.experiments.catalogue import EXPERIMENTS, find
from timm_lc.experiments.experiment import FROZEN, GAP, LEARNABLE


@pytest.fixture
def reproduce(tmp_path, monkeypatch):
    """Return a function that runs `timm-lc reproduce` on tiny images in an empty folder; it returns the results."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for split, count in (('train', 8), ('validation', 4)):
        for label in range(2):
            folder = tmp_path / 'images' / split / f'class{label}'
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 128, (8, 8, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{index}.png')

    def reproduce(*arguments):
        options = ['--data', 'images', '--epochs', '1', '--batch-size', '8', '--device', 'cpu', *arguments]
        assert main(['reproduce', *options]) == 0
        return tmp_path / 'results'

    return reproduce


def lines(path):
    return [json.loads(line) for line in (path / 'runs.jsonl').read_text().splitlines()]


def axis(name):
    return [variant.x for variant in EXPERIMENTS[name].variants if variant.series in (FROZEN, '')]


def test_every_figure_and_table_with_numbers_is_there():
    figures = [f'fig{number}' for number in (*range(1, 5), *range(6, 20))]
    assert set(EXPERIMENTS) == {*figures, 'table1', 'table2', 'table3'}
    for experiment in EXPERIMENTS.values():
        assert all(timm.is_model(variant.model) for variant in experiment.variants), experiment.id


@pytest.mark.parametrize(
    ('name', 'places'),
    [
        ('fig1', [1, 2, 4, 8, 16, 32, 64, 128]),
        ('fig4', [1, 2, 4, 8, 16, 32, 64, 128]),
        ('fig7', [16, 32, 64, 128]),
        ('fig8', [20, 32, 44, 56, 110, 260]),
        ('fig18', ['0', '1e-06', '5e-06', '1e-05', '5e-05', '0.0001', '0.0005', '0.001']),
    ],
)
def test_axes_are_the_papers(name, places):
    assert axis(name) == places


def test_kernel_sizes_are_the_papers():
    kernels = {variant.model_kwargs.get('kernel_size', 3) for variant in EXPERIMENTS['fig11'].variants}
    assert kernels == {3, 5, 7, 9}


def test_frozen_and_learnable_differ_in_that_alone():
    pairs = {}
    for variant in EXPERIMENTS['fig1'].variants:
        pairs.setdefault(variant.x, {})[variant.series] = variant
    for pair in pairs.values():
        assert pair[FROZEN].model == pair[LEARNABLE].model
        assert pair[LEARNABLE].model_kwargs == {**pair[FROZEN].model_kwargs, 'freeze_spatial': False}


def test_printed_numbers_are_the_papers():
    table2 = {(p.series, p.x, p.value): p.low for p in EXPERIMENTS['table2'].printed}
    assert table2[FROZEN, 'ResNet-50', 'top1'] == 74.45
    assert table2[LEARNABLE, 'ResNet-50', 'top1'] == 79.50
    assert table2[GAP, 'ResNet-50', 'top1'] == pytest.approx(-5.05)
    assert table2[FROZEN, 'MobileNet v3 L 1.00', 'top5'] == 87.96
    assert len(table2) == 7 * 5
    table1 = {(p.x, p.value): p.low for p in EXPERIMENTS['table1'].printed}
    assert table1['Baseline', 'accuracy'] == 91.39
    assert table1['+ 1x1 pruning (0.7)', 'nonzero'] == pytest.approx(1.7e6)
    table3 = {(p.x, p.value): p.low for p in EXPERIMENTS['table3'].printed}
    assert table3['Baseline', 'both_ms'] == 124
    assert table3['+ 1x1 pruning (0.7)', 'checkpoint'] == 17.74
    assert all(p.series == GAP for p in EXPERIMENTS['fig3'].printed)


@pytest.mark.parametrize(('name', 'nearest'), [('figure1', 'fig1'), ('tab2', 'table2'), ('fig99', 'fig9')])
def test_unknown_experiment_suggests_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f'unknown experiment {name!r}; did you mean {nearest}'):
        find(name)


def test_intervals_are_students():
    assert mean_and_std([1.0]) == (1.0, None)
    assert paired_interval([1.0]) is None
    differences = [0.3, -0.1, 0.4, 0.2]
    low, high = paired_interval(differences)
    half = 3.182446 * statistics.stdev(differences) / math.sqrt(4)  # the printed quantile for 3 degrees of freedom
    assert (low, high) == pytest.approx((0.2 - half, 0.2 + half), rel=1e-6)


def test_a_figure_is_made_from_nothing_and_no_run_is_repeated(reproduce, monkeypatch):
    results = reproduce('fig1', '--runs', '2', '--values', '1')
    found = lines(results / 'fig1')
    points = {(line['series'], line['x'], line['run']['seed']) for line in found}
    assert points == {(series, 1, seed) for series in (FROZEN, LEARNABLE) for seed in (0, 1)}
    means = {
        series: statistics.fmean(line['values']['accuracy'] for line in found if line['series'] == series)
        for series in (FROZEN, LEARNABLE)
    }
    table = (results / 'fig1' / 'table.md').read_text()
    row = next(line for line in table.splitlines() if line.startswith('| 1 |'))
    for mean in means.values():
        assert f'| {mean:.2f} ± ' in row
    assert f'| {means[FROZEN] - means[LEARNABLE]:+.2f} |' in row
    assert '91.89 ± 0.10' in table
    assert {path.suffix for path in (results / 'fig1').iterdir()} == {'.jsonl', '.md', '.png', '.svg'}

    monkeypatch.setattr(runs, 'train', None)  # from here on nothing is trained
    before = (results / 'fig1' / 'runs.jsonl').read_text()
    reproduce('fig1', '--runs', '2', '--values', '1')
    assert (results / 'fig1' / 'runs.jsonl').read_text() == before
    reproduce('fig6', '--runs', '2', '--values', '1')  # of the same networks
    assert len(lines(results / 'fig6')) == 4


def test_shards_are_disjoint_and_complete(reproduce, capsys):
    every = []
    for shard in ('1/3', '2/3', '3/3'):
        capsys.readouterr()
        assert main(['reproduce', 'fig1', '--data', 'images', '--device', 'cpu', '--runs', '1', '--dry-run',
                     '--batch-size', '8', '--values', '1', '--shard', shard]) == 0  # fmt: skip
        every += [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith('missing  ')]
    assert len(every) == len(set(every)) == 2


def test_imagenet_commands_and_their_results(reproduce, tmp_path):
    runs = tmp_path / 'trained' / 'lc_resnet18-frozen'
    runs.mkdir(parents=True)
    (runs / 'args.yaml').write_text('model: lc_resnet18\nmodel_kwargs: {}\nseed: 42\nbatch_size: 256\nlr: 0.005\n')
    (runs / 'summary.csv').write_text('epoch,eval_top1,eval_top5\n0,10.0,20.0\n1,36.0,59.0\n')
    results = reproduce('table2', '--train-dirs', 'trained')
    commands = (results / 'table2' / 'commands.sh').read_text()
    assert commands.count('\ntrain ') == 14
    assert 'train lc_resnet50-learnable --model lc_resnet50 --model-kwargs freeze_spatial=False' in commands
    row = next(r for r in (results / 'table2/table.md').read_text().splitlines() if r.startswith('| ResNet-18 |'))
    assert '| 36.00 | 36.54 | -0.54 |' in row


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (['fig99'], 'did you mean fig9'),
        (['fig1', '--values', '3'], 'its values are 1, 2, 4'),
        (['fig1', '--epochs', '0'], '`epochs` must be a positive integer, got 0'),
        (['fig1', '--runs', '0'], 'runs'),
        (['fig1', '--shard', '4/3'], 'shard'),
        (['fig1', '--data', 'nowhere'], 'nowhere'),
        (['table2', '--train-dirs', 'images'], 'no summary.csv'),
        ([], 'give one or more of fig1'),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments, text, reproduce, capsys):
    with pytest.raises(SystemExit, match='2'):
        reproduce(*arguments)
    assert text in capsys.readouterr().err.splitlines()[-1]


def test_results_of_another_version_are_refused(reproduce, capsys):
    results = reproduce('fig1', '--runs', '1', '--values', '1', '--only', 'frozen')
    path = results / 'fig1' / 'runs.jsonl'
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(SystemExit, match='2'):
        reproduce('fig1', '--runs', '1', '--values', '1', '--only', 'frozen')
    assert 'format' in capsys.readouterr().err.splitlines()[-1]
