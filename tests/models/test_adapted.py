"""`adapter=` and `base=`: adapters to whatever timm builds, from `timm.create_model` alone."""

import argparse
import json

import pytest
import timm
import torch

from timm_lc import count_parameters, fold, load_adapter, save_pretrained


@pytest.fixture
def base(stock, tmp_path):
    """Return a trained stock network and its folder; the stock networks of these tests differ from a new one."""
    model = stock()
    save_pretrained(model, tmp_path / 'base')
    return model, tmp_path / 'base'


def adapted(base, **kwargs):
    return timm.create_model('lc_test_resnet', **{'adapter': 4, 'base': str(base), **kwargs}).eval()


def moved(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return model


def test_a_network_begins_as_its_base(base, images):
    model, folder = base
    assert torch.equal(adapted(f'local-dir:{folder}')(images), model(images))


@pytest.mark.parametrize('form', ['safetensors', 'state dict', 'train.py'])
def test_a_base_is_read_from_a_file(base, images, tmp_path, form):
    model, folder = base
    file = folder / 'model.safetensors'
    if form != 'safetensors':
        file = tmp_path / 'checkpoint.pth.tar'
        state = {f'module.{key}': tensor for key, tensor in model.state_dict().items()}
        args = argparse.Namespace(model='test_resnet')
        torch.save(state if form == 'state dict' else {'state_dict': state, 'args': args, 'epoch': 3}, file)
    assert torch.equal(adapted(file, num_classes=4)(images), model(images))
    assert adapted(file, num_classes=9)(images).shape == (2, 9)


def test_a_frozen_random_base_is_folded(images, tmp_path):
    model = timm.create_model('lc_test_resnet', seed=3, num_classes=4).eval()
    save_pretrained(model, tmp_path)
    torch.testing.assert_close(adapted(f'local-dir:{tmp_path}')(images), model(images))
    torch.save(model.state_dict(), tmp_path / 'state.pth')
    for file in ('model.safetensors', 'state.pth'):
        torch.testing.assert_close(adapted(tmp_path / file)(images), model(images))


def test_a_network_of_this_packages_own_is_a_base(images, tmp_path):
    plain = timm.create_model('lc_lowres_resnet20', freeze_spatial=False).eval()
    save_pretrained(plain, tmp_path / 'base')
    for base in (f'local-dir:{tmp_path / "base"}', str(tmp_path / 'base' / 'model.safetensors')):
        model = timm.create_model('lc_lowres_resnet20', adapter=4, base=base).eval()
        assert torch.equal(model(images), plain(images))


def test_a_name_with_an_expansion_adapts_the_network_of_that_name(tmp_path, images):
    name = 'lc_resnet20_16x8'
    model = timm.create_model(name, adapter=4, base=f'{name}.cifar10_jpeg').eval()
    torch.testing.assert_close(model(images), timm.create_model(name, pretrained=True).eval()(images))
    moved(model)
    save_pretrained(model, tmp_path)
    assert torch.equal(timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()(images), model(images))
    with pytest.raises(ValueError, match='it cannot go with expansion=8'):
        timm.create_model(name, adapter=4, base=f'{name}.cifar10_jpeg', expansion=8)


def test_saved_networks_are_built_again_from_base_and_adapter(base, images, tmp_path):
    model, folder = base
    trained = moved(adapted(f'local-dir:{folder}', num_classes=7, adapter_norms=False, seed=5))
    save_pretrained(trained, tmp_path / 'task')
    config = json.loads((tmp_path / 'task' / 'config.json').read_text())
    assert config['architecture'] == 'lc_test_resnet'
    assert config['model_args']['base'] == f'local-dir:{folder}'
    again = timm.create_model(f'local-dir:{tmp_path / "task"}', pretrained=True).eval()
    assert torch.equal(again(images), trained(images))
    assert torch.equal(load_adapter(model, tmp_path / 'task' / 'model.safetensors')(images), trained(images))


def test_the_images_are_those_of_the_base(stock, tmp_path):
    model = stock()
    model.pretrained_cfg = {**model.pretrained_cfg, 'mean': (0.1, 0.2, 0.3), 'input_size': (3, 96, 96)}
    save_pretrained(model, tmp_path)
    cfg = adapted(f'local-dir:{tmp_path}').pretrained_cfg
    assert (tuple(cfg['mean']), tuple(cfg['input_size'])) == ((0.1, 0.2, 0.3), (3, 96, 96))
    assert cfg['architecture'] == 'lc_test_resnet'


def test_fold_gives_the_stock_architecture(base, images):
    _, folder = base
    trained = moved(adapted(f'local-dir:{folder}'))
    folded = fold(trained)
    assert folded.pretrained_cfg['architecture'] == 'test_resnet'
    torch.testing.assert_close(folded(images), trained(images), rtol=1e-4, atol=1e-4)
    rebuilt = timm.create_model('test_resnet', num_classes=4).eval()
    rebuilt.load_state_dict(folded.state_dict())
    assert torch.equal(rebuilt(images), folded(images))


def test_networks_in_half_precision_know_their_base(base, images, tmp_path):
    _, folder = base
    trained = moved(adapted(f'local-dir:{folder}'))
    half = adapted(f'local-dir:{folder}', dtype=torch.bfloat16)
    assert half.fc.weight.dtype == torch.bfloat16
    half.load_state_dict(trained.state_dict())
    assert half(images.bfloat16()).isfinite().all()


def test_on_the_meta_device_no_base_is_fetched():
    model = adapted('test_resnet.r160_in1k', device='meta')
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_weights_of_the_base_count_in_the_total(base):
    model, folder = base
    counts = count_parameters(adapted(f'local-dir:{folder}'))
    plain = sum(p.numel() for p in model.parameters())
    assert counts.learnable == counts.stored
    assert counts.total > plain


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'adapter': 0}, '`adapter` must be a positive integer, got 0'),
        ({'base': None}, '`adapter` needs `base`, the trained network that it adapts; got base=None'),
        ({'adapter': None}, '`base` needs `adapter`, the rank of adapters to it'),
        ({'expansion': 4}, '`adapter` leaves the base as it is: it cannot go with expansion=4'),
        ({'share_weights': True}, 'it cannot go with share_weights=True'),
        ({'freeze_spatial': False}, 'it cannot go with freeze_spatial=False'),
        ({'base': 'resnet18'}, "`base` 'resnet18' is a resnet18, but lc_test_resnet adapts a test_resnet"),
        ({'base': 'test_resnte'}, "`base` 'test_resnte' is no network that timm knows"),
        ({'base': 'local-dir:nowhere'}, "`base` 'local-dir:nowhere' cannot be loaded: .* It must be a folder of save"),
        ({'adapter': None, 'base': None, 'adapter_layers': 'all'}, "need `adapter`, .* got 'all' and True alone"),
        ({'adapter': None, 'base': None, 'adapter_norms': False}, "need `adapter`, .* got 'spatial' and False alone"),
        ({'adapter': None, 'base': None, 'kept': ['conv1']}, r"names of layers .*, got \['conv1'\]"),
        ({'adapter_layers': 'none'}, '`layers` must be one of'),
        ({'adapter_norms': 1}, '`adapter_norms` must be True or False, got 1'),
        ({'features_only': True}, '`adapter` has no `features_only`'),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(base, kwargs, message):
    _, folder = base
    with pytest.raises(ValueError, match=message):
        timm.create_model('lc_test_resnet', **{'adapter': 4, 'base': f'local-dir:{folder}', **kwargs})


def test_a_base_of_another_architecture_is_refused(stock, tmp_path):
    save_pretrained(stock('test_efficientnet'), tmp_path)
    with pytest.raises(ValueError, match='is a test_efficientnet, but lc_test_resnet adapts a test_resnet'):
        adapted(f'local-dir:{tmp_path}')


@pytest.mark.parametrize('content', [b'', b'no checkpoint', bytes(1000)])
@pytest.mark.parametrize('file', ['base.safetensors', 'base.pth'])
def test_a_base_that_is_damaged_says_so(file, content, tmp_path):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=f'`base` .*{file}. cannot be loaded: .* It must be a folder of save_pre'):
        adapted(tmp_path / file)


def test_a_base_that_needs_the_network_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(ValueError, match=r'cannot be loaded: .* It is fetched from the network: check the connection'):
        adapted('test_resnet.r160_in1k', cache_dir=tmp_path)


def test_a_checkpoint_of_another_base_is_refused(base, stock, tmp_path):
    _, folder = base
    trained = moved(adapted(f'local-dir:{folder}'))
    revised = stock()
    with torch.no_grad():
        revised.layer1[0].conv1.weight += 1e-3
    save_pretrained(revised, tmp_path / 'revised')
    with pytest.raises(RuntimeError, match=r'1 of \d+ layers differ, `layer1\.0\.conv1` first'):
        adapted(f'local-dir:{tmp_path / "revised"}').load_state_dict(trained.state_dict())


def test_an_overlay_counts_as_in_other_networks(base, images, tmp_path):
    """As train.py gives it: `--pretrained --pretrained-path FILE`, which replaces the head."""
    _, folder = base
    trained = moved(adapted(f'local-dir:{folder}', num_classes=4))
    torch.save({'state_dict': trained.state_dict()}, tmp_path / 'last.pth.tar')
    overlay = {'file': str(tmp_path / 'last.pth.tar'), 'num_classes': -1, 'mean': (0.1, 0.2, 0.3)}
    model = adapted(f'local-dir:{folder}', pretrained=True, num_classes=4, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.forward_features(images), trained.forward_features(images))
    assert model.pretrained_cfg['mean'] == (0.1, 0.2, 0.3)
