"""A saved folder as transformers opens it (`pip install 'timm_lc[transformers]'`)."""

import json

import pytest
import timm
import torch

import timm_lc
from timm_lc.naming import name_classes


@pytest.mark.parametrize(
    ('name', 'kwargs', 'size'),
    [
        ('lc_test_resnet', {'share_weights': True, 'seed': 3}, 160),
        ('lc_resnet20_16x2', {'num_classes': 4}, 32),
        ('lc_resnet20_16x2', {'num_classes': 4, 'freeze_spatial': False}, 32),
    ],
)
def test_transformers_opens_a_folder_with_the_same_logits(name, kwargs, size, tmp_path):
    transformers = pytest.importorskip('transformers', reason="needs transformers: pip install 'timm_lc[transformers]'")
    model = timm.create_model(name, **kwargs).eval()
    names = [f'class {index}' for index in range(model.num_classes)]
    name_classes(model, names)
    timm_lc.save_pretrained(model, tmp_path)
    opened = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(opened(images).logits, model(images))
    assert opened.config.id2label == dict(enumerate(names))


@pytest.mark.parametrize('kwargs', [{}, {'share_weights': True}, {'expansion': 2}])
def test_transformers_opens_filters_that_no_seed_gives(kwargs, tmp_path):
    transformers = pytest.importorskip('transformers', reason="needs transformers: pip install 'timm_lc[transformers]'")
    model = timm.create_model('lc_test_resnet', num_classes=4, **kwargs).eval()
    conv = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3))
    conv.weight.data += 0.1
    with pytest.warns(UserWarning, match='frozen filters were overwritten'):
        timm_lc.save_pretrained(model, tmp_path)
    opened = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(opened(images).logits, model(images))


def test_the_number_of_classes_stands_once_where_transformers_looks(tmp_path):
    timm_lc.save_pretrained(timm.create_model('lc_resnet20_16x1', num_classes=7, seed=2), tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['num_classes'] == 7
    assert 'num_classes' not in config['model_args']
    assert timm.create_model(f'local-dir:{tmp_path}').num_classes == 7
