"""The comparison's runs are kept and not done twice; its table tells the better learning rate."""

import dataclasses
import math
import statistics
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import timm
import torch

from timm_lc.cli import main
from timm_lc.layers.adapter import AdaptedConv2d
from timm_lc.paper import adapt_bench
from timm_lc.paper.adapt_bench import Plan, run_plan
from timm_lc.paper.adapt_page import draw, rates, table
from timm_lc.training.adapting import METHODS, by_length
from timm_lc.training.files import lock


def run(method, lr, seed, accuracy, task='digits'):
    line = {'task': task, 'method': method, 'lr': lr, 'seed': seed, 'accuracy': accuracy}
    return {**line, 'weights': 1234, 'bytes': 5678, 'cpu_seconds': 1.0}


RUNS = [
    *[run('full fine-tuning', 0.1, seed, value) for seed, value in enumerate((70.0, 72.0, 74.0))],
    *[run('adapter, rank 8', 0.03, seed, value) for seed, value in enumerate((60.0, 60.0, 60.0))],
    *[run('adapter, rank 8', 0.1, seed, value) for seed, value in enumerate((71.0, 74.0, 77.0))],
]


def test_the_table_tells_the_better_learning_rate_and_the_paired_difference():
    row = next(line for line in table(RUNS).splitlines() if line.startswith('| adapter, rank 8 '))
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    spread = statistics.stdev((71.0, 74.0, 77.0))
    half = 4.302652729911275 / 3**0.5  # Student's t for two degrees of freedom; differences 1, 2, 3 deviate by 1
    assert cells[1] == f'74.00 ± {spread:.2f}'
    assert cells[2] == f'+2.00 ({2 - half:+.1f} to {2 + half:+.1f})'
    assert cells[3:] == ['0.1', '1,234', '5,678']


def test_a_learning_rate_of_one_seed_does_not_win_over_one_of_three():
    row = table([*RUNS[:3], run('full fine-tuning', 0.3, 0, 99.0)]).splitlines()[-1]
    assert '| 72.00 ± 2.00 |' in row


def test_every_learning_rate_is_told():
    lines = rates([*RUNS, run('head only', 0.1, 0, 50.0)]).splitlines()
    assert lines[0] == '### digits: accuracy in % at each learning rate'
    assert lines[2] == '| what learns | 0.03 | 0.1 |'
    assert lines[4:] == [
        '| full fine-tuning |  | 72.00 |',
        '| adapter, rank 8 | 60.00 | 74.00 |',
        '| head only |  | 50.00 |',
    ]


def test_the_picture_has_a_point_for_each_way():
    points = [path.get_offsets() for path in draw(RUNS).axes[0].collections]
    assert sorted(map(len, points)) == [1, 1]


@pytest.fixture
def small(monkeypatch, images_in, tmp_path):
    """Return the folder of ten classes; two ways are compared, without peft."""
    for split in ('train', 'validation'):
        images_in(tmp_path / 'images' / split, classes=10, count=2)
    kept = {name: METHODS[name] for name in ('head only', 'adapter, rank 4')}
    monkeypatch.setattr(adapt_bench, 'METHODS', kept)
    return tmp_path / 'images'


def test_runs_are_kept_and_go_on(small, tmp_path):
    output = tmp_path / 'output'
    output.mkdir()
    plan = Plan(str(small), pixels=8, base_epochs=1, seeds=1, lrs=(0.1,), effort=0.01)
    told = []
    runs = run_plan(plan, output, told.append)
    assert len(runs) == 3 * 2
    assert all(0 <= run['accuracy'] <= 100 and run['bytes'] > 0 for run in runs)
    told.clear()
    assert run_plan(plan, output, told.append) == runs
    assert not told
    lines = (output / 'runs.jsonl').read_text()
    (output / 'runs.jsonl').write_text(lines[:-20])  # a kill has cut the last one off
    assert len(run_plan(plan, output, told.append)) == len(runs)
    assert len(told) == 1
    assert run_plan(plan, output, told.append)[:-1] == runs[:-1]


def test_a_second_process_waits_and_repeats_no_run(small, tmp_path):
    plan = Plan(str(small), pixels=8, base_epochs=1, seeds=1, lrs=(0.1,), effort=0.01, tasks='^digits')
    told = []
    with ThreadPoolExecutor(1) as pool:
        with lock(tmp_path / 'runs.jsonl'):  # as the first process holds it
            second = pool.submit(run_plan, plan, tmp_path, told.append)
            assert wait([second], timeout=3).not_done
            assert not told
        assert len(second.result()) == 2


def test_rows_of_each_length_are_compared_with_full_fine_tuning(small, tmp_path):
    plan = Plan(str(small), 'test_efficientnet', pixels=8, base_epochs=1, seeds=1, lrs=(0.1,), effort=0.01)
    plan = dataclasses.replace(plan, lengths=(0.5, 2.0), rank=3, layers='all', tasks='^digits')
    runs = run_plan(plan, tmp_path, tell=len)
    assert [run['method'] for run in runs] == [
        'adapter, rank 3, all layers, rows of length 0.5',
        'adapter, rank 3, all layers, rows of length 2',
        'full fine-tuning',
    ]
    assert {run['task'] for run in runs} == {'digits, 50 images each'}
    assert runs[0]['weights'] == runs[1]['weights'] < runs[2]['weights']


@pytest.mark.parametrize('length', [0.5, 2.0])
def test_a_length_is_that_of_the_rows(length):
    (method, _) = by_length((length,), rank=3).values()
    layers = [m for m in method(timm.create_model('test_resnet')).modules() if isinstance(m, AdaptedConv2d)]
    norms = torch.cat([layer.spatial.weight.flatten(1).norm(dim=1) for layer in layers])
    torch.testing.assert_close(norms, torch.full_like(norms, length))


def test_a_pretrained_base_is_folded(small, tmp_path):
    plan = Plan(str(small), 'lc_resnet20_16x8', pretrained=True, seeds=1, lrs=(0.1,), effort=0.01, tasks='digits')
    (first, second) = run_plan(plan, tmp_path, tell=len)
    assert first['weights'] == 64 * 10 + 10
    # rank 4 of the 3x3 convolutions; scale and shift of their norms, and of those of two 1x1 convolutions
    assert second['weights'] == first['weights'] + 4 * 688 + 2 * (688 + 32 + 64)
    assert not (tmp_path / 'base').exists()


def test_a_pretrained_base_sees_images_as_it_was_trained_on_them(small, tmp_path, monkeypatch):
    seen = []

    def learn(model, images, tuning, seed, *, normalize, flips):
        seen.append(normalize(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)))
        return 50.0

    monkeypatch.setattr(adapt_bench, 'learn', learn)
    run_plan(Plan(str(small), 'lc_resnet20_16x8', pretrained=True, lrs=(0.1,), tasks='digits'), tmp_path, tell=len)
    cfg = timm.get_pretrained_cfg('lc_resnet20_16x8')
    expected = [(1 - mean) / std for mean, std in zip(cfg.mean, cfg.std, strict=True)]
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx(expected)


def test_runs_of_another_base_and_tasks_that_are_none_are_refused(small, tmp_path):
    plan = Plan(str(small), pixels=8, base_epochs=1, seeds=1, lrs=(0.1,), effort=0.01, tasks='digits')
    with pytest.raises(ValueError, match="`tasks` must match the name of a task, got 'letters'"):
        run_plan(dataclasses.replace(plan, tasks='letters'), tmp_path)
    run_plan(plan, tmp_path, tell=len)
    with pytest.raises(ValueError, match="holds other runs: `model` was 'lc_lowres_resnet20' and is 'resnet10t'"):
        run_plan(dataclasses.replace(plan, model='resnet10t'), tmp_path)
    assert run_plan(dataclasses.replace(plan, seeds=2), tmp_path, tell=len)[-1]['seed'] == 1


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'lrs': (0.1, -1.0)}, r'`lrs` must be positive and finite, got \(0\.1, -1\.0\)'),
        ({'lengths': (0.0,)}, '`lengths` must be positive'),
        ({'effort': math.nan}, '`effort` must be positive and finite, got nan'),
        ({'rank': 4}, '`rank` and `layers` are of the adapters of `lengths`: give those too'),
        ({'tasks': '['}, r"`tasks` is no regular expression: .*; got '\['"),
    ],
)
def test_impossible_plans_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Plan(**changes)


def test_a_base_needs_ten_classes(images_in, tmp_path):
    for split in ('train', 'validation'):
        images_in(tmp_path / 'images' / split)
    with pytest.raises(ValueError, match='`data` must have 10 classes or more, got 3'):
        run_plan(Plan(str(tmp_path / 'images')), tmp_path)


def test_the_command_writes_table_and_picture(small, tmp_path, capsys):
    arguments = f'adapt-bench --data {small} --pixels 8 --base-epochs 1 --seeds 1 --lrs 0.1 --effort 0.01'
    assert main([*arguments.split(), '--output', str(tmp_path / 'new')]) == 0
    assert '| adapter, rank 4 |' in (tmp_path / 'new' / 'table.md').read_text()
    assert (tmp_path / 'new' / 'accuracy.svg').stat().st_size > 1000
    with pytest.raises(SystemExit):
        main([*arguments.split(), '--seeds', '0'])
    assert '`seeds` must be a positive integer, got 0' in capsys.readouterr().err
