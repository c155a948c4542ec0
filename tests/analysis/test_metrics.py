"""Measures against torchconvquality, numpy, hand values, and attacks against their definition."""

import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

from timm_lc.analysis.metrics import (
    effective_filters,
    pointwise_weights,
    position_variance,
    randomness_threshold,
    reconstruction_error,
    variance_entropy,
)
from timm_lc.analysis.robustness import EPSILON, Normalized, fgsm, pgd, robust_accuracy


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    return Normalized(nn.Sequential(*layers), (0.5, 0.4, 0.3), (0.05, 0.04, 0.06)).eval()


@pytest.mark.parametrize('shape', [(8, 3, 3, 3), (64, 16, 3, 3)])
def test_variance_entropy_is_that_of_torchconvquality(shape, generator):
    quality = pytest.importorskip('torchconvquality', reason='needs torchconvquality: pip install torchconvquality')
    filters = torch.randn(shape, generator=generator) * torch.linspace(0.1, 2, 9).view(3, 3)
    raw, normalized = quality.variance_entropy(filters)
    assert variance_entropy(filters) == pytest.approx(raw, abs=1e-5)
    assert variance_entropy(filters, normalized=True) == pytest.approx(normalized, abs=1e-5)


def test_two_kernels_have_one_component_and_no_entropy(generator):
    assert variance_entropy(torch.randn(2, 1, 3, 3, generator=generator)) == pytest.approx(0, abs=1e-5)


def test_variance_entropy_is_the_entropy_of_principal_components(generator):
    filters = torch.randn(16, 4, 5, 5, generator=generator)
    kernels = filters.numpy().reshape(64, 25).astype(float)
    ratio = np.linalg.eigvalsh(np.cov(kernels.T))
    ratio = ratio / ratio.sum()
    assert variance_entropy(filters) == pytest.approx(-(ratio * np.log10(ratio)).sum())


def test_fresh_filters_are_random_and_identical_ones_are_not():
    model = timm.create_model('lc_resnet20_16x128')
    filters = model.layer3[0].conv2.spatial.weight
    assert 0.97 < variance_entropy(filters, normalized=True) < 1.03
    assert variance_entropy(filters) == pytest.approx(math.log10(9), abs=1e-3)
    assert variance_entropy(filters[:1, :1].expand(8, 4, 3, 3)) == 0
    assert variance_entropy(torch.zeros(8, 4, 3, 3)) == 0
    multiples = torch.arange(1.0, 33).view(8, 4, 1, 1) * filters[0, 0]
    assert variance_entropy(multiples) == pytest.approx(0, abs=1e-6)


def test_randomness_threshold_grows_to_the_entropy_of_noise():
    assert randomness_threshold(9) < randomness_threshold(64) < randomness_threshold(10**6)
    assert randomness_threshold(10**9) == pytest.approx(math.log10(9), abs=0.005)


def test_entropy_of_larger_kernels_is_not_normalized():
    with pytest.raises(ValueError, match=r'3x3 kernels, got \(5, 5\)'):
        variance_entropy(torch.ones(2, 2, 5, 5), normalized=True)
    with pytest.raises(ValueError, match=r'`filters` must have shape .* got \(2, 2\)'):
        variance_entropy(torch.ones(2, 2))


def test_position_variance_is_numpys(generator):
    layers = [torch.randn(8, 3, 5, 5, generator=generator) * scale for scale in (1, 30)]
    scaled = [layer.double().numpy() / layer.double().numpy().std(ddof=1) for layer in layers]
    kernels = np.concatenate([layer.reshape(-1, 5, 5) for layer in scaled])
    np.testing.assert_allclose(position_variance(layers), kernels.var(0, ddof=1))


@pytest.mark.parametrize('count', [1, 9, 26, 27, 50])
def test_reconstruction_error_is_that_of_least_squares(count, generator):
    filters, random = torch.randn(8, 3, 3, 3, generator=generator), torch.randn(count, 3, 3, 3, generator=generator)
    target, basis = filters.double().numpy().reshape(8, 27).T, random.double().numpy().reshape(count, 27).T
    rest = target - basis @ np.linalg.lstsq(basis, target, rcond=None)[0]
    expected = np.linalg.norm(rest) / np.linalg.norm(target)
    assert reconstruction_error(filters, random) == pytest.approx(expected, abs=1e-9)
    assert (expected < 1e-9) == (count >= 27)


def test_effective_filters_are_linear_combinations():
    model = timm.create_model('lc_resnet20_16x2')
    names = [name for name, _ in effective_filters(model)]
    assert names[:2] == ['conv1', 'layer1.0.conv1']
    assert len(names) == 19
    block, (_, effective) = model.conv1, next(effective_filters(model))
    pointwise, spatial = block.pointwise.weight.flatten(1), block.spatial.weight.flatten(1)
    torch.testing.assert_close(effective.flatten(1), (pointwise @ spatial).detach())
    plain = timm.create_model('lc_resnet18')
    assert torch.equal(dict(effective_filters(plain))['conv1'], plain.conv1.weight)


def test_pointwise_weights_are_all_of_them():
    model = timm.create_model('lc_resnet20_16x2')
    assert sum(len(weights) for _, weights in pointwise_weights(model)) == sum(
        p.numel() for p in model.parameters() if p.ndim == 4
    )


@pytest.mark.parametrize('attack', [fgsm, pgd])
@pytest.mark.parametrize('epsilon', [EPSILON, 0.1])
def test_perturbations_are_within_epsilon_and_valid_pixels(attack, epsilon, network, generator):
    images = torch.randint(0, 256, (16, 3, 16, 16), generator=generator) / 255  # many at 0 and at 1
    images[0], images[1] = 0, 1
    adversarial = attack(network, images, torch.arange(16) % 4, epsilon)
    assert (adversarial.double() - images.double()).abs().max() <= epsilon
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert not adversarial.equal(images)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_fgsm_moves_along_the_sign_of_the_gradient(network, generator):
    images = torch.rand(4, 3, 16, 16, generator=generator) * 0.8 + 0.1
    labels = torch.arange(4)
    leaf = images.clone().requires_grad_()
    nn.functional.cross_entropy(network(leaf), labels).backward()
    torch.testing.assert_close(fgsm(network, images, labels, 0.01), images + 0.01 * leaf.grad.sign())


def test_pgd_is_stronger_than_fgsm_and_fgsm_than_nothing(network, generator):
    images = torch.rand(64, 3, 16, 16, generator=generator)
    labels = network(images).argmax(1)

    def loss(changed):
        return nn.functional.cross_entropy(network(changed), labels).item()

    strong = pgd(network, images, labels, 0.03, steps=20, generator=generator)
    assert loss(images) < loss(fgsm(network, images, labels, 0.03)) < loss(strong)


def test_robust_accuracy_counts_what_survives(network, generator):
    images = torch.rand(64, 3, 16, 16, generator=generator)
    labels = network(images).argmax(1)
    batches = [(images[:40], labels[:40]), (images[40:], labels[40:])]
    assert robust_accuracy(network, batches, epsilon=0.0) == 100
    survived = network(fgsm(network, images, labels, 0.05)).argmax(1) == labels
    assert robust_accuracy(network, batches, epsilon=0.05) == 100 * survived.double().mean().item() < 100
    assert robust_accuracy(network, batches, pgd, epsilon=0.05) <= robust_accuracy(network, batches, epsilon=0.05)


def test_bad_input_to_attacks_is_named(network):
    labels = torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match='at least one image'):
        robust_accuracy(network, [])
    with pytest.raises(ValueError, match=r'pixels in \[0, 1\]'):
        robust_accuracy(network, [(torch.full((2, 3, 8, 8), -1.0), labels)])
    with pytest.raises(ValueError, match='`steps` must be a positive integer, got 0'):
        pgd(network, torch.rand(2, 3, 8, 8), labels, steps=0)
