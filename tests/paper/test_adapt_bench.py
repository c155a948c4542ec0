"""The comparison's runs are kept and not done twice; its table tells the better learning rate."""

import statistics

import pytest

from timm_lc.cli import main
from timm_lc.paper import adapt_bench
from timm_lc.paper.adapt_bench import Plan, draw, run_plan, table
from timm_lc.training.adapting import METHODS


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


def test_the_command_writes_table_and_picture(small, tmp_path, capsys):
    arguments = f'adapt-bench --data {small} --pixels 8 --base-epochs 1 --seeds 1 --lrs 0.1 --effort 0.01'
    assert main([*arguments.split(), '--output', str(tmp_path / 'new')]) == 0
    assert '| adapter, rank 4 |' in (tmp_path / 'new' / 'table.md').read_text()
    assert (tmp_path / 'new' / 'accuracy.svg').stat().st_size > 1000
    with pytest.raises(SystemExit):
        main([*arguments.split(), '--seeds', '0'])
    assert '`seeds` must be a positive integer, got 0' in capsys.readouterr().err
