"""Filters that no seed gives, opened by loaders that assign tensors one by one to what a network is built to hold."""

import json

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from timm_lc import save_pretrained, verify

NETWORKS = {
    'frozen': {},
    'shared': {'share_weights': True},
    'blocks': {'expansion': 2},
    'recycled blocks': {'expansion': 2, 'share_weights': True, 'recycle': 4},
}
every_network = pytest.mark.parametrize('kwargs', NETWORKS.values(), ids=NETWORKS)


def overwrite(model, count):
    """Change the filters of the first `count` layers; return the names of these layers."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1][:count]
    for _, conv in layers:
        conv.weight.data += 0.1
    return [name for name, _ in layers]


def save(model, folder):
    with pytest.warns(UserWarning, match='frozen filters were overwritten'):
        save_pretrained(model, folder)
    return json.loads((folder / 'config.json').read_text())


def assigned(config, folder):
    """Build the network of a config as transformers does: on the meta device, then tensor by tensor."""
    with torch.device('meta'):
        model = timm.create_model(config['architecture'], num_classes=config['num_classes'], **config['model_args'])
    tensors, expected = safetensors.torch.load_file(folder / 'model.safetensors'), model.state_dict()
    assert tensors.keys() == expected.keys()
    model.to_empty(device='cpu')
    for name, tensor in tensors.items():
        parent, _, leaf = name.rpartition('.')
        module = model.get_submodule(parent)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(tensor)
        else:
            module._buffers[leaf] = tensor
    for module in model.modules():
        if hasattr(module, 'init_non_persistent_buffers'):
            module.init_non_persistent_buffers()
    return model.eval()


@every_network
@pytest.mark.parametrize('count', [1, 5])
def test_overwritten_filters_are_assigned_one_by_one(count, kwargs, tmp_path, images):
    model = timm.create_model('lc_test_resnet', num_classes=4, seed=7, **kwargs).eval()
    names = overwrite(model, count)
    config = save(model, tmp_path)
    assert config['model_args']['kept'].split() == names
    twin = assigned(config, tmp_path)
    torch.testing.assert_close(twin(images), model(images), rtol=1e-5, atol=1e-6)
    assert verify(twin) == {name: 'kept' if name in names else 'drawn' for name in verify(model)}


def test_a_config_of_drawn_filters_names_none(tmp_path):
    model = timm.create_model('lc_test_resnet', num_classes=4)
    overwrite(model, 2)
    assert 'kept' in save(model, tmp_path)['model_args']
    verify(model, remedy='restore')
    save_pretrained(model, tmp_path)
    assert 'kept' not in json.loads((tmp_path / 'config.json').read_text())['model_args']


def test_kept_filters_load_as_learnable_ones(tmp_path, images):
    model = timm.create_model('lc_test_resnet', num_classes=4).eval()
    overwrite(model, 2)
    save(model, tmp_path)
    twin = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, freeze_spatial=False).eval()
    torch.testing.assert_close(twin(images), model(images), rtol=1e-5, atol=1e-6)
    assert verify(twin) == {}


def test_layers_without_frozen_filters_cannot_be_kept():
    with pytest.raises(ValueError, match="`kept` must name layers with frozen filters, got 'fc'"):
        timm.create_model('lc_test_resnet', kept='conv1.0 fc')
