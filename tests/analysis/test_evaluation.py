"""Images of a folder reach a network as timm prepares them, and accuracy is counted."""

import numpy as np
import pytest
import timm
import torch

from timm_lc.analysis.evaluation import accuracy, folder_loader, predict


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Load without workers, which are slow to start."""
    monkeypatch.setattr('timm_lc.analysis.evaluation.os.cpu_count', lambda: 0)


@pytest.fixture
def model():
    return timm.create_model('lc_resnet20_16x1', num_classes=3)


@pytest.mark.parametrize('part', ['', 'validation', 'val'])
def test_images_are_scaled_and_normalised_in_order(part, model, tmp_path, images_in):
    pixels = images_in(tmp_path / part).reshape(12, 32, 32, 3)
    images, labels = (torch.cat(parts) for parts in zip(*folder_loader(model, tmp_path, batch_size=5), strict=True))
    config = timm.data.resolve_data_config(model=model)
    expected = (pixels / 255 - np.array(config['mean'])) / np.array(config['std'])
    np.testing.assert_allclose(images.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_images_are_grey_for_a_network_of_one_channel(tmp_path, images_in):
    pixels = images_in(tmp_path).reshape(12, 32, 32, 3)
    model = timm.create_model('lc_resnet20_16x1', num_classes=3, in_chans=1)
    [(images, _)] = folder_loader(model, tmp_path)
    grey = pixels @ np.array([0.299, 0.587, 0.114]) / 255  # ITU-R 601, as PIL's
    expected = (grey - np.mean([0.4914, 0.4822, 0.4465])) / np.mean([0.247, 0.2435, 0.2616])
    np.testing.assert_allclose(images[:, 0].numpy(), expected, atol=0.02)
    assert predict(model, [(images, torch.zeros(12))], torch.device('cpu'))[0].shape == (12, 3)


def test_a_network_of_five_channels_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='the model takes 5 channels, and images have 1 or 3'):
        folder_loader(timm.create_model('lc_resnet20_16x1', in_chans=5), tmp_path)


def test_images_of_another_size_are_resized_and_cropped(tmp_path, images_in):
    images_in(tmp_path, classes=4)
    images, _ = next(iter(folder_loader(timm.create_model('test_resnet', num_classes=4), tmp_path)))
    assert images.shape == (16, 3, 160, 160)


def test_a_limit_takes_images_of_all_classes(model, tmp_path, images_in):
    images_in(tmp_path)
    [(images, labels)] = folder_loader(model, tmp_path, limit=6)
    assert len(images) == 6
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert sum(len(labels) for _, labels in folder_loader(model, tmp_path, limit=100)) == 12


def test_predict_returns_the_logits_of_eval_mode(model, tmp_path, images_in):
    images_in(tmp_path)
    logits, labels = predict(model.train(), folder_loader(model, tmp_path, batch_size=5), torch.device('cpu'))
    images = torch.cat([images for images, _ in folder_loader(model, tmp_path)])
    assert torch.allclose(logits, model.eval()(images), atol=1e-5)
    right = sum(int(np.argmax(row) == label) for row, label in zip(logits.numpy(), labels.tolist(), strict=True))
    assert accuracy(logits, labels) == pytest.approx(100 * right / 12)


@pytest.mark.parametrize(
    ('kwargs', 'text'),
    [
        ({'limit': 0}, '`limit` must be a positive integer, got 0'),
        ({'batch_size': -1}, '`batch_size` must be a positive integer, got -1'),
        ({'data_dir': 'no/such'}, "`data_dir` must be a folder of images, got 'no/such'"),
    ],
)
def test_bad_arguments_are_named(kwargs, text, model, tmp_path, images_in):
    images_in(tmp_path)
    with pytest.raises(ValueError, match=text):
        folder_loader(model, **{'data_dir': tmp_path, **kwargs})


def test_folders_that_do_not_fit_are_errors(model, tmp_path, images_in):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=r'`data_dir` .*empty: Found 0 images'):
        folder_loader(model, tmp_path / 'empty')
    images_in(tmp_path / 'two', classes=2)
    with pytest.raises(ValueError, match='has 2 classes and the model 3'):
        folder_loader(model, tmp_path / 'two')
