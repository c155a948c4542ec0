"""timm's own train.py, unmodified: killed and resumed, in two processes, and given names that are wrong.

benchmarks/stock_scripts.py tries every flag; these are the properties that take more than one run.
"""

import argparse
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import timm_lc  # noqa: F401  # registers the names

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = os.environ.get('TIMM_SCRIPTS')
pytestmark = pytest.mark.skipif(
    not SCRIPTS, reason='set TIMM_SCRIPTS to a checkout of https://github.com/huggingface/pytorch-image-models'
)
# No augmentation and no label smoothing: the loss is that of the images, and falls.
PLAIN = '--device cpu --img-size 32 -j 0 --no-aug --smoothing 0 --warmup-epochs 0 --log-interval 1 --output .'
SHARED = {'share_weights': True, 'recycle': 4}
NETWORKS = [('lc_resnet18', {}), ('lc_resnet20_16x8', SHARED), ('lc_resnet20_16x8', {'implicit': True})]
COLOURS = [(160, 96, 96), (96, 160, 96), (96, 96, 160), (128, 128, 128)]


@pytest.fixture(scope='module')
def train_script(tmp_path_factory):
    """Return a train.py that has no `timm` of the checkout beside it, which it would import."""
    return shutil.copy2(Path(SCRIPTS, 'train.py'), tmp_path_factory.mktemp('scripts'))


@pytest.fixture
def start(train_script, tmp_path):
    """Return a function that starts train.py in a folder of its own, watched by benchmarks/filter_probe.py."""

    def start(name, arguments, *, model='lc_resnet18', kwargs=None, launcher=(), modules=()):
        folder = tmp_path / name
        folder.mkdir()
        options = [f'{key}={value}' for key, value in (kwargs or {}).items()]
        command = [
            sys.executable,
            *launcher,
            str(train_script),
            *PLAIN.split(),
            '--experiment',
            'run',
            '--model',
            model,
        ]
        command += [*arguments.split(), '--device-modules', 'timm_lc', 'filter_probe', *modules]
        command += ['--model-kwargs', *options] if options else []
        paths = os.pathsep.join(map(str, (ROOT, ROOT / 'benchmarks')))
        environment = os.environ | {'PYTHONPATH': paths, 'FILTER_PROBE': str(folder), 'OMP_NUM_THREADS': '1'}
        return subprocess.Popen(
            command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    return start


@pytest.fixture
def finish(start):
    """Return a function that runs train.py to its end and returns what it printed."""

    def finish(*args, **kwargs):
        process = start(*args, **kwargs)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return output

    return finish


def write_images(folder, classes, count):
    """Write `count` images of each class, noise around its colour."""
    random = np.random.default_rng(0)
    for label in range(classes):
        (folder / str(label)).mkdir(parents=True)
        for index in range(count):
            pixels = COLOURS[label] + random.integers(-64, 64, (32, 32, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / str(label) / f'{index}.png')


def build(model, kwargs, seed=0):
    return timm.create_model(model, num_classes=4, seed=seed, **kwargs)


def frozen(model):
    """Return {name: CRC-32} of the buffers that never change in training."""
    named = {name: b for name, b in model.named_buffers() if name.endswith(('weight', 'vector', 'record'))}
    return {name: zlib.crc32(buffer.contiguous().numpy().tobytes()) for name, buffer in named.items()}


def assert_filters_never_changed(folder, model, kwargs, *, ranks=1, networks=('model',)):
    """Compare the filters in the memory of each rank, after the first step and at the end, with a new network's."""
    expected = frozen(build(model, kwargs))
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob('rank*.json')}
    each_time = dict.fromkeys(networks, expected)
    assert found == {f'rank{rank}': {'first': each_time, 'last': each_time} for rank in range(ranks)}


def assert_state_has_filters(state, model, kwargs):
    """A network of another seed that loads `state` takes on the filters that training began with."""
    loaded = build(model, kwargs, seed=17)
    loaded.load_state_dict(state)
    modules = dict(loaded.named_modules())
    convs = {
        n: m for n, m in build(model, kwargs).named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1
    }
    assert convs
    for name, conv in convs.items():
        mine, theirs = (getattr(module, 'gram', module.weight) for module in (modules[name], conv))
        assert torch.equal(mine, theirs)


def load(path):
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location='cpu', weights_only=True)


def losses_in(output):
    return [float(loss) for loss in re.findall(r'Train: .*?Loss: +(\S+)', output)]


def kill_in_second_epoch(process):
    """Kill train.py after the fifth of the eight steps of epoch 1; return what it had printed."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(r'Train: 1 \[ +4/8', line):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL, ''.join(lines)
    return ''.join(lines)


@pytest.mark.parametrize(('model', 'kwargs'), NETWORKS)
def test_a_killed_run_resumes(model, kwargs, start, finish, tmp_path):
    write_images(tmp_path / 'images' / 'train', classes=4, count=16)
    write_images(tmp_path / 'images' / 'validation', classes=4, count=2)
    options = f'--data-dir {tmp_path}/images --num-classes 4 -b 8 --epochs 3 --sched step --lr 0.005 --model-ema'
    options += ' --model-ema-decay 0.5 --recovery-interval 3'
    before = losses_in(kill_in_second_epoch(start('killed', options, model=model, kwargs=kwargs)))

    # timm writes a checkpoint under a temporary name first: a file with a checkpoint's name is whole
    files = [path for path in (tmp_path / 'killed' / 'run').glob('*.pth.tar') if not path.name.endswith('tmp.pth.tar')]
    assert {path.name for path in files} >= {'last.pth.tar', 'checkpoint-0.pth.tar', 'recovery-1-2.pth.tar'}
    for path in files:
        for key in ('state_dict', 'state_dict_ema'):
            assert_state_has_filters(load(path)[key], model, kwargs)

    recovery = tmp_path / 'killed' / 'run' / 'recovery-1-2.pth.tar'
    output = finish('resumed', f'{options} --resume {recovery}', model=model, kwargs=kwargs)
    after = losses_in(output)
    assert len(after) == 8  # timm goes on with the next epoch
    assert np.mean(before[-4:]) < before[0] / 2
    assert np.mean(after[:4]) < before[0] / 2  # and not from the start
    assert_filters_never_changed(tmp_path / 'resumed', model, kwargs, networks=('model', 'ema'))
    last = load(tmp_path / 'resumed' / 'run' / 'last.pth.tar')
    assert last['epoch'] == 2
    for key in ('state_dict', 'state_dict_ema'):
        assert_state_has_filters(last[key], model, kwargs)


@pytest.mark.parametrize('kwargs', [{}, SHARED, {'implicit': True}])
def test_two_processes_follow_one_that_accumulates(kwargs, finish, tmp_path):
    """With two images and batches of one, train.py's samplers, which shuffle differently, give the same halves."""
    write_images(tmp_path / 'images' / 'train', classes=2, count=1)
    options = f'--data-dir {tmp_path}/images --val-split= --num-classes 4 -b 1 --epochs 6 --lr 0.01'
    network = {'model': 'lc_resnet20_16x8', 'kwargs': kwargs}
    two = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2')
    finish('one', f'{options} --grad-accum-steps 2', **network)
    # train.py gives DistributedDataParallel device_ids, which it refuses on a CPU: `cpu_ddp` drops them
    finish('two', f'{options} --no-ddp-bb', launcher=two, modules=('cpu_ddp',), **network)

    one, two = (epoch_losses(tmp_path / name / 'run' / 'summary.csv') for name in ('one', 'two'))
    assert len(one) == 6
    assert one[-1] < one[0] / 2
    assert two == pytest.approx(one, rel=1e-4)
    learned = [name for name, _ in build(**network).named_parameters()]
    ends = [load(tmp_path / name / 'run' / 'last.pth.tar')['state_dict'] for name in ('one', 'two')]
    for name in learned:
        torch.testing.assert_close(ends[1][name], ends[0][name], rtol=1e-3, atol=1e-5)
    assert_filters_never_changed(tmp_path / 'one', ranks=1, **network)
    assert_filters_never_changed(tmp_path / 'two', ranks=2, **network)


def test_implicit_blocks_follow_explicit_ones(finish, tmp_path):
    """Print the same losses to three digits over an epoch, in float32."""
    write_images(tmp_path / 'images' / 'train', classes=4, count=64)
    options = f'--data-dir {tmp_path}/images --val-split= --num-classes 4 -b 16 --epochs 1 --lr 0.0003'
    options += ' --opt sgd --opt-kwargs nesterov=True --weight-decay 0.01'
    found = {}
    # a gentle rate: rounding turns the sign of some unit before its ReLU, and training amplifies that
    for name, kwargs in {'explicit': {}, 'implicit': {'implicit': True}, 'other': {'expansion': 32}}.items():
        found[name] = losses_in(finish(name, options, model='lc_resnet20_16x8', kwargs=kwargs))
    assert len(found['explicit']) == 16
    assert found['implicit'] == pytest.approx(found['explicit'], rel=5e-3)
    assert found['other'] != pytest.approx(found['explicit'], rel=5e-2)


def epoch_losses(path):
    with path.open() as file:
        return [float(row['train_loss']) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ('--model lc_resnet51', r'Unknown model \(lc_resnet51\)'),
        ('--opt l1_sgd --opt-kwargs l1=5e-5', r"SGD.__init__\(\) got an unexpected keyword argument 'l1'"),
        ('--opt l1sgd --opt-kwargs l1=-1', r'`l1` must be finite and at least 0, got -1'),
        ('--opt l1sgd --opt-kwargs l1=5e-5 --model test_vit', r'penalises pointwise convolution weights, and none of'),
    ],
)
def test_train_script_refuses(wrong, message, start, tmp_path):
    write_images(tmp_path / 'images' / 'train', classes=2, count=1)
    model = wrong.split('--model ')[-1] if '--model' in wrong else 'lc_resnet18'
    process = start('run', f'--data-dir {tmp_path}/images --val-split= -b 1 {wrong}', model=model)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert re.search(message, output.splitlines()[-1])
