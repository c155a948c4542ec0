"""The CIFAR trainer against torchvision's transforms and a plain PyTorch loop; data sets read and refused."""

import copy
import dataclasses
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_dataset
from torch import nn
from torchvision.transforms import functional

from timm_lc.cli import main
from timm_lc.paper.experiment import Point
from timm_lc.paper.results import Line, Results
from timm_lc.paper.runs import train_once
from timm_lc.training import trainer
from timm_lc.training.data import Images, augment, load_images
from timm_lc.training.files import lock, read_lines
from timm_lc.training.parallel import in_parallel
from timm_lc.training.recipe import Recipe, Run, Speed
from timm_lc.training.trainer import epoch_draws, evaluate, learning_rate, train

CPU = torch.device('cpu')
KWARGS = {'depth': 8, 'width': 4, 'expansion': 2}
RUN = Run('lc_resnet_cifar', KWARGS, seed=3, recipe=Recipe(epochs=4, batch_size=16))


@pytest.fixture(scope='module')
def images():
    generator = torch.Generator().manual_seed(0)
    labels = [torch.arange(count) % 3 for count in (72, 20)]
    pixels = [torch.randint(256, (len(part), 3, 16, 16), generator=generator, dtype=torch.uint8) for part in labels]
    return Images('noise', ['a', 'b', 'c'], pixels[0], labels[0], pixels[1], labels[1])


@pytest.fixture
def tree(tmp_path):
    """Return a writer of ImageFolder trees of random images."""

    def write(sizes=((8, 8), (8, 8)), classes=('cat', 'dog'), splits=('train', 'validation')):
        for split in splits:
            for name in classes:
                (tmp_path / split / name).mkdir(parents=True)
                for index, size in enumerate(sizes):
                    pixels = np.random.default_rng(index).integers(0, 256, (*size, 3), np.uint8)
                    Image.fromarray(pixels).save(tmp_path / split / name / f'{index}.png')
        return tmp_path

    return write


def weights(directory):
    return torch.load(directory / 'state.pt', weights_only=True)['model']


def test_augmentation_is_torchvisions_pixel_by_pixel():
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(256, (81 * 2, 3, 32, 24), generator=generator, dtype=torch.uint8)
    every = torch.cartesian_prod(torch.arange(9), torch.arange(9), torch.arange(2))  # all crops, mirrored or not
    changed = augment(batch, every[:, 2].bool(), every[:, :2])
    for image, (top, left, flip), result in zip(batch, every.tolist(), changed, strict=True):
        crop = functional.crop(functional.pad(image, [4]), top, left, 32, 24)
        assert torch.equal(result, functional.hflip(crop) if flip else crop)


def test_statistics_are_numpys(images):
    pixels = images.train.double().numpy() / 255
    mean, std = images.statistics
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)), rtol=1e-6)


def test_draws_are_a_function_of_seed_and_epoch():
    order, flips, offsets = epoch_draws(0, 0, 10_000)
    assert all(map(torch.equal, epoch_draws(0, 0, 10_000), (order, flips, offsets)))
    assert not torch.equal(order, epoch_draws(0, 1, 10_000)[0])
    assert not torch.equal(order, epoch_draws(1, 0, 10_000)[0])
    assert torch.equal(order.sort().values, torch.arange(10_000))
    assert flips.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.bincount(offsets.flatten()).tolist() == pytest.approx([20_000 / 9] * 9, rel=0.1)


def test_learning_rate_is_torchs_cosine():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    for step in range(40):
        assert learning_rate(Recipe(), step, 40) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(('drop_last', 'steps'), [(False, 5), (True, 4)])  # of 72 images the last 8 fill no batch
def test_an_epoch_is_that_of_a_plain_loop(images, tmp_path, drop_last, steps):
    run = Run('lc_resnet_cifar', KWARGS, seed=3, recipe=Recipe(epochs=1, batch_size=16, drop_last=drop_last))
    torch.manual_seed(3)
    model = timm.create_model('lc_resnet_cifar', num_classes=3, **KWARGS).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, nesterov=True, weight_decay=1e-2)
    order, flips, offsets = (draw.tolist() for draw in epoch_draws(3, 0, 72))
    mean, std = (
        (images.train.double() / 255).mean((0, 2, 3)),
        (images.train.double() / 255).std((0, 2, 3), correction=0),
    )
    for step in range(steps):
        indices = range(72)[16 * step : 16 * step + 16]
        batch = []
        for index in indices:
            crop = functional.crop(functional.pad(images.train[order[index]], [4]), *offsets[index], 16, 16)
            image = functional.hflip(crop) if flips[index] else crop
            batch.append(functional.normalize(functional.convert_image_dtype(image), mean.tolist(), std.tolist()))
        labels = images.train_labels[[order[index] for index in indices]]
        optimizer.param_groups[0]['lr'] = 0.01 * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        nn.CrossEntropyLoss(label_smoothing=0.1)(model(torch.stack(batch)), labels).backward()
        optimizer.step()
    train(run, images, tmp_path, CPU)
    expected, trained = model.state_dict(), weights(tmp_path)
    assert expected.keys() == trained.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(trained[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_evaluation_is_by_hand(images):
    model = timm.create_model('lc_resnet_cifar', num_classes=3, **KWARGS).eval()
    pixels = (images.validation.float() / 255 - images.statistics[0].view(3, 1, 1)) / images.statistics[1].view(3, 1, 1)
    logits = model(pixels)
    result = evaluate(model, images, batch_size=7)
    assert result['accuracy'] == (logits.argmax(1) == images.validation_labels).double().mean().item() * 100
    expected = nn.functional.cross_entropy(logits, images.validation_labels).item()
    assert result['validation_loss'] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('epoch', [1, 3])
def test_interrupted_run_goes_on_to_the_bit(images, tmp_path, monkeypatch, epoch):
    accuracy = train(RUN, images, tmp_path / 'whole', CPU)
    append = trainer.append_line

    def interrupt(path, line):
        append(path, line)  # killed between the line of metrics and the state
        if line['epoch'] == epoch:
            with path.open('a') as file:
                file.write('{"epoch": ')
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, 'append_line', interrupt)
    monkeypatch.setattr(trainer, 'SAVE_SECONDS', 0)
    with pytest.raises(KeyboardInterrupt):
        train(RUN, images, tmp_path / 'cut', CPU)
    monkeypatch.undo()
    assert train(RUN, images, tmp_path / 'cut', CPU) == accuracy
    whole, cut = (weights(tmp_path / name) for name in ('whole', 'cut'))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    lines = [[json.loads(line) for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
             for name in ('whole', 'cut')]  # fmt: skip
    assert [line['epoch'] for line in lines[1]] == [1, 2, 3, 4]
    assert [line['loss'] for line in lines[0]] == [line['loss'] for line in lines[1]]


def test_finished_run_is_not_repeated_and_its_checkpoint_loads(images, tmp_path, monkeypatch):
    accuracy = train(RUN, images, tmp_path, CPU)
    monkeypatch.setattr(trainer, '_train_epoch', None)
    assert train(RUN, images, tmp_path, CPU) == accuracy
    model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    assert evaluate(model, images)['accuracy'] == accuracy
    assert accuracy == json.loads((tmp_path / 'metrics.jsonl').read_text().splitlines()[-1])['accuracy']


def test_run_stops_before_an_epoch_that_would_be_late(images, tmp_path):
    for finished in (1, 2, 3):
        with pytest.raises(trainer.OutOfTime):
            train(RUN, images, tmp_path / 'cut', CPU, deadline=0)
        assert len((tmp_path / 'cut/metrics.jsonl').read_text().splitlines()) == finished
    assert train(RUN, images, tmp_path / 'cut', CPU, deadline=0) == train(RUN, images, tmp_path / 'whole', CPU)


def test_checksum_tells_images_apart(images):
    crc = 0
    for tensor in (images.train, images.train_labels, images.validation, images.validation_labels):
        crc = zlib.crc32(tensor.numpy().tobytes(), crc)
    assert int(images.checksum, 16) == crc
    assert images.map(lambda tensor: tensor[:-1]).checksum != images.checksum


def test_folder_of_another_run_is_refused(images, tmp_path):
    train(RUN, images, tmp_path, CPU)
    other = Run('lc_resnet_cifar', KWARGS, seed=4, recipe=Recipe(epochs=4, batch_size=16))
    with pytest.raises(ValueError, match='holds another run: `seed` was 3 and is 4; give another'):
        train(other, images, tmp_path, CPU)


def test_a_finished_run_tells_its_result_classes_and_command(images, tmp_path):
    accuracy = train(RUN, images, tmp_path, CPU)
    card = (tmp_path / 'README.md').read_text()
    assert f'| Top-1 accuracy | {accuracy:.2f} % |' in card
    assert 'On noise, after 4 epochs:' in card
    assert 'The classes: a, b, c.' in card
    command = next(line for line in card.splitlines() if line.startswith('timm-lc cifar'))
    assert '--model lc_resnet_cifar --data noise --epochs 4 --seed 3 --batch-size 16' in command
    assert ' --no-amp ' in command
    assert all(f'{key}={value}' in command for key, value in KWARGS.items())


def test_frozen_and_learnable_runs_are_paired_by_seed(images):
    models = []
    for freeze_spatial in (True, False):
        run = Run('lc_resnet_cifar', {**KWARGS, 'freeze_spatial': freeze_spatial}, seed=5)
        models.append(trainer._create(run, images, CPU, Speed())[0])
    frozen, learnable = models
    for name, parameter in frozen.named_parameters():
        assert torch.equal(parameter, learnable.get_parameter(name)), name
    assert torch.equal(frozen.conv1.spatial.weight, learnable.conv1.spatial.weight)


def test_penalty_makes_pointwise_weights_smaller(images, tmp_path):
    sums = {}
    for l1 in (0.0, 0.1):
        run = Run('lc_resnet_cifar', KWARGS, recipe=Recipe(epochs=2, batch_size=16, l1=l1))
        train(run, images, tmp_path / str(l1), CPU)
        sums[l1] = sum(w.abs().sum() for name, w in weights(tmp_path / str(l1)).items() if 'pointwise' in name)
    assert sums[0.1] < 0.9 * sums[0.0]


def test_training_leaves_the_given_images_and_random_state_alone(images, tmp_path):
    before, state = copy.deepcopy(images), torch.get_rng_state()
    train(RUN, images, tmp_path, CPU)
    assert torch.equal(images.train, before.train)
    assert torch.equal(torch.get_rng_state(), state)


def test_other_precision_does_not_go_on_with_a_run(images, tmp_path):
    with pytest.raises(trainer.OutOfTime):
        train(RUN, images, tmp_path, CPU, deadline=0)
    with pytest.raises(ValueError, match=r'`amp` must be False, as when .* was begun, got True'):
        train(RUN, images, tmp_path, CPU, trainer.Speed(amp=True))


def test_a_run_that_goes_on_otherwise_says_so(images, tmp_path, capsys):
    with pytest.raises(trainer.OutOfTime):
        train(RUN, images, tmp_path, CPU, deadline=0)
    train(RUN, images, tmp_path, CPU, trainer.Speed(channels_last=False))
    text = '`channels_last` was True and is False: the run goes on with other rounding'
    assert text in capsys.readouterr().out


def test_a_last_batch_of_one_image_is_refused_before_training(images, tmp_path):
    run = Run('lc_test_resnet', recipe=Recipe(epochs=1, batch_size=71))
    with pytest.raises(ValueError, match='`batch_size` 71 leaves a last batch of 1 of the 72 images, too few for lc_t'):
        train(run, images, tmp_path / 'run', CPU)
    assert not (tmp_path / 'run').exists()
    before = torch.get_rng_state()
    dropped = dataclasses.replace(run, model='lc_resnet_cifar', model_kwargs={**KWARGS, 'drop_rate': 0.5})
    train(dropped, images, tmp_path, CPU)  # its last map has several values
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize('content', [b'junk', b'', b'{}'])
def test_damaged_state_is_named(images, tmp_path, content):
    with pytest.raises(trainer.OutOfTime):
        train(RUN, images, tmp_path, CPU, deadline=0)
    (tmp_path / 'state.pt').write_bytes(content)
    with pytest.raises(ValueError, match=r'state\.pt is damaged: .*; without it the run begins anew'):
        train(RUN, images, tmp_path, CPU)


def test_refused_run_leaves_the_folder_to_the_next(images, tmp_path):
    diverging = Run('lc_resnet_cifar', KWARGS, recipe=Recipe(epochs=1, batch_size=16, lr=1e30))
    for run in (Run('lc_resnet_cifar', {**KWARGS, 'foo': 1}, recipe=RUN.recipe), diverging):
        with pytest.raises((TypeError, ValueError), match=r'foo|`lr` 1e\+30: the loss of epoch 1 is nan'):
            train(run, images, tmp_path, CPU)
    train(RUN, images, tmp_path, CPU)


def test_a_full_disk_is_told_and_leaves_the_state_before(images, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise RuntimeError('[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0')

    monkeypatch.setattr(trainer, 'SAVE_SECONDS', 0)
    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(OSError, match=r'cannot write .*state\.pt: .*unexpected pos'):
        train(RUN, images, tmp_path, CPU)
    assert {path.name for path in tmp_path.iterdir()} == {'run.json', 'metrics.jsonl'}


def test_training_leaves_the_random_state_as_it_was(images, tmp_path):
    before = torch.get_rng_state()
    train(RUN, images, tmp_path, CPU)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize('name', ['lc_inception_v3', 'vit_tiny_patch16_224'])
def test_network_that_does_not_take_the_images_is_named(name, images, tmp_path):
    run = Run(name, recipe=Recipe(batch_size=16))
    with pytest.raises(ValueError, match=rf'`model` {name} \{{\}} does not take images of 3 x 16 x 16'):
        train(run, images, tmp_path / 'run', CPU)
    assert not (tmp_path / 'run').exists()


def test_channel_of_one_value_trains(images, tmp_path):
    flat = images.map(lambda tensor: tensor.clone())
    flat.train[:, 1] = flat.validation[:, 1] = 7
    assert math.isfinite(train(RUN, flat, tmp_path, CPU))


def test_run_is_trained_by_one_process_at_a_time(images, tmp_path):
    with lock(tmp_path / 'run'), pytest.raises(trainer.OutOfTime):
        train_once(RUN, images, tmp_path / 'run', CPU, deadline=0)
    assert train_once(RUN, images, tmp_path / 'run', CPU)['seed'] == RUN.seed


def add_line(folder, seed):
    run = {'model': 'm', 'model_kwargs': {}, 'recipe': {'epochs': 1}, 'data': 'd', 'limit': None, 'seed': seed}
    Results(folder).add([Line(Point('', '', 1), 0.0, run, {}, {})])


def test_several_processes_lose_no_line(tmp_path):
    assert len(list(in_parallel(add_line, [(tmp_path, seed) for seed in range(40)], 2))) == 40
    assert sorted(line.seed for line in Results(tmp_path).lines) == list(range(40))


def test_dead_process_is_told():
    with pytest.raises(ChildProcessError, match='the process of a run died'):
        list(in_parallel(os._exit, [(1,), (1,)], 2))


def test_an_error_ends_the_processes_of_the_runs_alone():
    other = multiprocessing.get_context('spawn').Process(target=time.sleep, args=(600,))
    other.start()
    try:
        with pytest.raises(ValueError, match=r'math domain|nonnegative'):
            list(in_parallel(math.sqrt, [(1.0,), (-1.0,)], 2))
        time.sleep(0.5)
        assert other.is_alive()
    finally:
        other.kill()
        other.join()


@pytest.mark.skipif(not Path('/proc/self').exists(), reason='needs /proc, of Linux')
def test_processes_end_with_a_killed_command(tmp_path):
    work = f'import os, pathlib, time; pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch(); time.sleep(600)'
    code = f'list(in_parallel(exec, [({work!r},)] * 2, 2))'
    script = tmp_path / 'script.py'
    script.write_text(f"from timm_lc.training.parallel import in_parallel\nif __name__ == '__main__':\n    {code}\n")
    environment = {**os.environ, 'PYTHONPATH': str(Path(__file__).resolve().parents[2])}
    command = subprocess.Popen([sys.executable, script], env=environment)
    workers = wait_for(lambda: [path.name for path in tmp_path.iterdir() if path.name.isdecimal()], 2)
    command.kill()
    command.wait()
    assert len(wait_for(lambda: [pid for pid in workers if not is_running(pid)], 2)) == 2


def wait_for(find, count, seconds=300):
    end = time.monotonic() + seconds
    while len(found := find()) < count and time.monotonic() < end:
        time.sleep(0.1)
    return found


def is_running(pid):
    """Return whether a process is there and not a zombie, which its parent has not asked for yet."""
    stat = Path(f'/proc/{pid}/stat')
    return stat.exists() and stat.read_text().rpartition(') ')[2][0] != 'Z'


def test_error_in_a_process_is_passed_on_and_ends_the_others():
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r'math domain|nonnegative'):
        list(in_parallel(_sleep_or_fail, [(600,), (-1,)], 2))
    assert time.monotonic() - begun < 300


def _sleep_or_fail(seconds):
    time.sleep(math.sqrt(seconds) ** 2)


@pytest.mark.parametrize(
    ('text', 'found'), [('{"a": 1}\n{"a": 2}', [1, 2]), ('{"a": 1}\n{"a": ', [1]), ('', []), ('{"a": 1}\n', [1])]
)
def test_last_line_is_left_out_only_if_it_was_cut_off(tmp_path, text, found):
    (tmp_path / 'lines').write_text(text)
    assert [line['a'] for line in read_lines(tmp_path / 'lines')] == found


@pytest.mark.parametrize('text', ['{"a": \n{"a": 1}\n', '[]\n', '5'])
def test_damaged_lines_are_named(tmp_path, text):
    (tmp_path / 'lines').write_text(text)
    with pytest.raises(ValueError, match='lines is damaged'):
        read_lines(tmp_path / 'lines')


def test_image_folder_is_read(tree):
    root = str(tree())
    images = load_images(root)
    assert images.classes == ['cat', 'dog']
    assert images.train.shape == (4, 3, 8, 8)
    assert images.train_labels.tolist() == [0, 0, 1, 1]
    expected = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    assert np.array_equal(images.train[1].permute(1, 2, 0), expected)
    assert load_images(root, limit=2).train_labels.tolist() == [0, 1]


def test_classes_of_a_folder_stand_in_timms_order(tree):
    root = tree(classes=('class10', 'class2', 'Zebra', 'ape'))
    images = load_images(str(root))
    assert images.classes == list(create_dataset('', root / 'train').reader.class_to_idx)
    assert images.classes == ['ape', 'class2', 'class10', 'Zebra']
    Image.new('RGB', (8, 8), 'white').save(root / 'validation/class2/white.png')
    images = load_images(str(root))
    (white,) = (images.validation == 255).flatten(1).all(1).nonzero()
    assert images.classes[images.validation_labels[white]] == 'class2'


def test_digits_without_scikit_learn_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(ModuleNotFoundError, match=r"the digits need scikit-learn: pip install 'timm_lc\[demo\]'"):
        load_images('digits')


def test_arguments_that_the_images_decide_are_refused(tree, capsys):
    with pytest.raises(SystemExit, match='2'):
        main(['cifar', '--model', 'lc_resnet20_16x1', '--model-kwargs', 'num_classes=3', '--data', str(tree())])
    assert '`--model-kwargs` must leave num_classes to `--data`' in capsys.readouterr().err


def test_digits_are_read():
    images = load_images('digits', limit=100)
    assert images.train.shape == (100, 3, 32, 32)
    assert len(images.classes) == 10


@pytest.mark.parametrize(
    ('layout', 'text'),
    [
        ({'classes': ('cat',)}, r'must have two or more classes'),
        ({'sizes': ((8, 8), (8, 9))}, r'must have one size, got \(3, 8, 8\) and \(3, 8, 9\)'),
        ({'sizes': ()}, 'Found no valid file'),
        ({'splits': ('train',)}, 'validation'),
    ],
)
def test_folder_that_is_of_no_use_is_refused(tree, layout, text):
    with pytest.raises(ValueError, match=text):
        load_images(str(tree(**layout)))


def test_splits_that_differ_are_refused(tree):
    root = tree()
    for path in (root / 'validation').rglob('*.png'):
        Image.new('RGB', (9, 8)).save(path)
    with pytest.raises(ValueError, match=r'all images must have one size, got \(3, 8, 8\) and \(3, 8, 9\)$'):
        load_images(str(root))
    (root / 'validation/dog').rename(root / 'validation/wolf')
    with pytest.raises(ValueError, match='train/ and validation/ must hold the same classes'):
        load_images(str(root))


def test_unreadable_image_is_named(tree):
    root = tree()
    (root / 'train/cat/0.png').write_bytes(b'nothing')
    with pytest.raises(ValueError, match=r'cannot read .*cat.0\.png'):
        load_images(str(root))


def test_images_of_16_bits_are_refused(tree):
    root = tree()
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(root / 'train/cat/0.png')
    with pytest.raises(ValueError, match=r'cannot read .*cat.0\.png: its pixels must have 8 bits a channel'):
        load_images(str(root))


def test_bad_arguments_are_named(images, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"`data` must be one of cifar10, cifar100, svhn, fashion_mnist, digits or a folder .* got 'mnist'",
    ):
        load_images('mnist')
    with pytest.raises(ValueError, match='`limit` must be a positive integer, got 0'):
        load_images('digits', limit=0)
    with pytest.raises(ValueError, match='`epochs` must be a positive integer, got 0'):
        Recipe(epochs=0)
    for recipe in ({'lr': -1}, {'lr': math.nan}, {'l1': -1}):
        with pytest.raises(ValueError, match=r'must be .*number, got (-1|nan)'):
            Recipe(**recipe)
    with pytest.raises(ValueError, match=r'`seed` must be an integer in \[0, 2\*\*32\), got -1'):
        Run('lc_resnet_cifar', seed=-1)
    with pytest.raises(ValueError, match='`batch_size` 256 must not exceed the 72 training images'):
        train(Run('lc_resnet_cifar', KWARGS, recipe=Recipe(drop_last=True)), images, tmp_path, CPU)


def test_killed_command_goes_on_to_the_bit(tree, tmp_path, capsys):
    root = str(tree(sizes=((8, 8),) * 8))
    command = ['cifar', '--model', 'lc_resnet20_16x1', '--data', root, '--device', 'cpu', '--batch-size', '8',
               '--epochs', '5', '--output']  # fmt: skip
    # a process that dies by SIGKILL in the middle of the third epoch; with as many threads as this one, or sums are
    # rounded otherwise
    script = (
        'import os, signal, sys, torch; from timm_lc.cli import main; from timm_lc.training import trainer\n'
        'torch.set_num_threads(1)\n'
        'trainer.SAVE_SECONDS, rate = 0, trainer.learning_rate\n'
        'def killed(recipe, step, steps):\n'
        '    return os.kill(os.getpid(), signal.SIGKILL) if step == 5 else rate(recipe, step, steps)\n'
        'trainer.learning_rate = killed; main(sys.argv[1:])'
    )
    died = subprocess.run([sys.executable, '-c', script, *command, str(tmp_path / 'cut')], capture_output=True)
    assert died.returncode == -signal.SIGKILL
    assert len((tmp_path / 'cut/seed0/metrics.jsonl').read_text().splitlines()) == 2
    for name in ('cut', 'whole'):
        assert main([*command, str(tmp_path / name)]) == 0
    files = [load_file(tmp_path / name / 'seed0/model.safetensors') for name in ('cut', 'whole')]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    printed = capsys.readouterr().out.splitlines()
    epochs = [line.split(':')[0] for line in printed if ' epoch ' in line]
    assert epochs == [f'lc_resnet20_16x1 seed 0 epoch {epoch}/5' for epoch in (3, 4, 5, 1, 2, 3, 4, 5)]
    cut, whole = (line for line in printed if line.startswith('lc_resnet20_16x1: '))
    assert cut == whole


def test_seeds_at_once_are_those_one_by_one(tree, tmp_path, capsys):
    command = ['cifar', '--model', 'lc_resnet20_16x1', '--data', str(tree(sizes=((8, 8),) * 8)), '--device', 'cpu',
               '--batch-size', '8', '--epochs', '1', '--runs', '2', '--output']  # fmt: skip
    for jobs in ('1', '2'):
        assert main([*command, str(tmp_path / jobs), '--jobs', jobs]) == 0
    for seed in ('seed0', 'seed1'):
        one, other = (load_file(tmp_path / jobs / seed / 'model.safetensors') for jobs in ('1', '2'))
        for name, tensor in one.items():  # with other numbers of threads sums may be rounded otherwise
            torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5)
    assert 'over 2 runs' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='2'):
        main([*command, str(tmp_path / 'none'), '--jobs', '0'])
    assert '`jobs` must be a positive integer, got 0' in capsys.readouterr().err


def test_checkpoint_tells_the_images_that_it_was_trained_on(images, tmp_path):
    train(RUN, images, tmp_path, CPU)
    config = timm.data.resolve_data_config(model=timm.create_model(f'local-dir:{tmp_path}', pretrained=True))
    pixels = images.train.double() / 255
    assert tuple(config['input_size']) == (3, 16, 16)  # a list before timm 1.0.26
    np.testing.assert_allclose(config['mean'], pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(config['std'], pixels.std((0, 2, 3), correction=0), rtol=1e-6)


def test_checkpoint_of_a_larger_architecture_is_evaluated_as_it_was_trained(images, tmp_path):
    run = Run('lc_resnet18', recipe=Recipe(epochs=1, batch_size=16))  # its own weights: 288 pixels, crop 0.95
    accuracy = train(run, images, tmp_path, CPU)
    model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    config = timm.data.resolve_data_config(model=model, use_test_size=True)  # as validate.py
    assert (tuple(config['input_size']), config['crop_pct']) == ((3, 16, 16), 1.0)
    transform = timm.data.create_transform(**config)
    pixels = torch.stack([transform(functional.to_pil_image(image)) for image in images.validation])
    found = (model(pixels).argmax(1) == images.validation_labels).double().mean().item()
    assert 100 * found == pytest.approx(accuracy)


def test_values_of_a_run_without_its_weights_are_no_other_runs(images, tmp_path):
    first = train_once(RUN, images, tmp_path, CPU)
    (tmp_path / 'model.safetensors').unlink()
    other = Run('lc_resnet_cifar', KWARGS, seed=4, recipe=RUN.recipe)
    with pytest.raises(ValueError, match='holds another run: `seed` was 3 and is 4; give another'):
        train_once(other, images, tmp_path, CPU)
    assert json.loads((tmp_path / 'run.json').read_text())['run']['seed'] == 3
    assert train_once(RUN, images, tmp_path, CPU)['accuracy'] == first['accuracy']
    assert (tmp_path / 'model.safetensors').is_file()  # trained again


def test_arguments_that_are_tuples_are_those_of_the_same_run(images, tmp_path):
    run = Run('lc_resnet18', {'layers': (1, 1, 1, 1)}, recipe=Recipe(epochs=1, batch_size=16))
    accuracy = train_once(run, images, tmp_path, CPU)['accuracy']
    assert train_once(run, images, tmp_path, CPU)['accuracy'] == accuracy


@pytest.mark.parametrize('left', ['', '{"epoch": 1, "loss": 1.0}\n'])
def test_finished_state_without_its_metrics_is_named(images, tmp_path, left):
    train(RUN, images, tmp_path, CPU)
    (tmp_path / 'metrics.jsonl').write_text(left)
    with pytest.raises(ValueError, match=r'metrics\.jsonl lacks epoch 4 of .*state\.pt; without state\.pt'):
        train(RUN, images, tmp_path, CPU)


@pytest.mark.skipif(sys.platform != 'linux', reason='needs a file system that takes any bytes as a name')
def test_class_whose_name_is_no_text_is_refused_before_training(tree):
    root = tree(classes=('cat', os.fsdecode(b'd\xffg')))
    with pytest.raises(ValueError, match=r"the name of the folder b'.*/train/d\\xffg' must be UTF-8"):
        load_images(str(root))


@pytest.mark.parametrize('limit', [None, 8])
def test_the_command_on_a_card_tells_the_limit(tree, tmp_path, limit):
    images = load_images(str(tree(sizes=((8, 8),) * 8)), limit=limit)
    train(Run('lc_resnet_cifar', KWARGS, recipe=Recipe(epochs=1, batch_size=8)), images, tmp_path / 'run', CPU)
    (command,) = (x for x in (tmp_path / 'run/README.md').read_text().splitlines() if x.startswith('timm-lc cifar'))
    assert command.partition(' --limit ')[2].partition(' ')[0] == ('8' if limit else '')
