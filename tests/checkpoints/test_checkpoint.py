"""Checkpoints: what is saved loads to the bit in a fresh process, and what is damaged or hostile is refused.

`python tests/checkpoints/test_checkpoint.py FOLDER` writes those of tests/fixtures, which have to load for ever.
"""

import argparse
import copy
import inspect
import io
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from packaging.version import Version
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.utils import CheckpointSaver, ModelEmaV3
from timm_suite import FAMILIES, PAPER
from torch import nn

import timm_lc
from timm_lc import fold, freeze_spatial, save_pretrained, share_weights
from timm_lc.checkpoints import checkpoint
from timm_lc.checkpoints.checkpoint import load_model
from timm_lc.checkpoints.reading import read_checkpoint
from timm_lc.layers.frozen import is_frozen
from timm_lc.paper.catalogue import EXPERIMENTS

NAME = 'lc_test_resnet'
FIXTURES = Path(__file__).parents[1] / 'fixtures'
OPTIONS = [
    ('lc_resnet50', {'share_weights': True}),
    ('lc_resnet18', {'expansion': 2, 'seed': 7}),
    ('lc_resnet20_16x8', {'share_weights': True, 'recycle': 16}),
    ('lc_resnet_cifar', {'depth': 14, 'width': 8, 'expansion': 2, 'kernel_size': 5, 'share_weights': True}),
    ('lc_mobilenetv2_100', {'share_weights': True, 'shared_length': 1000}),
    ('lc_resnet18', {'freeze_spatial': False}),
    (NAME, {'gain': 2.0, 'num_classes': 3, 'in_chans': 1}),
]


def lively(model, seed=0):
    """Give `model` weights and statistics that no constructor gives; return it in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith('running_var'):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim == 1 and tensor.is_floating_point() and not name.endswith('.record'):
            tensor.add_(torch.empty_like(tensor).uniform_(-0.1, 0.1, generator=generator))
    return model.eval()


def build(name=NAME, **kwargs):
    torch.manual_seed(0)
    return lively(timm.create_model(name, **kwargs))


def pruned(model, amount=0.7):
    """Zero the smallest pointwise weights of `model`, counted over all of its layers, in place."""
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    magnitudes = np.sort(np.concatenate([weight.detach().abs().flatten().numpy() for weight in weights]))
    threshold = magnitudes[int(amount * len(magnitudes))]
    with torch.no_grad():
        for weight in weights:
            weight[weight.abs() < float(threshold)] = 0
    return model


def pictures(model, size=32):
    recorded = getattr(model, '_model_args', {}).get('in_chans', 3)  # timm before 1.0.31 has no attribute for it
    channels = getattr(model, 'in_chans', recorded)
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def through_timm(folder, **kwargs):
    if Version(timm.__version__) < Version('1.0.26'):  # it reads no safetensors from a folder
        kwargs['pretrained_cfg_overlay'] = {'source': 'file', 'file': str(folder / 'model.safetensors')}
    return timm.create_model(f'local-dir:{folder}', pretrained=True, **kwargs).eval()


def size_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


CHILD = """
import sys, numpy, pathlib, torch
from test_checkpoint import through_timm
torch.set_num_threads(1)
for folder in map(pathlib.Path, map(str.strip, sys.stdin)):
    model = through_timm(folder)
    with torch.inference_mode():
        numpy.save(folder / 'logits.npy', model(torch.from_numpy(numpy.load(folder / 'images.npy'))).numpy())
    print('done', flush=True)
"""


@pytest.fixture(scope='module')
def logits_elsewhere():
    """Return a function that loads a folder in a process that has never seen the network: its logits for images."""
    here = Path(__file__)
    folders = [Path(timm_lc.__file__).parents[1], here.parents[1], here.parent, os.environ.get('PYTHONPATH', '')]
    child = subprocess.Popen(
        [sys.executable, '-c', CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, folders))},
    )

    def logits_elsewhere(folder, images):
        np.save(folder / 'images.npy', images.numpy())
        child.stdin.write(f'{folder}\n')
        child.stdin.flush()
        assert child.stdout.readline() == 'done\n', 'the process that loads has failed: see above'
        return torch.from_numpy(np.load(folder / 'logits.npy'))

    with child:
        yield logits_elsewhere
        child.stdin.close()


def pytest_generate_tests(metafunc):
    if 'network' in metafunc.fixturenames:
        plotted = {variant.model for experiment in EXPERIMENTS.values() for variant in experiment.variants}
        more = (*sorted(plotted - {*PAPER}), *FAMILIES)
        names = [*PAPER, *(more if metafunc.config.getoption('families') else ())]
        networks = [*((name, {}) for name in names), *OPTIONS]
        metafunc.parametrize('network', networks, ids=lambda network: f'{network[0]} {network[1] or ""}')


def test_a_fresh_process_computes_the_same_logits_to_the_bit(network, logits_elsewhere, tmp_path):
    name, kwargs = network
    model = build(name, **kwargs)
    images = pictures(model, min(128, model.pretrained_cfg['input_size'][1]) if name in FAMILIES else 64)
    with torch.inference_mode():
        logits = model(images)
    assert logits.isfinite().all()
    assert logits.std() > 0
    folder = save_pretrained(model, tmp_path / 'saved')
    assert torch.equal(logits_elsewhere(folder, images), logits)
    shutil.rmtree(folder)


# What a checkpoint holds wins over what the network was built with


def through_load_model(folder):
    return load_model(folder / 'model.safetensors', NAME, num_classes=4)


def through_timms_checkpoint_path(folder):
    return timm.create_model(NAME, num_classes=4, checkpoint_path=str(folder / 'model.safetensors')).eval()


def through_an_edited_config(folder):
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'model_args': {'num_classes': 4}}))
    return through_timm(folder)


@pytest.mark.parametrize('through', [through_load_model, through_timms_checkpoint_path, through_an_edited_config])
@pytest.mark.parametrize(
    'kwargs',
    [
        {'seed': 7},
        {'seed': 7, 'gain': 2.0},
        {'seed': 7, 'share_weights': True},
        {'seed': 7, 'share_weights': True, 'recycle': 4},
    ],
)
def test_a_checkpoint_of_seed_7_gives_its_logits_in_the_network_of_seed_0(kwargs, through, tmp_path):
    model = build(num_classes=4, **kwargs)
    images = pictures(model)
    loaded = through(save_pretrained(model, tmp_path))
    assert torch.equal(loaded(images), model(images))
    assert not torch.allclose(build(num_classes=4)(images), model(images), atol=1e-3)


def test_shared_and_recycled_filters_load_into_the_plain_lcresnet(tmp_path):
    model = build('lc_resnet20_16x2', share_weights=True, recycle=16, seed=7)
    save_pretrained(model, tmp_path)
    loaded = load_model(tmp_path / 'model.safetensors', 'lc_resnet20_16x2')
    torch.testing.assert_close(loaded(pictures(model)), model(pictures(model)), rtol=1e-5, atol=1e-5)


# Damage


def flip(path, tensor, byte=0, bit=0):
    """Flip one bit of a tensor in a safetensors file."""
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], 'little')
    data[8 + length + json.loads(data[8 : 8 + length])[tensor]['data_offsets'][0] + byte] ^= 1 << bit
    path.write_bytes(data)


def test_each_flipped_bit_of_a_stored_record_is_rounding_or_an_error_that_names_the_layer(tmp_path):
    model = build('lc_resnet_cifar', depth=8, width=2, expansion=1)
    tensors = load_file(save_pretrained(model, tmp_path) / 'model.safetensors')
    layer = 'layer2.0.conv1.spatial'
    record = tensors[f'{layer}.record']
    assert (record.shape, record.dtype) == ((88,), torch.float32)
    images, rounded = pictures(model), 0
    expected = model(images)
    for byte, bit in itertools.product(range(352), range(8)):
        damaged = record.clone()
        damaged.view(torch.uint8)[byte] ^= 1 << bit
        if ((damaged - record).abs() < 0.25).all():  # as averages leave it
            rounded += 1
            model.load_state_dict({**tensors, f'{layer}.record': damaged})
            continue
        with pytest.raises(RuntimeError, match=rf'layer `{layer}`: damaged filter record'):
            model.load_state_dict({**tensors, f'{layer}.record': damaged})
    assert 0 < rounded < 352 * 8
    assert torch.equal(model.state_dict()[f'{layer}.record'], record)
    assert torch.equal(model(images), expected)


def test_a_flipped_bit_in_any_layers_record_is_an_error_that_names_it(tmp_path):
    path = save_pretrained(build(), tmp_path) / 'model.safetensors'
    whole = path.read_bytes()
    layers = [key.removesuffix('.record') for key in load_file(path) if key.endswith('.record')]
    assert len(layers) == 10
    for index, layer in enumerate(layers):
        flip(path, f'{layer}.record', byte=4 * (7 * index) + 3, bit=6)  # of an exponent
        with pytest.raises(RuntimeError, match=f'layer `{layer}`: damaged filter record'):
            through_timm(tmp_path)
        with pytest.raises(ValueError, match=f'{path}.*{layer}.record.* does not match its checksum'):
            load_model(tmp_path)
        path.write_bytes(whole)
    load_model(tmp_path)


def test_a_flipped_bit_in_a_mask_is_an_error_that_names_the_layer(tmp_path):
    path = save_pretrained(pruned(build()), tmp_path, sparse=True) / 'model.safetensors'
    masks = [key for key in load_file(path) if key.endswith('.mask')]
    assert masks
    for mask in masks:
        whole = path.read_bytes()
        flip(path, mask)
        layer = mask.removesuffix('.weight.mask')
        with pytest.raises(RuntimeError, match=rf'layer `{layer}`: its mask has \d+ bits set for \d+ values'):
            through_timm(tmp_path)
        with pytest.raises(ValueError, match=f'{mask}.* does not match its checksum'):
            load_model(tmp_path)
        path.write_bytes(whole)


@pytest.mark.parametrize('tensor', ['fc.weight', 'bn1.num_batches_tracked', 'layer1.0.bn1.running_mean'])
def test_a_flipped_bit_in_learned_weights_is_an_error_that_names_the_tensor(tensor, tmp_path):
    path = save_pretrained(build(), tmp_path) / 'model.safetensors'
    flip(path, tensor)
    with pytest.raises(ValueError, match=f'{tensor}.* does not match its checksum'):
        load_model(tmp_path)


def test_a_tensor_that_is_not_there_is_an_error(tmp_path):
    path = save_pretrained(build(), tmp_path) / 'model.safetensors'
    tensors = load_file(path)
    del tensors['fc.bias']
    save_file(tensors, path, metadata=checkpoint.file_metadata(load_file(path), build()))
    with pytest.raises(ValueError, match=r"'fc.bias' does not match its checksum"):
        load_model(tmp_path)


def test_a_file_without_checksums_loads(tmp_path):
    path = save_pretrained(build(), tmp_path) / 'model.safetensors'
    save_file(load_file(path), path)
    assert torch.equal(load_model(tmp_path)(pictures(build())), build()(pictures(build())))


@pytest.mark.parametrize('damage', ['mask', 'values', 'length', 'dtype', 'padding'])
def test_a_packed_weight_that_does_not_fit_is_an_error_that_names_the_layer(damage, tmp_path):
    model = pruned(build('lc_resnet_cifar', depth=8, width=3, expansion=1))
    tensors = load_file(save_pretrained(model, tmp_path, sparse=True) / 'model.safetensors')
    layer = 'conv1.pointwise'  # 9 weights: 7 bits of the mask are padding
    mask, values = f'{layer}.weight.mask', f'{layer}.weight.values'
    if damage in ('mask', 'values'):
        del tensors[f'{layer}.weight.{damage}']
    elif damage == 'length':
        tensors[mask] = torch.cat([tensors[mask], torch.zeros(1, dtype=torch.uint8)])
    elif damage == 'dtype':
        tensors[mask] = tensors[mask].float()
    else:
        tensors[mask][-1] |= 128
        tensors[values] = torch.cat([tensors[values], torch.ones(1)])
    with pytest.raises(RuntimeError, match=f'layer `{layer}`: its (packed weight|mask)'):
        model.load_state_dict(tensors, strict=False)


class Bomb:
    """Touches a file when unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)


def tar_of(pickled):
    """Return the oldest form of torch's files, which torch.load still knows."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as tar:
        for name in ('sys_info', 'pickle', 'storages', 'tensors'):
            member = tarfile.TarInfo(name)
            member.size = len(pickled)
            tar.addfile(member, io.BytesIO(pickled))
    return buffer.getvalue()


def test_a_checkpoint_whose_arguments_are_a_dictionary_loads_by_name(tmp_path):
    model = build()
    torch.save({'state_dict': model.state_dict(), 'args': {'lr': 0.1}}, tmp_path / 'checkpoint.pth.tar')
    loaded = load_model(tmp_path / 'checkpoint.pth.tar', NAME, num_classes=model.num_classes)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def torch_saved(value, **kwargs):
    buffer = io.BytesIO()
    torch.save(value, buffer, **kwargs)
    return buffer.getvalue()


def scripted(_):
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), buffer)
    return buffer.getvalue()


HOSTILE = {
    'empty.safetensors': lambda bomb: b'',
    'empty.pth.tar': lambda bomb: b'',
    'text.safetensors': lambda bomb: b'version https://git-lfs.github.com/spec/v1\n',
    'text.pth.tar': lambda bomb: b'version https://git-lfs.github.com/spec/v1\n',
    'bomb.safetensors': pickle.dumps,
    'bomb.pth.tar': pickle.dumps,
    'bomb.pth': lambda bomb: torch_saved({'state_dict': build().state_dict(), 'args': bomb}),
    'legacy.pth.tar': lambda bomb: torch_saved({'state_dict': bomb}, _use_new_zipfile_serialization=False),
    'oldest.pth.tar': lambda bomb: tar_of(pickle.dumps(bomb)),
    'network.pth.tar': lambda bomb: torch_saved(nn.Linear(1, 1)),
    'scripted.pth.tar': scripted,
    'tensor.pth.tar': lambda bomb: torch_saved(torch.zeros(3)),
}


@pytest.mark.filterwarnings('ignore')  # torch warns of what it then refuses
@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_file_is_an_error_and_runs_no_code(name, tmp_path):
    marker, path = tmp_path / 'marker', tmp_path / name
    path.write_bytes(HOSTILE[name](Bomb(marker)))
    for load in (load_model, lambda path: load_model(path, NAME), read_checkpoint):
        with pytest.raises(ValueError, match=f'{path} is not a (readable )?checkpoint: '):
            load(path)
    if inspect.signature(timm.models.load_state_dict).parameters['weights_only'].default:  # not in old releases
        with pytest.raises(Exception):  # noqa: B017, PT011  # timm's own, of any type
            timm.create_model(NAME, checkpoint_path=str(path))
    assert not marker.exists()


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth.tar', '.pth'])
def test_a_truncated_file_is_an_error_at_every_length(suffix, tmp_path):
    model = build('lc_resnet_cifar', depth=8, width=2, expansion=1)
    path = tmp_path / f'cut{suffix}'
    if suffix == '.safetensors':
        whole = (save_pretrained(model, tmp_path) / 'model.safetensors').read_bytes()
    else:
        whole = torch_saved(model.state_dict(), _use_new_zipfile_serialization=suffix == '.pth.tar')
    for length in [*range(20), *range(20, len(whole), len(whole) // 100), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f'{path} is not a readable checkpoint: .'):
            read_checkpoint(path)
    path.write_bytes(whole)
    assert len(read_checkpoint(path)) == len(model.state_dict())


@pytest.mark.parametrize('text', ['', '{', '[]', '{}', '"text"', '{"architectures": ["ResNetModel"]}', '\udcff'])
def test_a_damaged_config_is_an_error_that_names_it(text, tmp_path):
    save_pretrained(build(), tmp_path)
    (tmp_path / 'config.json').write_bytes(text.encode(errors='surrogateescape'))
    with pytest.raises(ValueError, match=f'{tmp_path / "config.json"} does not tell the architecture of a timm model'):
        load_model(tmp_path)


def test_a_config_of_an_unknown_architecture_is_an_error_that_names_both(tmp_path):
    save_pretrained(build(), tmp_path)
    text = (tmp_path / 'config.json').read_text()
    (tmp_path / 'config.json').write_text(text.replace(f'"{NAME}"', '"lc_nothing"'))
    with pytest.raises(ValueError, match=rf'cannot load {tmp_path}.*: Unknown model \(lc_nothing\)'):
        load_model(tmp_path)


# Forms of the file


def rounded(model, dtype):
    """Return `model` with its matrices and filters rounded to `dtype`."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if dtype is not None and tensor.is_floating_point() and tensor.ndim > 1:
                tensor.copy_(tensor.to(dtype))
    return model


FORMS = {
    'whole': {},
    'sparse': {'sparse': True},
    'bf16': {'dtype': torch.bfloat16},
    'fp16': {'dtype': torch.float16},
    'sparse fp16': {'sparse': True, 'dtype': torch.float16},
}
CHANGES = [{}, {'num_classes': 3}, {'num_classes': 0}, {'in_chans': 1}, {'in_chans': 6}, {'features_only': True}]
NETWORKS = [
    (NAME, {'num_classes': 10, 'share_weights': True, 'recycle': 4}),
    (NAME, {'num_classes': 10, 'expansion': 2, 'seed': 7}),
    (NAME, {'num_classes': 10, 'freeze_spatial': False}),
]


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(('name', 'kwargs'), NETWORKS)
def test_each_form_loads_through_timm_as_the_whole_one_does(name, kwargs, form, tmp_path):
    model, dtype = pruned(build(name, **kwargs)), FORMS[form].get('dtype')
    save_pretrained(model, tmp_path / 'form', **FORMS[form])
    whole = rounded(model, dtype)
    timm.models.save_for_hf(whole, tmp_path / 'whole', model_args=kwargs, safe_serialization=True)
    for change in CHANGES:
        loaded = []
        for folder in ('form', 'whole'):
            torch.manual_seed(0)  # a new classifier is random
            loaded.append(through_timm(tmp_path / folder, **change))
        # timm rounds a learned stem, adapted to other channels, to the type of the file
        tolerance = torch.finfo(dtype).eps if dtype and 'in_chans' in change else 0
        torch.testing.assert_close(loaded[0].state_dict(), loaded[1].state_dict(), rtol=tolerance, atol=0)
        if not tolerance:
            images = torch.randn(1, change.get('in_chans', 3), 32, 32)
            outputs = [network(images) for network in loaded]
            torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)


def test_a_packed_weight_is_a_mask_with_the_first_value_in_the_lowest_bit_and_the_values_left(tmp_path):
    model = pruned(build('lc_resnet_cifar', depth=8, width=3, expansion=1))
    tensors = load_file(save_pretrained(model, tmp_path, sparse=True) / 'model.safetensors')
    state = model.state_dict()
    packed = [key.removesuffix('.mask') for key in tensors if key.endswith('.mask')]
    assert 'layer3.0.conv2.pointwise.weight' in packed
    assert tensors.keys() == (state.keys() - set(packed)) | {
        f'{key}.{part}' for key in packed for part in ('mask', 'values')
    }
    for key in packed:
        values = iter(tensors[f'{key}.values'].tolist())
        mask = tensors[f'{key}.mask'].tolist()
        unpacked = [next(values) if mask[n // 8] >> n % 8 & 1 else 0.0 for n in range(state[key].numel())]
        assert unpacked == state[key].flatten().tolist()
        assert next(values, None) is None


def test_a_weight_that_packing_would_not_make_smaller_is_whole(tmp_path):
    model = build()
    tensors = load_file(save_pretrained(model, tmp_path, sparse=True) / 'model.safetensors')
    assert tensors.keys() == model.state_dict().keys()


def test_all_zeros_load(tmp_path):
    model = build()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            nn.init.zeros_(module.weight)
    loaded = load_model(save_pretrained(model, tmp_path, sparse=True))
    assert torch.equal(loaded(pictures(model)), model(pictures(model)))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_dtype_rounds_matrices_and_keeps_vectors(dtype, tmp_path):
    model = build(num_classes=10)
    loaded = load_model(save_pretrained(model, tmp_path, dtype=dtype)).state_dict()
    stored = load_file(tmp_path / 'model.safetensors')
    for key, tensor in model.state_dict().items():
        matrix = tensor.is_floating_point() and tensor.ndim > 1
        assert stored[key].dtype == (dtype if matrix else tensor.dtype)
        assert torch.equal(loaded[key], tensor.to(dtype).float() if matrix else tensor)


def test_a_half_precision_network_is_stored_as_it_is(tmp_path):
    model = build().bfloat16()
    save_pretrained(model, tmp_path)
    stored = load_file(tmp_path / 'model.safetensors')
    assert all(torch.equal(stored[key], tensor) for key, tensor in model.state_dict().items())
    assert torch.equal(load_model(tmp_path, dtype=torch.bfloat16).fc.weight, model.fc.weight)


def test_values_that_overflow_are_an_error_that_names_them(tmp_path):
    model = build()
    with torch.no_grad():
        model.fc.weight[0, 0] = 1e5
    with pytest.raises(
        ValueError, match=r"'fc.weight' overflows in `dtype` torch.float16: its largest value is 100000"
    ):
        save_pretrained(model, tmp_path, dtype=torch.float16)
    assert not list(tmp_path.iterdir())
    save_pretrained(model, tmp_path, dtype=torch.bfloat16)


@pytest.mark.parametrize('dtype', [torch.int8, torch.bool, torch.complex64])
def test_dtype_must_be_a_floating_type(dtype, tmp_path):
    with pytest.raises(ValueError, match=f'`dtype` must be a floating type, got {dtype}'):
        save_pretrained(build(), tmp_path, dtype=dtype)


def test_sparse_is_for_networks_that_load_it(tmp_path):
    with pytest.raises(ValueError, match="`sparse` is for lc_ networks: 'test_resnet'"):
        save_pretrained(fold(build()), tmp_path, sparse=True)


def test_the_sizes_of_lcresnet_20_16x128(tmp_path):
    model = build('lc_resnet20_16x128', share_weights=True, recycle=16)
    sizes = {
        'as trained': size_of(save_pretrained(model, tmp_path / 'trained')),
        'pruned': size_of(save_pretrained(pruned(model), tmp_path / 'pruned', sparse=True)),
        'pruned, fp16': size_of(save_pretrained(model, tmp_path / 'half', sparse=True, dtype=torch.float16)),
        'folded': size_of(save_pretrained(fold(model), tmp_path / 'folded')),
    }
    limits = {'as trained': 16.8e6, 'pruned': 5.8e6, 'pruned, fp16': 3.2e6, 'folded': 1.2e6}
    assert {name: size for name, size in sizes.items() if size > limits[name]} == {}
    images = pictures(model)
    assert torch.equal(load_model(tmp_path / 'pruned')(images), model(images))
    torch.testing.assert_close(load_model(tmp_path / 'folded')(images), model(images), rtol=1e-3, atol=1e-4)


# Saving


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize('kind', [OSError, SafetensorError])
def test_a_failure_leaves_the_older_checkpoint_and_nothing_else(kind, tmp_path, monkeypatch):
    folder = save_pretrained(build(), tmp_path / 'saved')
    before = contents(folder)

    def fail(tensors, path, **kwargs):
        Path(path).write_bytes(b'half')
        raise kind('No space left on device')

    monkeypatch.setattr(checkpoint, 'save_file', fail)
    with pytest.raises(OSError, match='No space left'):
        save_pretrained(build(seed=1), folder)
    assert contents(folder) == before


def test_saving_over_an_older_checkpoint_replaces_it(tmp_path):
    for kwargs in ({}, {'seed': 1, 'num_classes': 3}):
        model = build(**kwargs)
        save_pretrained(model, tmp_path)
        assert sorted(contents(tmp_path)) == ['README.md', 'config.json', 'model.safetensors']
        assert torch.equal(load_model(tmp_path)(pictures(model)), model(pictures(model)))


@pytest.mark.parametrize('load', [through_timm, load_model])
def test_a_network_is_saved_into_the_folder_that_it_was_loaded_from(load, tmp_path):
    """Its tensors may be a view of the file that is replaced."""
    model = load(save_pretrained(build(seed=7), tmp_path))
    with torch.no_grad():
        model.fc.bias += 1
    expected = model(pictures(model))
    save_pretrained(model, tmp_path)
    assert torch.equal(model(pictures(model)), expected)
    assert torch.equal(load(tmp_path)(pictures(model)), expected)
    mapped = load_file(tmp_path / 'model.safetensors')
    model.load_state_dict(mapped, assign=True)
    save_pretrained(model, tmp_path)
    assert torch.equal(model(pictures(model)), expected)
    assert torch.equal(load(tmp_path)(pictures(model)), expected)


def test_whoever_may_read_the_config_may_read_the_weights(tmp_path):
    before = os.umask(0o022)
    try:
        save_pretrained(build(), tmp_path)
    finally:
        os.umask(before)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ('model.safetensors', 'config.json')} == {0o644}


def test_the_same_network_gives_the_same_bytes_and_says_nothing_of_the_machine(tmp_path):
    first = contents(save_pretrained(build(seed=7), tmp_path / 'first'))
    assert contents(save_pretrained(load_model(tmp_path / 'first'), tmp_path / 'second')) == first
    assert not any(str(tmp_path).encode() in data for data in first.values())


def test_saving_changes_neither_the_network_nor_the_global_generator(tmp_path):
    model = build().train()
    state, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    save_pretrained(model, tmp_path, dtype=torch.float16)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_channels_last_networks_save_the_same_bytes(tmp_path):
    before = contents(save_pretrained(build(freeze_spatial=False), tmp_path / 'first'))
    model = build(freeze_spatial=False).to(memory_format=torch.channels_last)
    assert contents(save_pretrained(model, tmp_path / 'second')) == before


def with_five_classes(**kwargs):
    model = build(**kwargs)
    model.reset_classifier(5)
    return model.eval()


@pytest.mark.parametrize(
    'model',
    [
        lambda: with_five_classes(num_classes=10),
        lambda: with_five_classes(share_weights=True, recycle=4, in_chans=1),
        lambda: build(in_chans=1),
        lambda: build(in_chans=1, freeze_spatial=False),
        lambda: build(global_pool='max'),
        lambda: build(num_classes=0),
        lambda: lively(timm.create_model('test_resnet', num_classes=3)),
        lambda: fold(build(num_classes=3, expansion=2, in_chans=1)),
        lambda: fold(build('lc_resnet20_16x2', share_weights=True)),
    ],
)
def test_what_was_changed_by_timms_own_means_saves_and_loads(model, tmp_path):
    model = model()
    loaded = load_model(save_pretrained(model, tmp_path))
    assert loaded.num_classes == model.num_classes
    assert torch.equal(loaded(pictures(model)), model(pictures(model)))
    assert loaded.pretrained_cfg['architecture'] == model.pretrained_cfg['architecture']


def test_arguments_are_recorded_whatever_timm_does(tmp_path):
    kwargs = {'share_weights': True, 'recycle': 4, 'seed': 7}
    model = timm.create_model(NAME, num_classes=3, **kwargs)
    folder = save_pretrained(model, tmp_path)
    assert json.loads((folder / 'config.json').read_text())['model_args'].items() >= kwargs.items()
    loaded = load_model(folder)
    assert timm_lc.count_parameters(loaded) == timm_lc.count_parameters(model)
    args = json.loads((save_pretrained(fold(model), tmp_path) / 'config.json').read_text())['model_args']
    assert not args.keys() & kwargs.keys()


@pytest.mark.parametrize('wrap', [nn.DataParallel, torch.compile, ModelEmaV3])
def test_wrapped_networks_save_what_is_inside(wrap, tmp_path):
    model = build()
    before = contents(save_pretrained(model, tmp_path / 'model'))
    assert contents(save_pretrained(wrap(model), tmp_path / 'wrapped')) == before


def test_distributed_networks_save_what_is_inside(tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path / "group"}', rank=0, world_size=1)
    try:
        model = build()
        wrapped = nn.parallel.DistributedDataParallel(model)
        before = contents(save_pretrained(model, tmp_path / 'model'))
        assert contents(save_pretrained(wrapped, tmp_path / 'wrapped')) == before
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3)),
            'must come from timm.create_model: a Sequential has no architecture',
        ),
        (lambda: build(features_only=True), 'is a FeatureListNet, a part of a network: save the whole network'),
        (
            lambda: freeze_spatial(timm.create_model('test_resnet')),
            r"is not what timm.create_model\('test_resnet', .*\) builds: 'conv1.0.record' differs. Build it by its lc_",
        ),
        (
            lambda: share_weights(timm.create_model('test_resnet')),
            "'conv1.0.record' differs. Build it by its lc_ name, give `model_args`, or save its state dict",
        ),
        (
            lambda: timm_lc.add_linear_combinations(build(), 2),
            "'conv1.0.spatial.record' differs",
        ),
    ],
)
def test_what_no_name_builds_is_refused(model, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_pretrained(model(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_arguments_can_be_given(tmp_path):
    model = freeze_spatial(build(), seed=5)
    model = timm_lc.add_linear_combinations(model, 2, seed=5)
    loaded = load_model(save_pretrained(model, tmp_path, model_args={'expansion': 2}))
    assert torch.equal(loaded(pictures(model)), model(pictures(model)))


@pytest.mark.parametrize('change', [{}, {'num_classes': 3}, {'in_chans': 1}])
def test_filters_kept_as_they_were_load_through_the_lc_name(change, tmp_path):
    model = freeze_spatial(build(freeze_spatial=False, num_classes=4, seed=3), seed=None)
    with pytest.raises(ValueError, match=r"'conv1.0.record' differs. .* give `model_args`"):
        save_pretrained(model, tmp_path)
    loaded = through_timm(save_pretrained(model, tmp_path, model_args={'freeze_spatial': True}), **change)
    frozen = [module for module in loaded.modules() if is_frozen(module)]
    assert frozen
    assert all(conv.filter_record.is_kept for conv in frozen)
    if not change:
        assert torch.equal(loaded(pictures(model)), model(pictures(model)))
        assert torch.equal(load_model(save_pretrained(loaded, tmp_path))(pictures(model)), model(pictures(model)))


# What load_model takes

ARGS = {
    'model': NAME, 'model_kwargs': {'seed': 7, 'share_weights': True}, 'num_classes': 5, 'in_chans': None, 'gp': 'max',
    'img_size': 48, 'input_size': None, 'mean': [0.1, 0.2, 0.3], 'std': [0.4, 0.5, 0.6], 'interpolation': 'bilinear',
    'crop_pct': 0.9, 'bn_eps': None, 'bn_momentum': None, 'drop': 0.1, 'drop_path': None, 'opt': 'sgd', 'lr': 0.1,
}  # fmt: skip


def write_run(folder, with_ema=True, **changes):
    """Save two epochs, the first the better one, as train.py does; return the networks whose weights count."""
    args = argparse.Namespace(**{**ARGS, **changes})
    folder.mkdir()
    (folder / 'args.yaml').write_text(yaml.safe_dump(vars(args)))
    model = build(args.model, num_classes=args.num_classes, global_pool=args.gp, **args.model_kwargs)
    ema = ModelEmaV3(model, decay=0.5) if with_ema else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saver = CheckpointSaver(model, optimizer, args=args, model_ema=ema, checkpoint_dir=str(folder))
    epochs = []
    for epoch, metric in enumerate((50.0, 40.0)):
        lively(model, seed=epoch)
        if ema:
            ema.update(model)
        saver.save_checkpoint(epoch, metric=metric)
        epochs.append(copy.deepcopy(ema.module if ema else model).eval())
    return epochs


@pytest.mark.parametrize('with_ema', [True, False])
def test_a_run_gives_its_best_epoch_and_a_file_its_own(with_ema, tmp_path):
    best, last = write_run(tmp_path / 'run', with_ema)
    images = pictures(best, 48)
    assert torch.equal(load_model(tmp_path / 'run')(images), best(images))
    assert torch.equal(load_model(tmp_path / 'run' / 'last.pth.tar')(images), last(images))
    (tmp_path / 'run' / 'model_best.pth.tar').unlink()
    loaded = load_model(tmp_path / 'run')
    assert torch.equal(loaded(images), last(images))
    assert not loaded.training
    assert not torch.equal(best(images), last(images))


def test_a_runs_data_config_reaches_config_json(tmp_path):
    write_run(tmp_path / 'run')
    loaded = load_model(tmp_path / 'run')
    save_pretrained(loaded, tmp_path / 'saved')
    for config in (
        loaded.pretrained_cfg,
        json.loads((tmp_path / 'saved' / 'config.json').read_text())['pretrained_cfg'],
    ):
        assert tuple(config['input_size']) == (3, 48, 48)
        assert tuple(config['mean']) == (0.1, 0.2, 0.3)
        assert tuple(config['std']) == (0.4, 0.5, 0.6)
        assert (config['interpolation'], config['crop_pct']) == ('bilinear', 0.9)
        assert config.get('test_input_size') is None
    data_config = timm.data.resolve_model_data_config(load_model(tmp_path / 'saved'), use_test_size=True)
    assert tuple(data_config['input_size']) == (3, 48, 48)
    config = json.loads((tmp_path / 'saved' / 'config.json').read_text())
    assert config['model_args'].items() >= {'seed': 7, 'share_weights': True}.items()
    assert config['num_classes'] == 5


@pytest.mark.parametrize(('change', 'channels'), [({'in_chans': 1}, 1), ({'input_size': [4, 40, 40]}, 4)])
def test_a_runs_channels_are_the_networks(change, channels, tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    args = argparse.Namespace(**{**ARGS, 'mean': None, 'std': None, **change})
    model = build(num_classes=5, global_pool='max', in_chans=channels, **args.model_kwargs)
    torch.save({'state_dict': model.state_dict(), 'args': args, 'state_dict_ema': None}, folder / 'last.pth.tar')
    loaded = load_model(folder)
    assert torch.equal(loaded(pictures(model)), model(pictures(model)))
    assert loaded.pretrained_cfg['input_size'][0] == channels


def test_a_runs_norm_arguments_count(tmp_path):
    args = argparse.Namespace(model='lc_test_efficientnet', bn_eps=0.1, bn_momentum=0.01)
    model = build(args.model, bn_eps=0.1)
    torch.save({'state_dict': model.state_dict(), 'args': args}, tmp_path / 'last.pth.tar')
    assert torch.equal(load_model(tmp_path)(pictures(model)), model(pictures(model)))


def test_a_state_dict_loads_into_a_name_and_its_arguments(tmp_path):
    model = build(num_classes=5, expansion=2, seed=7)
    for name, state in (('bare.pth', model.state_dict()), ('ddp.pth', nn.DataParallel(model).state_dict())):
        torch.save(state, tmp_path / name)
        loaded = load_model(tmp_path / name, NAME, num_classes=5, expansion=2)
        assert torch.equal(loaded(pictures(model)), model(pictures(model)))


def test_arguments_win_over_those_of_the_checkpoint(tmp_path):
    best, _ = write_run(tmp_path / 'run')
    images = pictures(best, 48)
    loaded = load_model(tmp_path / 'run', share_weights=False, global_pool='avg')
    assert loaded.global_pool.pool_type == 'avg'
    assert torch.equal(loaded.forward_features(images), best.forward_features(images))
    save_pretrained(best, tmp_path / 'saved')
    loaded = load_model(tmp_path / 'saved', num_classes=3, in_chans=1)
    assert loaded(torch.zeros(1, 1, 48, 48)).shape == (1, 3)


def test_a_checkpoint_that_does_not_tell_its_architecture_is_an_error(tmp_path):
    torch.save(build().state_dict(), tmp_path / 'bare.pth')
    with pytest.raises(ValueError, match=r'bare.pth does not tell its architecture: give its name'):
        load_model(tmp_path / 'bare.pth')
    save_pretrained(build(), tmp_path / 'saved')
    (tmp_path / 'saved' / 'config.json').unlink()
    with pytest.raises(ValueError, match=r'model.safetensors does not tell its architecture'):
        load_model(tmp_path / 'saved')


def test_a_checkpoint_of_another_architecture_is_an_error(tmp_path):
    torch.save(build().state_dict(), tmp_path / 'bare.pth')
    with pytest.raises(
        ValueError, match=r'(?s)cannot load .*bare.pth: .*layer `layer1.0.conv1`: .*another architecture'
    ):
        load_model(tmp_path / 'bare.pth', 'lc_resnet18')
    torch.save({'weight': 1}, tmp_path / 'plain.pth')
    with pytest.raises(ValueError, match=r'cannot load .*plain.pth: '):
        load_model(tmp_path / 'plain.pth', NAME)


def test_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=f'no checkpoint at {tmp_path / "nothing"}'):
        load_model(tmp_path / 'nothing')
    with pytest.raises(
        FileNotFoundError, match=f'no model.safetensors, model_best.pth.tar or last.pth.tar in {tmp_path}'
    ):
        load_model(tmp_path)
    (tmp_path / 'folder.safetensors').mkdir()
    with pytest.raises(FileNotFoundError, match=r'no model\.safetensors'):
        load_model(tmp_path / 'folder.safetensors')


# A promise

KEPT = {
    'frozen': ({'depth': 8, 'width': 4, 'expansion': 2, 'seed': 7}, {}),
    'recycled': (
        {'depth': 8, 'width': 4, 'expansion': 2, 'seed': 7, 'share_weights': True, 'recycle': 4},
        {'sparse': True, 'dtype': torch.float16},
    ),
}


def written_images():
    """Return two images from integer arithmetic, (2, 3, 32, 32) in [-1, 1]."""
    pixels = np.arange(2 * 3 * 32 * 32, dtype=np.int64) * 7919 % 255
    return torch.from_numpy((pixels / 127 - 1).astype(np.float32).reshape(2, 3, 32, 32))


def write_fixtures(folder):
    for name, (kwargs, form) in KEPT.items():
        model = pruned(build('lc_resnet_cifar', **kwargs))
        save_pretrained(model, folder / name, card='', **form)
        logits = load_model(folder / name)(written_images())
        (folder / name / 'logits.json').write_text(json.dumps(logits.tolist()) + '\n')


@pytest.mark.parametrize('name', KEPT)
def test_checkpoints_of_version_1_load_for_ever(name):
    folder, images = FIXTURES / name, written_images()
    logits = torch.tensor(json.loads((folder / 'logits.json').read_text()))
    kwargs, _ = KEPT[name]
    bare = load_model(folder / 'model.safetensors', 'lc_resnet_cifar', **{**kwargs, 'seed': 0})
    for model in (load_model(folder), through_timm(folder), bare):
        torch.testing.assert_close(model(images), logits, rtol=1e-5, atol=1e-5)


if __name__ == '__main__':
    write_fixtures(Path(sys.argv[1]))
