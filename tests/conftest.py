"""Oracles that all tests share: the generator written out in numpy, and small stock networks."""

import zlib

import numpy as np
import pytest
import timm
import torch
from packaging.version import Version
from PIL import Image
from torch.jit import _builtins


def keep_builtins_alive():
    """Hold every operator that torch registers for TorchScript, which knows them by `id` alone.

    Importing torch's compiler replaces and frees four of them (`quantized_decomposed::quantize_per_tensor` and its
    inverse). Whatever is then allocated at such an address is an operator to `torch.jit.script`: once in dozens of runs
    a convolution's list of paddings was ("builtin cannot be used as a value").
    """
    register, alive = _builtins._register_builtin, []

    def register_and_keep(operator, name):
        alive.append(operator)
        register(operator, name)

    _builtins._register_builtin = register_and_keep


keep_builtins_alive()


def pytest_addoption(parser):
    parser.addoption(
        '--families',
        action='store_true',
        help="test more networks: all of the paper's, and one of each of timm's convolutional files",
    )


@pytest.fixture(autouse=True, scope='session')
def one_thread():
    """Small tensors are fastest on one thread, and results do not depend on the machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Each test draws the same learned weights each time: one in 2**24 of them would be 0 and count as pruned."""
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def draw():
    """Return the definition of the generator, version 1, in plain integers: (seed, stream, length) -> float32."""

    def draw(seed, stream, length):
        words = np.random.Philox(key=[seed, stream]).random_raw((length + 1) // 2)
        halves = np.stack([words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)], 1).reshape(-1)[:length]
        v = (halves >> np.uint64(8)).astype(np.int64)
        return ((2 * v + 1 - 2**24) / 2**24).astype(np.float32)

    return draw


@pytest.fixture(scope='session')
def filters_of(draw):
    """Return the filters of a layer by the definition: those of `name`, or slices of the shared vector."""

    def filters_of(shape, *, seed=0, name=None, period=0, gain=1.0):
        stream = 0 if name is None else zlib.crc32(name.encode()) >> 8
        numel = int(np.prod(shape))
        values = np.resize(draw(seed, stream, min(numel, period or numel)), numel)
        scale = np.float32(gain / np.sqrt(float(np.prod(shape[1:]))))
        return torch.from_numpy((values * scale).reshape(shape))

    return filters_of


@pytest.fixture(scope='session')
def stock_folders():
    """Skip what needs timm itself to read safetensors from a local folder."""
    if Version(timm.__version__) < Version('1.0.26'):
        pytest.skip('needs timm 1.0.26: older ones read no safetensors of stock networks from local-dir:')


@pytest.fixture
def stock():
    """Return a builder of timm's own networks with reproducible weights and batch statistics that are not trivial."""

    def stock(name='test_resnet', **kwargs):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = timm.create_model(name, num_classes=4, **kwargs)
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
                    torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
                    torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        return model.eval()

    return stock


@pytest.fixture
def images():
    """Return two small images, (2, 3, 32, 32)."""
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope='session')
def images_in():
    """Return a function that writes a folder of classes, and returns its pixels (classes, count, 32, 32, 3)."""

    def images_in(folder, classes=3, count=4):
        pixels = np.random.default_rng(0).integers(0, 256, (classes, count, 32, 32, 3), dtype=np.uint8)
        for label in range(classes):
            (folder / f'class{label}').mkdir(parents=True)
            for index in range(count):
                Image.fromarray(pixels[label, index]).save(folder / f'class{label}' / f'{index}.png')
        return pixels

    return images_in
