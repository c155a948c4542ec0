"""The network that ships trained: offline, small, and what its file says when read by hand."""

import csv
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import timm_lc
from timm_lc.models.lc_shipped import WEIGHTS

NAME = 'lc_resnet20_16x8'
ROWS = Path(__file__).parents[2] / 'results/models.csv'


@pytest.fixture(scope='module')
def weights():
    return {name: tensor.float() for name, tensor in load_file(WEIGHTS / f'{NAME}.safetensors').items()}


@pytest.fixture
def by_hand(weights, filters_of):
    """Return the logits of ResNet-20-16 by the definition: each block's two convolutions, filters from their seed."""

    def block(x, name, c_in, c_out, stride):
        filters = filters_of((8 * c_out, c_in, 3, 3), name=f'{name}.spatial')
        return F.conv2d(F.conv2d(x, filters, stride=stride, padding=1), weights[f'{name}.pointwise.weight'])

    def norm(x, name):
        part = [weights[f'{name}.{key}'] for key in ('running_mean', 'running_var', 'weight', 'bias')]
        return F.batch_norm(x, *part)

    def by_hand(x):
        x = F.relu(norm(block(x, 'conv1', 3, 16, 1), 'bn1'))
        for stage, c_out in enumerate((16, 32, 64), 1):
            for index in range(3):
                name, c_in = f'layer{stage}.{index}', x.shape[1]
                stride = 1 if c_in == c_out else 2
                y = F.relu(norm(block(x, f'{name}.conv1', c_in, c_out, stride), f'{name}.bn1'))
                y = norm(block(y, f'{name}.conv2', c_out, c_out, 1), f'{name}.bn2')
                if stride == 2:
                    x = norm(F.conv2d(x, weights[f'{name}.downsample.0.weight'], stride=2), f'{name}.downsample.1')
                x = F.relu(x + y)
        return F.linear(x.mean((2, 3)), weights['fc.weight'], weights['fc.bias'])

    return by_hand


def test_it_is_listed_as_pretrained():
    assert timm.list_models('lc_*', pretrained=True) == [f'{NAME}.cifar10_jpeg']


def test_its_logits_are_those_of_its_file(by_hand, images):
    model = timm.create_model(NAME, pretrained=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(images), by_hand(images), rtol=1e-4, atol=1e-4)


def test_its_file_is_small_and_holds_no_filters(weights):
    assert (WEIGHTS / f'{NAME}.safetensors').stat().st_size < 700_000
    assert not [name for name in weights if name.endswith('spatial.weight')]


def test_its_accuracy_is_that_of_the_results():
    (row,) = (row for row in csv.DictReader(ROWS.read_text(encoding='utf-8').splitlines()) if row['model'] == NAME)
    description = timm.get_pretrained_cfg(NAME).description
    assert description.startswith(f'{row["accuracy"]} % of the 10,000 validation images of CIFAR-10 as JPEG')
    assert f'{row["epochs"]} epochs' in description
    assert int(row['bytes']) == (WEIGHTS / f'{NAME}.safetensors').stat().st_size
    assert row['accuracy'] in (WEIGHTS / 'README.md').read_text(encoding='utf-8')


def test_filters_are_adopted_whatever_the_seed(images):
    default, other = (timm.create_model(NAME, pretrained=True, seed=seed).eval() for seed in (0, 5))
    assert torch.equal(default(images), other(images))


def test_its_implicit_form_is_not_rounded_to_the_type_of_the_file(images):
    explicit, implicit = (timm.create_model(NAME, pretrained=True, implicit=form).eval() for form in (False, True))
    torch.testing.assert_close(implicit(images), explicit(images), rtol=1e-4, atol=1e-4)


def test_it_folds_and_takes_other_classes_and_channels(images):
    model = timm.create_model(NAME, pretrained=True).eval()
    torch.testing.assert_close(timm_lc.fold(model)(images), model(images), rtol=1e-4, atol=1e-4)
    other = timm.create_model(NAME, pretrained=True, num_classes=3, in_chans=1).eval()
    assert other(images[:, :1]).shape == (2, 3)


def test_a_network_that_starts_at_random_tells_nothing_of_it(tmp_path):
    model = timm.create_model(NAME)
    assert not {'file', 'tag', 'description'} & model.pretrained_cfg.keys()
    for name, network in (('random', model), ('shipped', timm.create_model(NAME, pretrained=True))):
        timm_lc.save_pretrained(network, tmp_path / name)
        assert str(WEIGHTS) not in (tmp_path / name / 'config.json').read_text()
    assert 'cifar10_jpeg' not in (tmp_path / 'random/config.json').read_text()


def test_a_network_of_other_classes_does_not_claim_its_accuracy(tmp_path):
    model = timm.create_model(NAME, pretrained=True)
    for name, classes in (('same', 10), ('other', 3)):
        model.reset_classifier(classes)
        timm_lc.save_pretrained(model, tmp_path / name)
    assert '86.98 %' in (tmp_path / 'same/config.json').read_text()
    for file in ('config.json', 'README.md'):
        assert '86.98' not in (tmp_path / 'other' / file).read_text()
