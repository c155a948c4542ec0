"""Adapters through timm's own train.py and validate.py, unmodified: killed and resumed, with a moving average."""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import timm_lc
from timm_lc.checkpoints.checkpoint import load_model

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = os.environ.get('TIMM_SCRIPTS')
pytestmark = pytest.mark.skipif(
    not SCRIPTS, reason='set TIMM_SCRIPTS to a checkout of https://github.com/huggingface/pytorch-image-models'
)
COLOURS = [(160, 96, 96), (96, 160, 96), (96, 96, 160), (128, 128, 128)]


@pytest.fixture
def run(tmp_path):
    """Return a function that starts a script in a folder without timm's checkout beside it."""

    def run(script, *arguments, launcher=()):
        (tmp_path / 'scripts').mkdir(exist_ok=True)
        shutil.copy2(Path(SCRIPTS, script), tmp_path / 'scripts' / script)
        environment = os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
        command = [sys.executable, *launcher, str(tmp_path / 'scripts' / script), *map(str, arguments)]
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    return run


@pytest.fixture
def images_dir(tmp_path):
    """Write noise around a colour for each of four classes, as an ImageFolder tree."""
    random = np.random.default_rng(0)
    for split, count in (('train', 16), ('validation', 4)):
        for label, colour in enumerate(COLOURS):
            folder = tmp_path / 'images' / split / str(label)
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.array(colour) + random.integers(-64, 64, (32, 32, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{index}.png')
    return tmp_path / 'images'


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def losses_in(output):
    return [float(loss) for loss in re.findall(r'Train: .*?Loss: +(\S+)', output)]


def load(path):
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location='cpu', weights_only=True)


def test_a_killed_run_resumes_from_small_checkpoints_and_leaves_the_base(run, images_dir, tmp_path):
    base = timm.create_model('resnet18', num_classes=7)
    timm_lc.save_pretrained(base, tmp_path / 'base', card='')
    before = (tmp_path / 'base' / 'model.safetensors').read_bytes()
    options = f'--data-dir {images_dir} --model lc_resnet18 --num-classes 4 --device cpu --img-size 32 -j 0 --no-aug'
    options += ' --smoothing 0 --warmup-epochs 0 --log-interval 1 --output . --experiment run -b 8 --epochs 3 --lr 0.02'
    options += ' --sched step --model-ema --model-ema-decay 0.5 --channels-last --device-modules timm_lc'
    kwargs = ['--model-kwargs', 'adapter=8', f'base=local-dir:{tmp_path / "base"}']
    process = run('train.py', *options.split(), *kwargs)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(r'Train: 1 \[ +4/8', line):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL, ''.join(lines)

    first = tmp_path / 'run' / 'checkpoint-0.pth.tar'
    shutil.copy2(first, tmp_path / 'first.pth.tar')
    resumed = [
        *options.replace('--experiment run', '--experiment resumed').split(),
        '--resume',
        tmp_path / 'first.pth.tar',
    ]
    losses = losses_in(finish(run('train.py', *resumed, *kwargs)))
    assert len(losses) == 16
    assert np.mean(losses[-4:]) < losses_in(''.join(lines))[0] / 2

    last = load(tmp_path / 'resumed' / 'last.pth.tar')
    fresh = timm.create_model('lc_resnet18', adapter=8, base=f'local-dir:{tmp_path / "base"}', num_classes=4)
    for key in ('state_dict', 'state_dict_ema'):
        assert set(last[key]) == set(fresh.state_dict())
        held = sum(tensor.nbytes for tensor in last[key].values())
        assert held < sum(p.nbytes for p in base.parameters()) / 20
        fresh.load_state_dict(last[key])
    assert (tmp_path / 'base' / 'model.safetensors').read_bytes() == before

    model = load_model(tmp_path / 'resumed')
    path = timm_lc.save_adapter(model, tmp_path / 'task.safetensors')
    served = timm.create_model('resnet18', num_classes=7)
    served.load_state_dict(base.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(timm_lc.load_adapter(served.eval(), path)(images), model(images))

    checkpoint = tmp_path / 'resumed' / 'last.pth.tar'
    validate = f'--data-dir {images_dir} --split validation --model lc_resnet18 --num-classes 4 --img-size 32 -j 0'
    validate += f' --device cpu --checkpoint {checkpoint}'
    output = finish(run('validate.py', *validate.split(), *kwargs, launcher=('-m', 'timm_lc', 'run')))
    assert float(re.findall(r'Acc@1 ([\d.]+)', output)[-1]) > 50
