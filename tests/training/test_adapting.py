"""What the comparison of ways to adapt trains, and on which images."""

import sys

import numpy as np
import pytest
import timm
import torch
from torch import nn

from timm_lc.training.adapting import METHODS, Tuning, choose, learn, shrink, stored_bytes
from timm_lc.training.data import Images

PEFT = "needs peft: pip install 'timm_lc[compare]'"


@pytest.fixture
def images():
    """Return twelve images of each of four classes, told apart by their colour, and four for validation."""
    generator = np.random.default_rng(0)

    def draw(count):
        colours = np.linspace(30, 220, 4).repeat(count)[:, None, None, None]
        noise = generator.integers(-20, 20, (4 * count, 3, 16, 16))
        return torch.from_numpy((colours + noise).astype(np.uint8)), torch.arange(4).repeat_interleave(count)

    return Images('colours', list('abcd'), *draw(12), *draw(4))


def test_choose_takes_so_many_of_each_class_and_labels_them_anew(images):
    chosen = choose(images, [1, 3], 5, seed=1)
    assert chosen.classes == ['b', 'd']
    assert chosen.train_labels.bincount().tolist() == [5, 5]
    assert chosen.validation_labels.bincount().tolist() == [4, 4]
    for found, label, original in ((chosen.train, 0, 1), (chosen.validation, 1, 3)):
        labels = chosen.train_labels if found is chosen.train else chosen.validation_labels
        pool = images.train if found is chosen.train else images.validation
        known = images.train_labels if found is chosen.train else images.validation_labels
        assert all(any(torch.equal(x, y) for y in pool[known == original]) for x in found[labels == label])
    assert torch.equal(chosen.train, choose(images, [1, 3], 5, seed=1).train)
    assert not torch.equal(chosen.train, choose(images, [1, 3], 5, seed=2).train)


def test_shrink_means_squares_of_pixels(images):
    small = shrink(images, 4)
    expected = images.train.double().reshape(-1, 3, 4, 4, 4, 4).mean((3, 5)).round()
    assert (small.train.double() - expected).abs().max() <= 1  # halves round to either side
    with pytest.raises(ValueError, match='`pixels` must divide 16, got 5'):
        shrink(images, 5)


def test_learn_reaches_what_is_easy(images):
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=4)
    accuracy = learn(model, images, Tuning(epochs=20, lr=0.02, batch_size=12), 0, normalize=images.normalize)
    assert accuracy > 70


@pytest.mark.parametrize(
    ('method', 'kinds'),
    [
        ('head only', {nn.Linear}),
        ('head and norms', {nn.Linear, nn.BatchNorm2d}),
        ('adapter, rank 8', {nn.Linear, nn.BatchNorm2d, nn.Conv2d}),
    ],
)
def test_methods_learn_what_they_say(method, kinds):
    model = METHODS[method](timm.create_model('test_resnet', num_classes=4))
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {type(model.get_submodule(name.rpartition('.')[0])) for name in learned} == kinds


def test_lora_learns_its_matrices_norms_and_head():
    pytest.importorskip('peft', reason=PEFT)
    model = METHODS['LoRA, rank 8 (peft)'](timm.create_model('test_resnet', num_classes=4))
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    plain = timm.create_model('test_resnet', num_classes=4)
    norms = {
        f'{name}.{tensor}'
        for name, module in plain.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for tensor in ('weight', 'bias')
    }
    assert {name for name in learned if 'lora_' not in name} == norms | {'fc.weight', 'fc.bias'}
    assert sum('lora_' in name for name in learned) == 2 * sum(
        isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1 for module in plain.modules()
    )


def test_bytes_are_of_what_learns():
    def plain():
        return timm.create_model('test_resnet', num_classes=4)

    whole = sum(tensor.nbytes for tensor in plain().state_dict().values())
    assert whole < stored_bytes(plain()) < whole + 100 * len(plain().state_dict())
    head = plain().fc.weight.nbytes + plain().fc.bias.nbytes
    assert head < stored_bytes(METHODS['head only'](plain())) < head + 300


def test_bytes_of_lora_are_of_what_learns():
    pytest.importorskip('peft', reason=PEFT)
    lora = METHODS['LoRA, rank 8 (peft)'](timm.create_model('test_resnet', num_classes=4))
    learned = sum(parameter.nbytes for parameter in lora.parameters() if parameter.requires_grad)
    statistics = sum(buffer.nbytes for buffer in lora.buffers())
    assert learned + statistics < stored_bytes(lora) < learned + statistics + 120 * len(lora.state_dict())


def test_lora_without_peft_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'peft', None)
    with pytest.raises(ModuleNotFoundError, match=r"LoRA needs peft: pip install 'timm_lc\[compare\]'"):
        METHODS['LoRA, rank 8 (peft)'](timm.create_model('test_resnet', num_classes=4))
