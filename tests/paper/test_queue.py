"""A queue of runs: in order, resumable after a kill, shared by two processes; runs that are adopted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from timm_lc.cli import main
from timm_lc.paper import runs
from timm_lc.training.files import lock

CHECKOUT = {**os.environ, 'PYTHONPATH': str(Path(__file__).resolve().parents[2])}
COMMON = ['--data', 'images', '--epochs', '2', '--batch-size', '8', '--device', 'cpu']
QUEUE = """
# the plain network first: one run, all places
fig1 --only plain --values 1,2 --runs 1
v2-fig4a --only plain --values 1 --runs 1   # the same run
fig1 --only frozen --values 1 --runs 1
"""


@pytest.fixture
def queue(tmp_path, tiny_images):
    """Return a function that does the queue on tiny images in an empty folder; it returns the status."""
    (tmp_path / 'queue.txt').write_text(QUEUE)
    return lambda *arguments: main(['reproduce', '--queue', 'queue.txt', *COMMON, *arguments])


def measured(tmp_path, name):
    path = tmp_path / 'results' / name / 'runs.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def folders(tmp_path):
    return sorted(path.parent for path in (tmp_path / 'output/runs').glob('*/run.json'))


def test_queue_trains_each_run_once_in_order(queue, tmp_path):
    assert queue() == 0
    assert [(line['series'], line['x']) for line in measured(tmp_path, 'fig1')] == [
        ('plain', 1), ('plain', 2), ('frozen random', 1),
    ]  # fmt: skip
    assert [line['series'] for line in measured(tmp_path, 'v2-fig4a')] == ['plain']
    plain, frozen = folders(tmp_path)
    assert plain.name.startswith('lc_lowres_resnet20-seed0-')
    assert frozen.name.startswith('lc_resnet20_16x1-seed0-')
    epochs = [json.loads(line)['seconds'] for line in (plain / 'metrics.jsonl').read_text().splitlines()]
    assert measured(tmp_path, 'fig1')[0]['where']['seconds'] == pytest.approx(sum(epochs), abs=0.06)


def test_killed_queue_goes_on_to_the_bit(queue, tmp_path, capsys):
    script = (
        'import os, signal, sys, torch; from timm_lc.cli import main; from timm_lc.training import trainer\n'
        'torch.set_num_threads(1)\n'
        'trainer.SAVE_SECONDS, rate = 0, trainer.learning_rate\n'
        'def killed(recipe, step, steps):\n'
        '    return os.kill(os.getpid(), signal.SIGKILL) if step == 3 else rate(recipe, step, steps)\n'
        'trainer.learning_rate = killed; main(sys.argv[1:])'
    )
    command = [sys.executable, '-c', script, 'reproduce', '--queue', 'queue.txt', *COMMON]
    assert subprocess.run(command, capture_output=True, env=CHECKOUT).returncode == -signal.SIGKILL
    (folder,) = folders(tmp_path)
    assert (folder / 'state.pt').exists()
    assert not measured(tmp_path, 'fig1')
    assert queue() == 0
    assert queue('--runs-dir', 'whole', '--output', 'other') == 0
    whole = load_file(tmp_path / 'whole' / folder.name / 'model.safetensors')
    resumed = load_file(folder / 'model.safetensors')
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_second_queue_takes_other_runs(queue, tmp_path, capsys):
    assert queue('--dry-run') == 0
    plain, *_ = (line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith('missing  '))
    with lock(tmp_path / 'output/runs' / plain):  # as the first queue holds it
        assert queue() == 0
    assert {line['series'] for line in measured(tmp_path, 'fig1')} == {'frozen random'}
    assert 'another process trains a run' in capsys.readouterr().out
    assert queue() == 0
    assert {line['series'] for line in measured(tmp_path, 'fig1')} == {'frozen random', 'plain'}


def test_runs_of_the_cifar_command_are_adopted(queue, tmp_path, monkeypatch, capsys):
    model = ['--model', 'lc_lowres_resnet20', '--model-kwargs', 'freeze_spatial=False']
    assert main(['cifar', *model, *COMMON, '--output', 'elsewhere']) == 0
    monkeypatch.setattr(runs, 'train', None)  # from here on nothing is trained
    (tmp_path / 'queue.txt').write_text('fig1 --only plain --values 1,2 --runs 1')
    assert queue('--adopt', 'elsewhere') == 0
    values = json.loads((tmp_path / 'elsewhere/seed0/values.json').read_text())
    assert [line['values']['accuracy'] for line in measured(tmp_path, 'fig1')] == [values['accuracy']] * 2
    assert 'elsewhere: output/runs/lc_lowres_resnet20-seed0-' in capsys.readouterr().out
    (folder,) = folders(tmp_path)
    assert len((folder / 'metrics.jsonl').read_text().splitlines()) == 2
    shutil.rmtree(tmp_path / 'elsewhere/seed0')
    with pytest.raises(SystemExit, match='2'):
        queue('--adopt', 'elsewhere')
    assert '`--adopt` elsewhere: no run.json of `timm-lc cifar` below it' in capsys.readouterr().err
    (tmp_path / 'elsewhere/run.json').write_text('{}')
    with pytest.raises(SystemExit, match='2'):
        queue('--adopt', 'elsewhere')
    assert '`--adopt` elsewhere/run.json is not of `timm-lc cifar`' in capsys.readouterr().err


def test_an_interrupted_adoption_goes_on(queue, tmp_path, monkeypatch):
    model = ['--model', 'lc_lowres_resnet20', '--model-kwargs', 'freeze_spatial=False']
    assert main(['cifar', *model, *COMMON, '--output', 'elsewhere']) == 0
    (tmp_path / 'queue.txt').write_text('fig1 --only plain --values 1 --runs 1')

    copytree = shutil.copytree

    def interrupted(*args, **kwargs):
        copytree(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs.shutil, 'copytree', interrupted)
        assert queue('--adopt', 'elsewhere') == 130
    (folder,) = folders(tmp_path)
    assert not (folder / 'metrics.jsonl').exists()
    (folder / 'model.safetensors').unlink()  # as if the copy had not come so far
    monkeypatch.setattr(runs, 'train', None)
    assert queue('--adopt', 'elsewhere') == 0
    assert len((folder / 'metrics.jsonl').read_text().splitlines()) == 2


def test_runs_of_other_images_are_not_adopted(queue, tmp_path, capsys):
    model = ['--model', 'lc_lowres_resnet20', '--model-kwargs', 'freeze_spatial=False']
    assert main(['cifar', *model, *COMMON, '--output', 'elsewhere']) == 0
    with pytest.raises(SystemExit, match='2'):
        queue('--adopt', 'elsewhere', '--limit', '8')
    assert '`--adopt` elsewhere/seed0 is of 16 training images: give its `--limit`, got 8' in capsys.readouterr().err
    assert not folders(tmp_path)


def test_time_of_a_queue_counts_from_its_start(queue, monkeypatch):
    starts = []
    monkeypatch.setattr('timm_lc.paper.reproduce.reproduce', lambda *arguments: starts.append(arguments[3]) or True)
    assert queue('--max-minutes', '1') == 0
    assert len(starts) == 3
    assert len(set(starts)) == 1
    assert 0 <= time.monotonic() - starts[0] < 60


def test_unfinished_run_is_adopted_and_goes_on(queue, tmp_path, capsys):
    model = ['--model', 'lc_lowres_resnet20', '--model-kwargs', 'freeze_spatial=False']
    script = (
        'import sys; from timm_lc.cli import main; from timm_lc.training import trainer\n'
        'trainer.SAVE_SECONDS, rate = 0, trainer.learning_rate\n'
        'def stop(recipe, step, steps):\n'
        '    if step == 2: sys.exit(9)\n'
        '    return rate(recipe, step, steps)\n'
        'trainer.learning_rate = stop; main(sys.argv[1:])'
    )
    command = [sys.executable, '-c', script, 'cifar', *model, *COMMON, '--output', 'elsewhere']
    assert subprocess.run(command, capture_output=True, env=CHECKOUT).returncode == 9
    (tmp_path / 'queue.txt').write_text('fig1 --only plain --values 1 --runs 1')
    assert queue('--adopt', 'elsewhere', '--dry-run') == 0
    assert 'interrupted lc_lowres_resnet20-seed0-' in capsys.readouterr().out
    first = (tmp_path / 'elsewhere/seed0/metrics.jsonl').read_text()
    assert queue() == 0
    (folder,) = folders(tmp_path)
    assert (folder / 'metrics.jsonl').read_text().startswith(first)  # with the seconds of its first epoch


@pytest.mark.parametrize(
    ('bad', 'message'),
    [
        ('fig2 --nonsense 1', 'unrecognized arguments: --nonsense 1'),
        ('fig2 --runs many', "argument --runs: invalid int value: 'many'"),
        ('fig2 --only "plain', 'No closing quotation'),
        ('--runs 1', 'must hold IDs and arguments, got --runs 1'),
        ('fig1 --queue other', 'must hold IDs and arguments, got fig1 --queue other'),
        ('fig99 --runs 1', "unknown experiment 'fig99'; did you mean fig9?"),
        ('fig1 --values 7', '`values` must be of the axis, got 7; the axis has 1, 2, 4'),
        ('fig1 --only nothing', 'no point of fig1 is left by `--only` and `--values`'),
        ('fig1 --data nosuch', "or a folder, got 'nosuch'"),
        ('fig1 --lr 0', '`lr` must be a positive number, got 0.0'),
        ('fig1 --device meta', '`--device meta`: '),
    ],
)
def test_bad_line_is_named_before_any_line_is_done(queue, tmp_path, bad, message, capsys):
    (tmp_path / 'queue.txt').write_text(f'fig1 --only plain --values 1 --runs 1\n# then\n{bad}\n')
    with pytest.raises(SystemExit, match='2'):
        queue()
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith('timm-lc reproduce: error: queue.txt, line 3: ')
    assert message in error
    assert not (tmp_path / 'output').exists()
    assert not (tmp_path / 'results').exists()


def test_line_that_fails_in_training_is_named(queue, tmp_path, capsys):
    (tmp_path / 'queue.txt').write_text('fig1 --only plain --values 1 --runs 1 --lr 1e30')
    with pytest.raises(SystemExit, match='2'):
        queue()
    assert 'error: queue.txt, line 1: `lr` 1e+30: the loss of epoch 1 is nan' in capsys.readouterr().err


def test_queue_that_is_not_text_is_named(queue, tmp_path, capsys):
    (tmp_path / 'queue.txt').write_bytes('fig1  # Größe'.encode('latin-1'))
    with pytest.raises(SystemExit, match='2'):
        queue()
    assert '`--queue` must be a file of UTF-8 text, got queue.txt: ' in capsys.readouterr().err


def test_missing_queue_is_named(queue, tmp_path, capsys):
    (tmp_path / 'queue.txt').unlink()
    with pytest.raises(SystemExit, match='2'):
        queue()
    assert '`--queue` must be a file of IDs and arguments, got queue.txt, which is not there' in capsys.readouterr().err


def test_experiments_beside_a_queue_are_refused(queue, capsys):
    with pytest.raises(SystemExit, match='2'):
        queue('fig1')
    assert 'give IDs or `--queue`, not both; got fig1' in capsys.readouterr().err


def test_committed_queue_is_of_whole_runs_in_the_order_of_value(tmp_path, monkeypatch, capsys):
    queue = Path(__file__).parents[2] / 'results/queue.txt'
    monkeypatch.chdir(tmp_path)
    assert main(['reproduce', '--queue', str(queue), '--device', 'cpu', '--dry-run']) == 0
    runs = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith('missing  ')]
    networks = [name.rpartition('-')[0] for name in dict.fromkeys(runs)]
    assert networks[:6] == [
        'lc_lowres_resnet20-seed0', 'lc_resnet20_16x128-seed0', 'lc_resnet20_16x128-seed0', 'lc_resnet20_16x8-seed0',
        'lc_resnet20_16x8-seed0', 'lc_resnet20_16x128-seed0',
    ]  # fmt: skip
    # seeds of the first three, the rest of the axis, learnable E = 1, larger kernels at E = 8 and 1, figure 3's
    assert len(networks) == 6 + 2 * 3 + 4 + 1 + 4 * 2 + 2 + 4


def test_committed_queue_of_theory_is_understood_and_repeats_no_run(tmp_path, monkeypatch, capsys):
    queue = Path(__file__).parents[2] / 'results/queue-theory.txt'
    monkeypatch.chdir(tmp_path)
    assert main(['reproduce', '--queue', str(queue), '--device', 'cpu', '--dry-run']) == 0
    runs = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith('missing  ')]
    # 7 networks of the control at 3 seeds, 3 and 6 of the two forms, 4 of the span, 3 networks at 5 more learning rates
    # and 2 more seeds of their best, 2 expansions beyond the paper's, 3 networks of 3 larger kernels, 2 at E = 32
    assert len(set(runs)) == 7 * 3 + 3 + 6 + 4 + 3 * (5 + 2) + 2 + 3 * 3 + 2
