"""Exports give the source's logits where they are to be used: stock timm, torch alone, ONNX runtimes, this package."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image

import timm_lc
from timm_lc.checkpoints import exporting
from timm_lc.checkpoints.checkpoint import load_model
from timm_lc.checkpoints.exporting import FORMS, compare, export
from timm_lc.cli import main
from timm_lc.transforms.prune import prune_pointwise

STOCK = {
    'frozen': ('lc_test_resnet', {}),
    'one channel, five classes': ('lc_test_resnet', {'in_chans': 1, 'num_classes': 5}),
    'shared': ('lc_test_resnet', {'share_weights': True, 'seed': 3}),
    'recycled': ('lc_test_resnet', {'share_weights': True, 'recycle': 4}),
    'expanded': ('lc_test_resnet', {'expansion': 2, 'in_chans': 4}),
    'expanded, recycled': ('lc_test_resnet', {'expansion': 2, 'share_weights': True, 'recycle': 4}),
    'learnable': ('lc_test_resnet', {'freeze_spatial': False}),
    'channels last': ('lc_test_resnet', {}),
    'mobilenet': ('lc_mobilenetv3_small_050', {'num_classes': 10}),
    'same padding': ('lc_tf_mobilenetv3_small_minimal_100', {'num_classes': 10, 'expansion': 2}),
    'an ordinary network': ('test_resnet', {}),
}
LACKING = {  # in stock timm; the last is the folded network's architecture
    'LCResNet': ('lc_resnet20_16x2', {}, 'lc_resnet_cifar'),
    'recycled, other classes': (
        'lc_resnet20_16x2',
        {'share_weights': True, 'recycle': 4, 'num_classes': 5, 'in_chans': 1},
        'lc_resnet_cifar',
    ),
    'given geometry': (
        'lc_resnet_cifar',
        {'depth': 8, 'width': 8, 'kernel_size': 5, 'expansion': 2},
        'lc_resnet_cifar',
    ),
    'plain ResNet-20': ('lc_lowres_resnet20', {}, 'lc_resnet_cifar'),
    'low resolution': ('lc_lowres_mobilenetv2_100', {'expansion': 2}, 'lc_lowres_mobilenetv2_100'),
}
FINE_TUNED = {'frozen': {}, 'shared': {'share_weights': True}, 'expanded': {'expansion': 2}}

# Runs where this package cannot be imported; the first networks where timm cannot either.
ELSEWHERE = """
import json, sys
sys.modules['timm_lc'] = sys.modules['timm'] = None
import torch

def outputs(model, images):
    return {'logits': model(images)}

def stock_outputs(model, images):
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    return {'logits': model(images), 'features': features, 'state': model.state_dict()}

with open(sys.argv[1]) as file:
    jobs = json.load(file)
found = {}
with torch.no_grad():
    for name, job in jobs.items():
        if job['path'].endswith('.pt2'):
            found[name] = outputs(torch.export.load(job['path']).module(), torch.load(job['images']))
    del sys.modules['timm']
    import timm
    for name, job in jobs.items():
        if not job['path'].endswith('.pt2'):
            model = timm.create_model('local-dir:' + job['path'], pretrained=True, **job['arguments']).eval()
            found[name] = stock_outputs(model, torch.load(job['images']))
torch.save(found, sys.argv[2])
"""


def network(name, **kwargs):
    """Return a network whose weights and batch statistics are as those of a trained one: not trivial."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, **kwargs)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def random_images(model, count=3, size=None):
    channels = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d)).in_channels
    size = size or model.pretrained_cfg['input_size'][-1]
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(9))


def assert_same_logits(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture(scope='module')
def elsewhere(tmp_path_factory, stock_folders):
    """Export all networks once, and run them in one process without this package; return (there, here)."""
    root = tmp_path_factory.mktemp('elsewhere')
    jobs, here = {}, {}

    def add(key, path, model, arguments=None):
        images = random_images(model, size=None if str(path).endswith('.pt2') else 64)
        torch.save(images, root / f'{len(jobs)}.images')
        jobs[key] = {'path': str(path), 'images': str(root / f'{len(jobs)}.images'), 'arguments': arguments or {}}
        here[key] = model, images

    for key, (name, kwargs) in STOCK.items():
        model = network(name, **kwargs)
        if key == 'channels last':
            model = model.to(memory_format=torch.channels_last)
        export(model, 'plain', root / key)
        add(key, root / key, model)
    for key in ('LCResNet', 'recycled, other classes', 'low resolution'):
        name, kwargs, _ = LACKING[key]
        model = network(name, **kwargs)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, 'onnx', None)  # to save time
            export(model, 'plain', root / key)
            add(key, root / key / 'model.pt2', model)
    for key, kwargs in FINE_TUNED.items():
        model = network('lc_test_resnet', num_classes=10, **kwargs)
        export(model, 'plain', root / f'plain {key}')
        timm_lc.save_pretrained(model, root / f'saved {key}')
        arguments = {'num_classes': 5, 'in_chans': 1}
        tuned = timm.create_model(f'local-dir:{root}/saved {key}', pretrained=True, **arguments).eval()
        add(f'fine-tuned {key}', root / f'plain {key}', tuned, arguments)
    (root / 'jobs.json').write_text(json.dumps(jobs))
    command = [sys.executable, '-c', ELSEWHERE, str(root / 'jobs.json'), str(root / 'found.pt')]
    subprocess.run(command, check=True, cwd=root)
    return torch.load(root / 'found.pt'), here


@pytest.mark.parametrize('key', [*STOCK, 'LCResNet', 'recycled, other classes', 'low resolution'])
def test_plain_loads_without_this_package(key, elsewhere):
    there, here = elsewhere
    model, images = here[key]
    assert_same_logits(there[key]['logits'], model(images))


@pytest.mark.parametrize('key', FINE_TUNED)
def test_fine_tuning_begins_as_stock_timm_does_from_the_plain_export(key, elsewhere):
    there, here = elsewhere
    model, images = here[f'fine-tuned {key}']
    stock = there[f'fine-tuned {key}']
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    assert_same_logits(features, stock['features'])
    assert model(images).shape == stock['logits'].shape == (3, 5)
    state = timm_lc.fold(model).state_dict()
    assert state.keys() == stock['state'].keys()
    for name, tensor in state.items():
        if not name.startswith('fc.'):  # drawn anew
            torch.testing.assert_close(tensor, stock['state'][name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('key', ['frozen', 'shared'])
def test_fine_tuning_is_that_of_stock_timm_with_frozen_filters(key, tmp_path, stock_folders):
    source = network('lc_test_resnet', num_classes=10, **FINE_TUNED[key])
    export(source, 'plain', tmp_path / 'plain')
    timm_lc.save_pretrained(source, tmp_path / 'saved')
    arguments = {'pretrained': True, 'num_classes': 5, 'in_chans': 1}
    model, stock = (timm.create_model(f'local-dir:{tmp_path / form}', **arguments) for form in ('saved', 'plain'))
    stock.fc.load_state_dict(model.fc.state_dict())  # drawn anew
    for module in stock.modules():
        if isinstance(module, torch.nn.Conv2d) and max(module.kernel_size) > 1:
            module.weight.requires_grad_(False)
    images, labels = random_images(model, 4, 64), torch.arange(4)
    for trained in (model, stock):
        optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(trained.train()(images), labels).backward()
            optimizer.step()
    before, after = source.state_dict(), timm_lc.fold(model).state_dict()
    assert not torch.allclose(after['layer1.0.bn1.weight'], before['layer1.0.bn1.weight'], atol=1e-3)
    for name, tensor in stock.state_dict().items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_plain_export_of_a_timm_network_is_that_architecture(tmp_path):
    done = export(network('lc_test_resnet', expansion=2, share_weights=True, in_chans=4), 'plain', tmp_path / 'out')
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert config['architecture'] == 'test_resnet'
    assert config['pretrained_cfg']['first_conv'] == timm.get_pretrained_cfg('test_resnet').first_conv
    assert {'expansion', 'share_weights', 'seed'}.isdisjoint(config['model_args'])
    assert not done.notes


def test_a_plain_export_of_an_lcresnet_says_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    done = export(network('lc_resnet20_16x1'), 'plain', tmp_path)
    assert [path.name for path in done.files] == ['README.md', 'model.pt2']
    assert done.notes[0].startswith('stock timm has no lc_resnet20_16x1: model.pt2 is it folded')
    assert 'model.onnx was left out: ONNX needs onnx' in done.notes[1]


def test_the_card_of_a_program_says_how_to_load_and_feed_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    monkeypatch.chdir(tmp_path)
    model = network('lc_resnet20_16x1', in_chans=1)
    export(model, 'plain', tmp_path)
    card = ModelCard.load(tmp_path / 'README.md')
    assert card.data.library_name is None
    assert 'It takes images (N, 1, 32, 32) in [0, 1], less mean (' in card.text
    assert 'ONNX' not in card.text
    (code,) = re.findall('```python\n(.*?)```', card.text, re.DOTALL)
    names = {}
    exec(code, names)
    images = random_images(model)
    assert_same_logits(names['model'](images), model(images))


@pytest.mark.parametrize('key', LACKING)
def test_folded_networks_load_in_this_package(key, tmp_path):
    name, kwargs, architecture = LACKING[key]
    model = network(name, **kwargs)
    done = export(model, 'folded', tmp_path)
    assert [path.name for path in done.files] == ['README.md', 'config.json', 'model.safetensors']
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['architecture'] == architecture
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert not any(isinstance(module, timm_lc.LCConv2d) for module in loaded.modules())
    assert timm_lc.count_parameters(loaded).learnable == timm_lc.count_parameters(loaded).total
    images = random_images(model)
    assert_same_logits(loaded(images), model(images))
    assert torch.equal(timm_lc.fold(loaded)(images), loaded(images))
    tuned = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, num_classes=3, in_chans=2)
    assert tuned(torch.zeros(2, 2, 32, 32)).shape == (2, 3)


def test_table_1s_network_folded_takes_little_space(tmp_path):
    model = timm.create_model('lc_resnet20_16x128', share_weights=True, recycle=16).eval()
    done = export(model, 'folded', tmp_path)
    assert sum(path.stat().st_size for path in done.files) < 1_200_000
    assert done.comparisons[0].agreement == 1


def test_a_network_in_training_is_refused_and_untouched(tmp_path):
    model = timm.create_model('lc_resnet20_16x1').train()
    with pytest.raises(ValueError, match='`model` must be in eval mode'):
        export(model, 'safetensors', tmp_path)
    assert (model.bn1.running_mean == 0).all()


def test_safetensors_is_the_network_as_it_is(tmp_path):
    model = network('lc_resnet20_16x2', seed=7)
    (comparison,) = export(model, 'safetensors', tmp_path / 'whole').comparisons
    assert (comparison.number, comparison.difference, comparison.agreement) == (16, 0.0, 1.0)
    images = random_images(model)
    loaded = timm.create_model(f'local-dir:{tmp_path}/whole', pretrained=True).eval()
    assert torch.equal(loaded(images), model(images))


def test_safetensors_sparse_and_in_half_precision(tmp_path):
    model = network('lc_resnet20_16x8')
    prune_pointwise(model, 0.7)
    sizes = [export(model, 'safetensors', tmp_path).files[-1].stat().st_size]
    done = export(model, 'safetensors', tmp_path, sparse=True)
    assert done.comparisons[0].difference == 0
    sizes.append(done.files[-1].stat().st_size)
    for dtype in (torch.float16, torch.bfloat16):
        done = export(model, 'safetensors', tmp_path / str(dtype), sparse=True, dtype=dtype)
        assert 0 < done.comparisons[0].relative < 0.1
    sizes.append(done.files[-1].stat().st_size)
    assert sizes[0] > 2 * sizes[1] > 3 * sizes[2]


needs_onnx = pytest.mark.skipif(
    any(not exporting.find_spec(name) for name in ('onnx', 'onnxruntime', 'onnxscript')),
    reason="needs onnx, onnxruntime and onnxscript: pip install 'timm_lc[onnx]'",
)


def run_onnx(path, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    (given,), (returned,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ('images', ['batch', *images.shape[1:]])
    assert (returned.name, returned.shape[0]) == ('logits', 'batch')
    return torch.from_numpy(session.run(None, {'images': images.numpy()})[0])


@needs_onnx
@pytest.mark.parametrize('exporter', ['dynamo', 'torchscript'])
@pytest.mark.parametrize('key', ['recycled, other classes', 'depthwise'])
def test_onnx_takes_any_batch(key, exporter, tmp_path, monkeypatch):
    if exporter == 'torchscript':
        monkeypatch.setitem(sys.modules, 'onnxscript', None)
    name, kwargs = LACKING[key][:2] if key in LACKING else ('lc_test_efficientnet', {'expansion': 2})
    model = network(name, **kwargs)
    done = export(model, 'onnx', tmp_path)
    assert [path.name for path in done.files] == ['model.onnx']
    for count in (1, 5):
        images = random_images(model, count)
        assert_same_logits(run_onnx(done.files[0], images), model(images))


@needs_onnx
def test_a_plain_export_of_an_lcresnet_has_onnx_too(tmp_path):
    model = network('lc_resnet20_16x1')
    done = export(model, 'plain', tmp_path)
    assert [path.name for path in done.files] == ['README.md', 'model.onnx', 'model.pt2']
    assert 'the same for ONNX runtimes' in done.files[0].read_text()
    assert [what.file for what in done.comparisons] == ['model.pt2', 'model.onnx']
    assert done.notes[0].endswith('model.onnx for other runtimes')
    for path in done.files:
        assert path.stat().st_size < 1_500_000
        for package in (timm_lc, timm, torch):
            assert str(Path(package.__file__).parents[1]).encode() not in path.read_bytes()


@needs_onnx
def test_onnx_keeps_large_weights_in_a_file_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, 'ONNX_LIMIT', 0)
    model = network('lc_resnet20_16x1')
    done = export(model, 'onnx', tmp_path)
    assert [path.name for path in done.files] == ['model.onnx', 'model.onnx.data']
    images = random_images(model)
    assert_same_logits(run_onnx(done.files[0], images), model(images))


@pytest.mark.parametrize('missing', ['onnx', 'onnxruntime'])
def test_onnx_says_what_to_install(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{missing}.*: pip install 'timm_lc\[onnx\]'"):
        export(network('lc_resnet20_16x1'), 'onnx', tmp_path / 'out')
    assert not list(tmp_path.iterdir())


def test_compare_counts():
    logits = torch.tensor([[1.0, 2.0], [3.0, -4.0], [0.0, 1.0]])
    other = torch.tensor([[1.0, 2.0], [3.0, -4.5], [1.5, 1.0]])
    batches = [(torch.tensor([0, 1]), 'labels'), (torch.tensor([2]), 'labels')]
    found = compare(lambda index: logits[index], lambda index: other[index], batches)
    assert (found.number, found.difference, found.relative) == (3, 1.5, 1.5 / 4)
    assert math.isclose(found.agreement, 2 / 3)


@pytest.mark.parametrize('value', [1.0, math.nan])
@pytest.mark.filterwarnings('ignore:.*values that are not finite:UserWarning')
def test_another_network_is_refused_and_leaves_nothing(value, tmp_path, monkeypatch):
    def wrong(model):
        folded = timm_lc.fold(model)
        torch.nn.init.constant_(folded.fc.bias, value)
        return folded

    monkeypatch.setattr(exporting, 'fold', wrong)
    monkeypatch.setitem(sys.modules, 'onnx', None)
    for name, form in (('lc_test_resnet', 'plain'), ('lc_resnet20_16x1', 'plain'), ('lc_resnet20_16x1', 'folded')):
        with pytest.raises(ValueError, match=r'model\.\w+ is not the network: on random images logits differ by up to'):
            export(network(name), form, tmp_path / 'a' / 'b')
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_earlier_files_alone(tmp_path, monkeypatch):
    export(network('lc_resnet20_16x1'), 'safetensors', tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match='`tolerance` is 0'):
        export(network('lc_resnet20_16x2'), 'safetensors', tmp_path, dtype=torch.float16, tolerance=0)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_card_that_somebody_wrote_stays(tmp_path):
    (tmp_path / 'README.md').write_text('mine')
    done = export(network('lc_resnet20_16x1'), 'folded', tmp_path)
    assert (tmp_path / 'README.md').read_text() == 'mine'
    assert [path.name for path in done.files] == ['config.json', 'model.safetensors']


@pytest.mark.parametrize(
    ('form', 'arguments', 'message'),
    [
        ('stock', {}, '`form` must be one of plain, folded, onnx, safetensors'),
        ('plain', {'sparse': True}, '`sparse` and `dtype` are for safetensors'),
        ('folded', {'dtype': torch.float16}, '`sparse` and `dtype` are for safetensors'),
        ('folded', {'limit': 3}, '`limit` needs `data_dir`'),
        ('folded', {'data_dir': 'no-such-folder'}, 'no-such-folder'),
    ],
)
def test_wrong_arguments_are_named(form, arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(network('lc_resnet20_16x1'), form, tmp_path / 'out', **arguments)
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='`directory` must be a folder, got the file'):
        export(network('lc_resnet20_16x1'), 'folded', tmp_path / 'file' / 'out')


@pytest.fixture
def saved(tmp_path):
    """Return a saved network of two classes and a folder of images."""
    random = np.random.default_rng(0)
    for label in range(2):
        folder = tmp_path / 'images' / 'validation' / str(label)
        folder.mkdir(parents=True)
        for index in range(3):
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f'{index}.png')
    return timm_lc.save_pretrained(network('lc_resnet20_16x2', num_classes=2), tmp_path / 'saved'), tmp_path / 'images'


@pytest.mark.parametrize('form', FORMS)
def test_the_command_compares_on_images_of_a_folder(form, saved, tmp_path, capsys, monkeypatch):
    if form == 'onnx' and not exporting.find_spec('onnxruntime'):
        pytest.skip("needs onnx and onnxruntime: pip install 'timm_lc[onnx]'")
    if form == 'plain':
        monkeypatch.setitem(sys.modules, 'onnx', None)
    monkeypatch.setattr('timm_lc.analysis.evaluation.os.cpu_count', lambda: 0)
    folder, images = map(str, saved)
    argv = ['export', folder, '--to', form, '--output', str(tmp_path / 'out'), '--data-dir', images, '--limit', '4']
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert 'on 16 images, random images: 100.00% of predictions the same, logits differ by at most ' in out
    assert f'on 4 images, {images}: 100.00% of predictions the same' in out
    for path in (tmp_path / 'out').iterdir():
        assert f'{path.stat().st_size:,} bytes  {path}' in out


def test_the_command_fails_past_the_tolerance(saved, tmp_path, capsys):
    out = tmp_path / 'out'
    argv = ['export', str(saved[0]), '--to', 'safetensors', '--output', str(out), '--dtype', 'float16']
    with pytest.raises(SystemExit) as exit_info:
        main([*argv, '--tolerance', '1e-9'])
    assert exit_info.value.code == 2
    assert 'logits differ by up to' in capsys.readouterr().err
    assert not out.exists()
    assert main(argv) == 0
    assert load_model(out).num_classes == 2


def test_the_command_does_not_replace_its_source(saved, capsys):
    before = (saved[0] / 'model.safetensors').read_bytes()
    with pytest.raises(SystemExit):
        main(['export', str(saved[0]), '--to', 'folded', '--output', str(saved[0])])
    assert '`--output` is the checkpoint itself' in capsys.readouterr().err
    assert (saved[0] / 'model.safetensors').read_bytes() == before
