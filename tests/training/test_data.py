"""torchvision's image sets, read from files of its formats that the tests write."""

import hashlib
import json
import pickle
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torchvision import datasets, transforms

from timm_lc.cli import main
from timm_lc.training.data import DATA, TRAIN_IMAGES, load_images
from timm_lc.training.recipe import Recipe, Run
from timm_lc.training.trainer import _batches

COUNTS = {'train': 40, 'test': 20}


def pixels(split, *shape):
    return np.random.default_rng(len(split)).integers(0, 256, (COUNTS[split], *shape), np.uint8)


def labels(split, classes):
    return np.arange(COUNTS[split]) % classes


def cifar100(root, monkeypatch):
    folder = root / 'cifar-100-python'
    folder.mkdir(parents=True)
    content = {
        split: {'data': pixels(split, 3072), 'fine_labels': labels(split, 100).tolist()} for split in ('train', 'test')
    }
    content['meta'] = {'fine_label_names': [f'class{index}' for index in range(100)]}
    sums = {}
    for name, part in content.items():
        (folder / name).write_bytes(pickle.dumps(part))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR100, 'train_list', [['train', sums['train']]])
    monkeypatch.setattr(datasets.CIFAR100, 'test_list', [['test', sums['test']]])
    monkeypatch.setattr(datasets.CIFAR100, 'meta', {**datasets.CIFAR100.meta, 'md5': sums['meta']})
    return pixels('train', 3, 32, 32), labels('train', 100)


def svhn(root, monkeypatch):
    savemat = pytest.importorskip('scipy.io', reason='needs scipy').savemat
    root.mkdir(parents=True)
    known = {}
    for split in COUNTS:
        path = root / f'{split}_32x32.mat'
        digits = labels(split, 10)
        written = np.where(digits == 0, 10, digits)  # the files call the digit 0 ten
        savemat(path, {'X': pixels(split, 32, 32, 3).transpose(1, 2, 3, 0), 'y': written[:, None].astype(np.uint8)})
        known[split] = ['', path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, 'split_list', known)
    return pixels('train', 32, 32, 3).transpose(0, 3, 1, 2), labels('train', 10)


def fashion_mnist(root, monkeypatch):
    folder = root / 'FashionMNIST/raw'
    folder.mkdir(parents=True)
    for split, name in (('train', 'train'), ('test', 't10k')):
        for kind, array in (('images-idx3', pixels(split, 28, 28)), ('labels-idx1', labels(split, 10))):
            magic = 0x0800 + array.ndim  # unsigned bytes, then the dimensions, big-endian
            header = np.array([magic, *array.shape], '>i4').tobytes()
            (folder / f'{name}-{kind}-ubyte').write_bytes(header + array.astype(np.uint8).tobytes())
    resize = transforms.Compose([transforms.ToPILImage(), transforms.Resize((32, 32)), transforms.PILToTensor()])
    return np.stack([resize(image[:, :, None]).numpy() for image in pixels('train', 28, 28)]), labels('train', 10)


SETS = {'cifar100': cifar100, 'svhn': svhn, 'fashion_mnist': fashion_mnist}


@pytest.mark.parametrize('name', SETS)
def test_set_is_read_as_torchvision_writes_it(name, tmp_path, monkeypatch):
    expected, digits = SETS[name](tmp_path / 'data', monkeypatch)
    images = load_images(name, tmp_path / 'data')
    assert np.array_equal(images.train, expected)
    assert np.array_equal(images.train_labels, digits)
    assert len(images.validation) == COUNTS['test']
    assert len(images.classes) == (100 if name == 'cifar100' else 10)
    assert (images.train.dtype, images.train_labels.dtype) == (torch.uint8, torch.int64)


@pytest.mark.parametrize(('name', 'augmented'), [('cifar100', True), ('svhn', False), ('fashion_mnist', True)])
def test_batches_have_the_sets_own_normalisation_and_svhn_is_not_augmented(name, augmented, tmp_path, monkeypatch):
    expected, _ = SETS[name](tmp_path / 'data', monkeypatch)
    images = load_images(name, tmp_path / 'data').map(lambda tensor: tensor)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))  # of seed 0, epoch 0
    batch, _ = next(_batches(images, Run('', recipe=Recipe(batch_size=40)), 0))
    values = expected.astype(np.float64) / 255
    mean, std = (statistic(values, (0, 2, 3), keepdims=True) for statistic in (np.mean, np.std))
    plain = ((values - mean) / std)[order]
    is_same = [np.allclose(image, other, atol=1e-4) for image, other in zip(batch.numpy(), plain, strict=True)]
    assert all(is_same) != augmented


@pytest.mark.parametrize('name', SETS)
def test_command_trains_an_epoch(name, tmp_path, monkeypatch, capsys):
    SETS[name](tmp_path / 'data', monkeypatch)
    monkeypatch.chdir(tmp_path)
    command = ['cifar', '--model', 'lc_resnet20_16x1', '--data', name, '--device', 'cpu', '--epochs', '1']
    assert main([*command, '--batch-size', '20', '--output', 'out']) == 0
    assert '% over 1 run' in capsys.readouterr().out
    run = json.loads((tmp_path / 'out/seed0/run.json').read_text())['run']
    assert (run['data'], run['images']) == (name, [40, 20])
    weights = load_file(tmp_path / 'out/seed0/model.safetensors')
    assert weights['fc.weight'].shape == (100 if name == 'cifar100' else 10, 64)
    assert main([*command, '--batch-size', '20', '--output', 'out']) == 0
    assert 'found finished in out, not trained again' in capsys.readouterr().out


def test_every_named_set_tells_how_many_images_it_trains_on():
    assert tuple(TRAIN_IMAGES) == DATA
    assert min(TRAIN_IMAGES.values()) > 1000


def test_svhn_without_scipy_names_the_extra(tmp_path, monkeypatch):
    SETS['svhn'](tmp_path / 'data', monkeypatch)
    monkeypatch.setitem(sys.modules, 'scipy.io', None)
    with pytest.raises(ModuleNotFoundError, match=r'SVHN needs scipy: pip install .timm_lc\[plots\]'):
        load_images('svhn', tmp_path / 'data')


def test_set_that_cannot_be_downloaded_is_named(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError('no route to host')

    monkeypatch.setattr(datasets.FashionMNIST, 'download', refuse)
    with pytest.raises(ValueError, match=r'`data` fashion_mnist: torchvision cannot download it .* no route to host'):
        load_images('fashion_mnist', tmp_path)
