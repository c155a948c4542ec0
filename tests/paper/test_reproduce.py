"""The catalogue against the paper's axes and printed numbers; figures made from nothing, shared, never repeated."""

import dataclasses
import json
import math
import re
import shlex
import shutil
import statistics

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from timm_lc.analysis.intervals import mean_and_std, paired_interval
from timm_lc.cli import main
from timm_lc.paper import runs
from timm_lc.paper.catalogue import EXPERIMENTS, find
from timm_lc.paper.experiment import FROZEN, GAP, LEARNABLE, PLAIN
from timm_lc.paper.measures import MEASURES


@pytest.fixture
def reproduce(tmp_path, tiny_images):
    """Return a function that runs `timm-lc reproduce` on tiny images in an empty folder; it returns the results."""

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
    second = {'v2-fig4a', 'v2-fig4b', 'v2-fig4c', 'v2-fig5', 'v2-fig6a', 'v2-fig6b', 'v2-fig8', 'v2-fig10', 'v2-fig11',
              'v2-table1', 'v2-table1-cifar100', 'v2-table1-svhn', 'v2-table1-fashion_mnist', 'v2-table2',
              'v2-table3'}  # fmt: skip
    theory = {f'theory{number}' for number in range(1, 8)}
    assert set(EXPERIMENTS) == {*figures, 'table1', 'table2', 'table3', *second, *theory}
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


def test_frozen_and_learnable_differ_in_freezing_and_form_alone():
    pairs = {}
    for variant in EXPERIMENTS['fig1'].variants:
        pairs.setdefault(variant.x, {})[variant.series] = variant
    for pair in pairs.values():
        assert pair[FROZEN].model == pair[LEARNABLE].model
        assert (pair[LEARNABLE].model_kwargs, pair[FROZEN].model_kwargs) == (
            {'freeze_spatial': False},
            {'implicit': True},
        )


def test_printed_numbers_are_the_papers():
    table2 = {(p.series, p.x, p.key): p.low for p in EXPERIMENTS['table2'].printed}
    assert table2[FROZEN, 'ResNet-50', 'top1'] == 74.45
    assert table2[LEARNABLE, 'ResNet-50', 'top1'] == 79.50
    assert table2[GAP, 'ResNet-50', 'top1'] == pytest.approx(-5.05)
    assert table2[FROZEN, 'MobileNet v3 L 1.00', 'top5'] == 87.96
    assert table2[GAP, 'ResNet-50d', 'top1'] == -4.32  # as printed; its accuracies give 4.12
    assert len(table2) == 7 * 5
    table1 = {(p.x, p.key): p.low for p in EXPERIMENTS['table1'].printed}
    assert table1['Baseline', 'accuracy'] == 91.39
    assert table1['+ 1x1 pruning (0.7)', 'nonzero'] == pytest.approx(1.7e6)
    table3 = {(p.x, p.key): p.low for p in EXPERIMENTS['table3'].printed}
    assert table3['Baseline', 'both_ms'] == 124
    assert table3['+ 1x1 pruning (0.7)', 'checkpoint'] == 17.74
    assert all(p.series == GAP for p in EXPERIMENTS['fig3'].printed)


@pytest.mark.parametrize(
    ('name', 'nearest'), [('figure1', 'fig1'), ('tab2', 'table2'), ('fig99', 'fig9'), ('Table 1', 'table1')]
)
def test_unknown_experiment_suggests_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f'unknown experiment {name!r}; did you mean {nearest}'):
        find(name)


def test_figure_of_no_numbers_is_told():
    with pytest.raises(ValueError, match='fig5 is a drawing of the LC-Block'):
        find('figure 5')


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
    assert points == {(series, 1, seed) for series in (FROZEN, LEARNABLE, PLAIN) for seed in (0, 1)}
    means = {
        series: statistics.fmean(line['values']['accuracy'] for line in found if line['series'] == series)
        for series in (FROZEN, LEARNABLE, PLAIN)
    }
    table = (results / 'fig1' / 'table.md').read_text()
    row = next(line for line in table.splitlines() if line.startswith('| 1 |'))
    for mean in means.values():
        assert f'| {mean:.2f} ± ' in row
    assert f'| {means[FROZEN] - means[LEARNABLE]:+.2f} |' in row
    assert '91.89 ± 0.10' in table
    assert {path.suffix for path in (results / 'fig1').glob('[!.]*')} == {'.jsonl', '.md'}  # one place: no figure

    monkeypatch.setattr(runs, 'train', None)  # from here on nothing is trained
    before = (results / 'fig1' / 'runs.jsonl').read_text()
    reproduce('fig1', '--runs', '2', '--values', '1')
    assert (results / 'fig1' / 'runs.jsonl').read_text() == before
    reproduce('fig6', '--runs', '2', '--values', '1')  # of the same networks
    assert len(lines(results / 'fig6')) == 6


def trained_network(tmp_path, series):
    """Return the network behind a series of figure 1, and the validation images, both read without our code."""
    (folder,) = [
        path.parent
        for path in tmp_path.glob('output/runs/*/run.json')
        if ('false' in json.dumps(json.loads(path.read_text())['run']['model_kwargs'])) == (series == LEARNABLE)
    ]
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    images = [
        np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / 'images' / split).glob('*/*.png'))])
        for split in ('train', 'validation')
    ]
    pixels = torch.from_numpy(images[1]).permute(0, 3, 1, 2).double() / 255
    return model, pixels, images[0].mean((0, 1, 2)) / 255, images[0].std((0, 1, 2)) / 255


def test_robust_accuracy_is_of_the_definition(reproduce, tmp_path):
    (line,) = lines(reproduce('fig4', '--runs', '1', '--values', '1', '--only', 'learnable') / 'fig4')
    model, pixels, mean, std = trained_network(tmp_path, LEARNABLE)
    model, labels = model.double(), torch.tensor([0] * 4 + [1] * 4)
    pixels.requires_grad_()
    mean, std = (torch.from_numpy(values).view(3, 1, 1) for values in (mean, std))
    torch.nn.functional.cross_entropy(model((pixels - mean) / std), labels).backward()
    attacked = (pixels.detach() + pixels.grad.sign() / 255).clamp(0, 1)
    right = model((attacked - mean) / std).argmax(1) == labels
    assert line['values']['fgsm'] == 100 * right.double().mean().item()


def test_pointwise_weights_are_counted_by_layer(reproduce, tmp_path):
    (line,) = lines(reproduce('fig16', '--values', '1', '--only', 'frozen') / 'fig16')
    model, *_ = trained_network(tmp_path, FROZEN)
    weights = {name: p.detach().numpy() for name, p in model.named_parameters() if 'pointwise' in name}
    counted = line['values']['pointwise']
    for name, values in weights.items():
        layer = counted[name.removesuffix('.weight')]
        assert layer['range'] == np.abs(values).max()
        assert abs(np.histogram(values, 51, (-layer['range'], layer['range']))[0] - layer['counts']).sum() <= 2


def test_accuracy_is_measured_after_pruning(reproduce, tmp_path, monkeypatch):
    seen = []

    def accuracy(model, images):
        weights = torch.cat([p.detach().flatten() for p in model.parameters() if p.ndim == 4])
        seen.append((weights == 0).double().mean().item())
        return {'accuracy': 50.0}

    monkeypatch.setitem(MEASURES, 'accuracy', accuracy)
    small = [dataclasses.replace(v, model='lc_resnet20_16x1') for v in EXPERIMENTS['fig19'].variants]
    monkeypatch.setitem(EXPERIMENTS, 'fig19', dataclasses.replace(EXPERIMENTS['fig19'], variants=tuple(small)))
    reproduce('fig19', '--runs', '1', '--values', '0.5,0.9', '--only', 'lambda = 0 ')
    assert sorted(seen) == pytest.approx([0.5, 0.9], abs=0.001)


def test_measure_that_is_not_finite_is_not_written(reproduce, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(MEASURES, 'accuracy', lambda model, images: math.inf)
    small = [dataclasses.replace(v, model='lc_resnet20_16x1') for v in EXPERIMENTS['fig19'].variants]
    monkeypatch.setitem(EXPERIMENTS, 'fig19', dataclasses.replace(EXPERIMENTS['fig19'], variants=tuple(small)))
    with pytest.raises(SystemExit, match='2'):
        reproduce('fig19', '--values', '0.5', '--only', 'lambda = 0 ', '--runs', '1')
    assert '`values.accuracy` must be finite, got inf' in capsys.readouterr().err
    assert not (tmp_path / 'results/fig19/runs.jsonl').exists()


def test_several_jobs_make_the_same_figure(reproduce, capsys):
    results = reproduce('fig1', '--runs', '1', '--values', '1', '--jobs', '2')
    assert {line['series'] for line in lines(results / 'fig1')} == {FROZEN, LEARNABLE, PLAIN}
    assert {line['where']['threads'] for line in lines(results / 'fig1')} == {1}
    assert 'fig1: results/fig1/table.md' in capsys.readouterr().out


def test_runs_stop_when_the_time_is_up(reproduce, capsys):
    results = reproduce('fig1', '--runs', '1', '--values', '1', '--max-minutes', '0')
    assert not (results / 'fig1' / 'runs.jsonl').exists()
    assert 'not finished: the time was up' in capsys.readouterr().out
    assert len(lines(reproduce('fig1', '--runs', '1', '--values', '1') / 'fig1')) == 3


def test_list_tells_runs_and_times(reproduce, capsys):
    reproduce('fig1', '--runs', '1', '--values', '1', '--only', 'frozen')
    capsys.readouterr()
    reproduce('fig1', 'fig4', '--runs', '1', '--values', '1', '--list')
    _, fig1, fig4, every, source = capsys.readouterr().out.splitlines()
    assert fig1.split()[:3] == ['fig1', '3', '2']
    assert fig4.split()[:3] == ['fig4', '3', '2']
    assert every.split()[:3] == ['all', '3', '2']
    assert fig1.split()[3] == '?'
    assert 'others unknown (`--time` times them)' in source
    reproduce('fig1', '--runs', '1', '--values', '1', '--list', '--time')
    assert re.search(r'fig1 +3 +2 +\d+ s ', capsys.readouterr().out)
    reproduce('fig1', '--runs', '1', '--values', '1', '--list')  # the timing was kept
    assert re.search(r'fig1 +3 +2 +\d+ s ', capsys.readouterr().out)


def test_what_train_py_trains_is_not_told_as_done(reproduce, capsys):
    reproduce('table2', 'fig17', 'v2-table2', 'fig1', '--runs', '1', '--list')
    _, *listed, fig1, _, _ = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in listed] == [
        [name, '-', '-', 'train.py'] for name in ('table2', 'fig17', 'v2-table2')
    ]
    assert fig1.split()[:4] == ['fig1', '17', '17', '?']
    reproduce('table2', '--dry-run')
    assert capsys.readouterr().out.startswith('train.py    table2: trained by timm, read from `--train-dirs`, ')


@pytest.mark.parametrize('arguments', [('--dry-run',), ('--list',), ()])
def test_missing_folder_of_train_py_is_named(arguments, reproduce, tmp_path, capsys):
    with pytest.raises(SystemExit, match='2'):
        reproduce('table2', '--train-dirs', 'images', 'nosuch', *arguments)
    assert 'error: `--train-dirs` must be folders, got nosuch: no such folder' in capsys.readouterr().err
    assert not (tmp_path / 'results').exists()


def test_what_train_py_trains_has_no_table_before_its_results(reproduce, capsys):
    results = reproduce('table2')
    assert [path.name for path in (results / 'table2').glob('[!.]*')] == ['commands.sh']
    assert 'table2: nothing is measured yet: results/table2/commands.sh trains it' in capsys.readouterr().out


def test_command_in_the_table_makes_it(reproduce, tmp_path, monkeypatch):
    results = reproduce('fig1', '--runs', '1', '--seed', '3', '--lr', '0.02', '--values', '1', '--only', 'frozen')
    command = (results / 'fig1' / 'table.md').read_text().split('`')[1]
    options = "--data images --epochs 1 --seed 3 --batch-size 8 --lr 0.02 --runs 1 --only 'frozen random 1$'"
    assert command == f'timm-lc reproduce fig1 {options}'
    monkeypatch.setattr(runs, 'train', None)
    before = (results / 'fig1' / 'runs.jsonl').read_text()
    assert main([*shlex.split(command)[1:], '--device', 'cpu']) == 0
    assert (results / 'fig1' / 'runs.jsonl').read_text() == before


def test_short_runs_leave_the_page_of_full_length_as_it_was(reproduce, tmp_path, capsys):
    folder = reproduce('fig1', '--runs', '1', '--values', '1', '--only', 'plain', '--batch-size', '256') / 'fig1'
    whole = lines(folder)
    whole[0]['run']['recipe']['epochs'], whole[0]['values']['accuracy'] = 75, 91.5
    (folder / 'runs.jsonl').write_text(json.dumps(whole[0]) + '\n')
    assert main(['report', 'results']) == 0
    before = (folder / 'table.md').read_text()
    capsys.readouterr()
    reproduce('fig1', '--runs', '1', '--values', '1,2', '--only', 'frozen', '--batch-size', '256')
    assert 'fig1: results/fig1/table.md, results/fig1/fig1-short.md\n' in capsys.readouterr().out
    assert '91.50' in before
    after = (folder / 'table.md').read_text()
    assert after == before + '- 2 results are of other recipes, lengths or images, not shown here.\n'
    heading, _, verdict, *_ = (folder / 'fig1-short.md').read_text().splitlines()
    assert heading.endswith('over the expansion (1 of 75 epochs)')
    assert verdict == '**too short to tell**: 1 of 75 epochs'
    pages = {path.name: path.read_bytes() for path in folder.glob('[!.]*')}
    assert pages.keys() == {'runs.jsonl', 'table.md', 'fig1-short.md', 'fig1-short.png', 'fig1-short.svg'}
    assert main(['report', 'results']) == 0
    assert {path.name: path.read_bytes() for path in folder.glob('[!.]*')} == pages


def test_results_that_no_page_shows_are_told(reproduce, capsys):
    reproduce('fig1', '--runs', '1', '--values', '1', '--only', 'frozen', '--epochs', '2')
    reproduce('fig1', '--runs', '1', '--values', '1', '--only', 'frozen')
    text = 'fig1: results/fig1/table.md, of other runs; those of these options are in runs.jsonl alone'
    assert capsys.readouterr().out.count(text) == 1
    reproduce('fig1', '--runs', '1', '--values', '1', '--only', 'frozen', '--batch-size', '256')  # the paper's
    reproduce('fig1', '--runs', '1', '--values', '1', '--only', 'frozen')
    assert capsys.readouterr().out.count(text) == 1


def test_other_images_of_the_same_name_are_refused(reproduce, tmp_path, capsys):
    reproduce('fig1', '--runs', '1', '--values', '1', '--only', 'frozen')
    path = tmp_path / 'images/train/class0/0.png'
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    with pytest.raises(SystemExit, match='2'):
        reproduce('fig1', '--runs', '1', '--values', '1')
    assert 'holds results of other images named images' in capsys.readouterr().err


def test_shards_are_disjoint_and_complete(reproduce, capsys):
    every = []
    for shard in ('1/3', '2/3', '3/3'):
        capsys.readouterr()
        assert main(['reproduce', 'fig1', '--data', 'images', '--device', 'cpu', '--runs', '1', '--dry-run',
                     '--batch-size', '8', '--values', '1', '--shard', shard]) == 0  # fmt: skip
        every += [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith('missing  ')]
    assert len(every) == len(set(every)) == 3


def test_imagenet_commands_and_their_results(reproduce, tmp_path):
    runs = tmp_path / 'trained' / 'lc_resnet18-frozen'
    runs.mkdir(parents=True)
    (runs / 'args.yaml').write_text(
        'model: lc_resnet18\nmodel_kwargs: {}\nseed: 42\nepochs: 2\nbatch_size: 256\nlr: 0.005\n'
    )
    (runs / 'summary.csv').write_text('epoch,eval_top1,eval_top5\n0,10.0,20.0\n')
    with (runs / 'summary.csv').open('a') as file:  # resumed: timm writes the header again
        file.write('epoch,eval_top1,eval_top5\n1,36.0,59.0\n')
    for name, kwargs, epochs in (('shared', '{share_weights: true}', 2), ('unfinished', '{}', 3)):
        (tmp_path / 'trained' / name).mkdir()
        (tmp_path / 'trained' / name / 'args.yaml').write_text(
            f'model: lc_resnet18\nmodel_kwargs: {kwargs}\nseed: 43\nepochs: {epochs}\n'
        )
        shutil.copy(runs / 'summary.csv', tmp_path / 'trained' / name)
    results = reproduce('table2', '--train-dirs', 'trained')
    commands = (results / 'table2' / 'commands.sh').read_text()
    assert commands.count('\ntrain ') == 14
    assert 'train lc_resnet50-learnable --model lc_resnet50 --model-kwargs freeze_spatial=False' in commands
    assert commands.endswith('timm-lc reproduce table2 --train-dirs "$output" --output "$(dirname "$0")/.."\n')
    row = next(r for r in (results / 'table2/table.md').read_text().splitlines() if r.startswith('| ResNet-18 |'))
    assert '| 36.00 | 36.54 | 71.88 | 59.00 | 59.84 |' in row  # no deviation after two epochs


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (['fig99'], 'did you mean fig9'),
        (['fig1', '--values', '1,3'], '`values` must be of the axis, got 3; the axis has 1, 2, 4, 8, 16'),
        (['fig1', '--values', '1', '--only', 'frozen 2'], 'its values are 1, 2, 4'),
        (['fig1', '--epochs', '0'], '`epochs` must be a positive integer, got 0'),
        (['fig1', '--runs', '0'], '`runs` must be a positive integer, got 0'),
        (['fig1', '--limit', '-5', '--list'], '`limit` must be a positive integer, got -5'),
        (['fig1', '--jobs', '0', '--dry-run'], '`jobs` must be a positive integer, got 0'),
        (['fig1', '--only', '('], "`only` must be a regular expression, got '('"),
        (['fig1', '--max-minutes', 'nan'], '`max_minutes` must be 0 or a positive number, got nan'),
        (['fig1', '--output', 'images/train/class0/0.png/results'], 'Not a directory'),
        (['fig1', '--device', 'meta'], '`--device meta`'),
        (['fig1', '--shard', '4/3'], 'shard'),
        (['fig1', '--data', 'nowhere'], 'nowhere'),
        (['table2', '--train-dirs', 'images'], 'no summary.csv'),
        (['fig1', '--train-dirs', 'images'], '`--train-dirs` are of fig17, table2, v2-table2, got fig1'),
        (['fig1', '--time'], '`--time` is of `--list` and `--dry-run`'),
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


def test_two_runs_of_one_network_and_seed_are_not_both_collected(reproduce, tmp_path, capsys):
    for name, lr in (('slow', 0.0001), ('fast', 0.005)):
        (tmp_path / 'trained' / name).mkdir(parents=True)
        (tmp_path / 'trained' / name / 'args.yaml').write_text(f'model: lc_resnet18\nepochs: 1\nlr: {lr}\n')
        (tmp_path / 'trained' / name / 'summary.csv').write_text('epoch,eval_top1,eval_top5\n0,10.0,20.0\n')
    with pytest.raises(SystemExit, match='2'):
        reproduce('table2', '--train-dirs', 'trained')
    assert 'trained/fast and trained/slow are both of frozen random lc_resnet18' in capsys.readouterr().err


def test_a_foreign_run_json_is_passed_over(reproduce, tmp_path, capsys):
    (tmp_path / 'output/runs/elsewhere').mkdir(parents=True)
    (tmp_path / 'output/runs/elsewhere/run.json').write_text('{"name": "of another tool"}')
    reproduce('fig1', '--runs', '1', '--values', '1', '--list')
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ['fig1', '3', '3']
