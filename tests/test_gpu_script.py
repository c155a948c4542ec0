"""benchmarks/gpu.sh: its commands work, tiny and on a CPU, and it goes on with what is not done."""

import os
import runpy
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from timm_lc.cli import main

SCRIPT = Path(__file__).resolve().parents[1] / 'benchmarks' / 'gpu.sh'
PARTS = [
    'bench-graphs', 'bench-eager', 'cifar', 'bench-compiled', 'bench-large', 'bench-large-graphs',
    'imagenet-lc_test_resnet', 'resnet50-compiled', 'fig1', 'sync-bn', 'scaler', 'seeds-in-turn', 'seeds-at-once',
]  # fmt: skip


def gpu_sh(*arguments, **variables):
    return subprocess.run(
        ['bash', str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **variables}
    )


def listed(output, data, **variables):
    shown = gpu_sh(output, data, LIST='1', **variables)
    assert shown.returncode == 0, shown.stderr
    return {name: shlex.split(command) for name, command in (line.split('\t') for line in shown.stdout.splitlines())}


def test_parts_are_these_with_all_networks_of_table_2(tmp_path):
    tiny, real = listed(tmp_path, 'cifar10', DRY='1'), listed(tmp_path, 'cifar10')
    assert list(tiny) == PARTS
    assert [name for name in real if not name.startswith('imagenet')] == [p for p in PARTS if 'imagenet' not in p]
    assert sum(name.startswith('imagenet') for name in real) == 7
    assert all('cuda' in command for command in real.values())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', PARTS)
def test_each_command_runs(name, tmp_path, images_in, monkeypatch, capsys):
    images_in(tmp_path / 'data' / 'train')
    images_in(tmp_path / 'data' / 'validation')
    program, *arguments = listed(tmp_path / 'out', tmp_path / 'data', DRY='1')[name]
    monkeypatch.setattr('timm_lc.paper.bench._import', lambda runs: 0.0)  # processes that import timm take long
    monkeypatch.setattr('timm_lc.paper.bench.measure_memory', lambda *args: {})
    if program == 'timm-lc':
        assert main(arguments) == 0
    else:
        assert program == 'python'
        monkeypatch.setattr(sys, 'argv', arguments)
        with pytest.raises(SystemExit, match='0'):
            runpy.run_path(arguments[0], run_name='__main__')


@pytest.fixture
def recorded(tmp_path):
    """Return a file in which stand-ins for timm-lc and python, first on the path, write what they are called with."""
    calls, programs = tmp_path / 'calls', tmp_path / 'programs'
    programs.mkdir()
    for name in ('timm-lc', 'python'):
        path = programs / name
        path.write_text(
            f'#!/usr/bin/env bash\necho {name} "$@" >> {calls}\n'
            'if [[ $1 == cifar && -z ${WELL-} ]]; then exit 1; fi\n'
            'if [[ $2 == fig1 && -z ${WELL-} ]]; then echo "stopped; the same command goes on"; fi\n'
        )
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return calls, f'{programs}{os.pathsep}{os.environ["PATH"]}'


def test_what_is_not_done_is_run_again(tmp_path, recorded):
    calls, path = recorded
    out = tmp_path / 'out'
    first = gpu_sh(out, 'cifar10', DRY='1', PATH=path)
    assert first.returncode == 1  # runs of cifar failed, and figure 1 has more to do
    assert len(calls.read_text().splitlines()) == len(PARTS)
    left = [name for name in PARTS if not (out / f'{name}.done').exists()]
    assert left == ['cifar', 'fig1', 'seeds-in-turn', 'seeds-at-once']
    assert first.stdout.count('not done: see ') == len(left)
    calls.unlink()
    assert gpu_sh(out, 'cifar10', DRY='1', PATH=path, WELL='1').returncode == 0
    assert len(calls.read_text().splitlines()) == len(left)


def test_parts_can_be_chosen(tmp_path, recorded):
    calls, path = recorded
    assert gpu_sh(tmp_path / 'out', 'cifar10', DRY='1', PATH=path, ONLY='s.*-bn|scaler').returncode == 0
    assert [line.split()[2] for line in calls.read_text().splitlines()] == ['sync-bn', 'scaler']


def test_folders_must_be_given(tmp_path):
    assert 'give cifar10, or a folder of images' in gpu_sh(tmp_path).stderr
