"""The command `timm-lc`."""

import os
import re
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
from timm_lc import save_pretrained
from timm_lc.cli import main
from timm_lc.training import demo
from timm_lc.training.digits import Digits

ROOT = Path(__file__).parents[2]


def test_list_prints_the_names_that_match(capsys):
    assert main(['list', 'lc_resnet20_16x*']) == 0
    assert capsys.readouterr().out.split() == [f'lc_resnet20_16x{1 << power}' for power in range(8)]


def test_list_takes_part_of_a_name(capsys):
    assert main(['list', 'wide_resnet50']) == 0
    assert set(capsys.readouterr().out.split()) == {'lc_wide_resnet50_2', 'lc_lowres_wide_resnet50_2'}
    assert main(['list', 'lc_wide_resnet']) == 0
    assert set(capsys.readouterr().out.split()) == {'lc_wide_resnet50_2', 'lc_wide_resnet101_2'}


def test_info_prints_layers_and_totals(capsys):
    assert main(['info', 'lc_resnet50']) == 0
    out = capsys.readouterr().out
    assert '14,230,376 learnable, 25,557,032 total, 14,230,376 stored' in out
    assert 'multiply-adds for one 3x224x224 image: 4,089,184,256' in out  # torchvision's published 4.09 G
    assert len([line for line in out.splitlines() if 'spatial' in line and 'frozen' in line]) == 17


def test_info_shows_sharing_and_the_bytes_of_a_checkpoint(capsys, tmp_path):
    assert main(['info', 'lc_resnet20_16x2', '--model-kwargs', 'share_weights=True', 'recycle=4']) == 0
    out = capsys.readouterr().out
    assert 'shared, seed=0, period=' in out
    model = timm.create_model('lc_resnet20_16x2', share_weights=True, recycle=4)
    save_pretrained(model, tmp_path)
    size = (tmp_path / 'model.safetensors').stat().st_size
    printed = int(out.split('checkpoint: ')[1].split(' bytes')[0].replace(',', ''))
    assert printed == size


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['info', 'lc_resnet20_16x24'], 'are lc_resnet_cifar, `--model-kwargs depth=20 width=16 expansion=24`'),
        (['export', 'm', '--to', 'plain', '--output', __file__], '`--output` must be a folder, got the file'),
        (['info', 'lc_resnet51'], 'did you mean .*lc_resnet50'),
        (['info', 'lc_resnet18', '--model-kwargs', 'expansion=0'], '`expansion` must be a positive integer, got 0'),
        (['info', 'lc_resnet18', '--model-kwargs', 'expansion'], 'must be key=value'),
        (['info', 'lc_resnet18', '--model-kwargs', 'no_such=1'], 'no_such'),
        (['info', 'lc_resnet18', '--model-kwargs', 'pretrained=True'], 'error: No pretrained weights exist'),
        (['info', 'lc_resnet18', '--model-kwargs', 'checkpoint_path=nosuch.pth'], 'error: FileNotFoundError'),
        (['prune', 'm', '--amounts', '0:0.5:0.5', '--data-dir', '.', '--dense', '--output', 'o'], 'give it too'),
        (['list', 'nothing'], "no lc_ model matches 'nothing'"),
        (['demo', '--epochs', '0'], '`epochs` must be a positive integer, got 0'),
        (['demo', '--model', 'lc_resnet20_16x9'], 'LCResNets of other sizes are lc_resnet_cifar'),
        (['demo', '--model', 'resnet18'], "`--model` must be an lc_ model, as lc_resnet18, got 'resnet18'"),
        (['demo', '--seed', '-1'], '`seed` must be .*got -1'),
        (['demo', '--data-dir', '/no/such/folder'], r'/no/such/folder has no folder train/'),
    ],
)
def test_bad_input_leaves_with_status_2_and_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert exit_info.value.code == 2
    *usage, error = [line for line in capsys.readouterr().err.splitlines() if 'shows its arguments' not in line]
    assert re.search(message, error)
    assert all(line.startswith(('usage: ', ' ')) for line in usage)


def write_images(root, classes, count, size=32):
    random = np.random.default_rng(0)
    for split in ('train', 'validation'):
        for label in range(classes):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 60, (size, size, 3)) + 150 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{index}.png')


def test_demo_refuses_a_single_class(tmp_path, capsys):
    write_images(tmp_path, classes=1, count=2)
    with pytest.raises(SystemExit):
        main(['demo', '--data-dir', str(tmp_path)])
    assert 'two or more classes' in capsys.readouterr().err


def test_demo_refuses_a_folder_without_images(tmp_path, capsys):
    for split in ('train', 'validation'):
        (tmp_path / split / '0').mkdir(parents=True)
    with pytest.raises(SystemExit):
        main(['demo', '--data-dir', str(tmp_path)])
    assert str(tmp_path) in capsys.readouterr().err


def test_a_class_of_the_demo_may_be_named_train(tmp_path):
    for name in ('train', 'truck'):
        (tmp_path / 'train' / name).mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(tmp_path / 'train' / name / '0.png')
    assert list(demo._folder(tmp_path, 'train').reader.class_to_idx) == ['train', 'truck']


def test_demo_trains_saves_reloads_and_folds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('timm_lc.training.demo.os.cpu_count', lambda: 0)
    write_images(tmp_path / 'images', classes=2, count=40)
    argv = ['demo', '--model', 'lc_resnet20_16x1', '--epochs', '2', '--data-dir', str(tmp_path / 'images')]
    assert main([*argv, '--output', str(tmp_path / 'out')]) == 0
    out = capsys.readouterr().out
    assert '80 images of 2 classes, 80 held out' in out
    assert '100.00% of predictions the same' in out
    state = torch.load(tmp_path / 'out' / 'frozen' / 'last.pth.tar', weights_only=True)['state_dict']
    assert 'conv1.spatial.record' in state
    assert 'conv1.spatial.weight' not in state
    card = (tmp_path / 'out/frozen/README.md').read_text()
    accuracy = re.search(r'frozen random +([\d.]+)%', out).group(1)
    assert f'| Top-1 accuracy | {accuracy} % |' in card
    assert 'timm-lc demo --model lc_resnet20_16x1 --epochs 2 --seed 0 --data-dir DIR' in card
    assert 'On images, after 2 epochs:' in card
    assert 'The classes: 0, 1.' in card
    (tmp_path / 'out/frozen/notes.txt').touch()
    assert main([*argv[:3], '--epochs', '1', *argv[5:], '--output', str(tmp_path / 'out')]) == 0
    assert 'the network of an earlier run there is replaced' in capsys.readouterr().out
    names = {path.name for path in (tmp_path / 'out/frozen').iterdir()}
    assert 'checkpoint-1.pth.tar' not in names  # of the earlier run
    assert {'notes.txt', 'checkpoint-0.pth.tar', 'model.safetensors'} <= names


def test_demo_saves_the_images_as_its_accuracy_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr('timm_lc.training.demo.os.cpu_count', lambda: 0)
    write_images(tmp_path / 'images', classes=2, count=2)
    argv = ['demo', '--model', 'lc_test_resnet', '--epochs', '1', '--data-dir', str(tmp_path / 'images')]
    assert main([*argv, '--output', str(tmp_path / 'out')]) == 0
    for name in ('frozen', 'learnable'):
        model = timm.create_model(f'local-dir:{tmp_path / "out" / name}', pretrained=True)
        images = timm.data.resolve_data_config(model=model, use_test_size=True)  # as validate.py
        assert (tuple(images['input_size']), images['crop_pct']) == ((3, 160, 160), 1.0)


@pytest.mark.parametrize('name', ['frozen', 'learnable'])
def test_demo_leaves_a_run_of_train_alone(name, tmp_path, capsys):
    write_images(tmp_path / 'images', classes=2, count=2)
    files = [tmp_path / name / file for file in ('args.yaml', 'model_best.pth.tar')]
    files[0].parent.mkdir()
    for path in files:
        path.touch()
    with pytest.raises(SystemExit):
        main(['demo', '--model', 'lc_resnet20_16x1', '--epochs', '1', '--data-dir', str(tmp_path / 'images'),
              '--output', str(tmp_path)])  # fmt: skip
    assert f'{name} holds a run of train.py' in ' '.join(capsys.readouterr().err.split())
    assert all(path.exists() for path in files)


def test_digits_are_split_once_and_for_all():
    train, held_out = Digits(train=True), Digits(train=False)
    assert (len(train), len(held_out)) == (1347, 450)
    assert set(train.labels) == set(held_out.labels) == set(range(10))
    assert train[0][0].size == (32, 32)


def test_recipes_are_listed_and_printed(capsys):
    folder = ROOT / 'train_configs'
    assert main(['recipes']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in folder.glob('*.yaml'))
    assert "the paper's on ImageNet" in next(line for line in lines if line.startswith('rsb_a2'))
    assert main(['recipes', 'rsb_a2']) == 0
    assert capsys.readouterr().out == (folder / 'rsb_a2.yaml').read_text()


def test_version_names_what_a_report_of_a_fault_needs(capsys):
    with pytest.raises(SystemExit, match='0'):
        main(['--version'])
    printed = capsys.readouterr().out
    assert printed.startswith(f'timm-lc {timm_lc.__version__} (timm {timm.__version__}, torch {torch.__version__}, ')


def test_errors_are_a_line_and_where_to_read_more(capsys):
    with pytest.raises(SystemExit, match='2'):
        main(['prune', 'folder'])
    assert capsys.readouterr().err.splitlines() == [
        'timm-lc prune: error: the following arguments are required: --output',
        '`timm-lc prune --help` shows its arguments',
    ]


def test_a_closed_pipe_ends_a_command_quietly():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, '-m', 'timm_lc', 'list'], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b'')


def test_ctrl_c_while_importing_is_silent(tmp_path):
    (tmp_path / 'timm_lc').mkdir()
    (tmp_path / 'timm_lc/__init__.py').write_text('import time\nprint("importing", flush=True)\ntime.sleep(60)')
    code = (
        'import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.path.insert(0, sys.argv[1]);'
    )
    code += 'from timm_lc_command import main; sys.exit(main())'
    command = [sys.executable, '-c', code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b'importing\n'
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b''
    assert process.returncode == 130


def test_help_shows_an_example():
    shown = subprocess.run(
        [sys.executable, '-m', 'timm_lc', 'demo', '--help'], check=True, capture_output=True, text=True
    )
    assert 'timm-lc demo --epochs 10' in shown.stdout


def test_help_imports_nothing_of_ours_but_the_commands():
    code = (
        'import sys, timm_lc; before = set(sys.modules); from timm_lc.cli import main\ntry: main(["demo", "--help"])\n'
    )
    code += 'except SystemExit: print(*sorted(set(sys.modules) - before), file=sys.stderr)'
    done = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True)
    brought = {name for name in done.stderr.split() if not name.startswith('timm_lc.commands')}
    assert brought - {'timm_lc.cli', 'argparse', 'gettext', 'shutil'} == set()
