"""FGSM against foolbox's, which the authors' trainer uses, on the same network and pixels."""

import pytest
import timm
import torch

from timm_lc.analysis.robustness import EPSILON, Normalized, fgsm, robust_accuracy

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


@pytest.fixture(scope='module')
def attacked():
    """Return a network of normalised images, pixels (64, 3, 32, 32), and labels of which half are its own."""
    torch.manual_seed(0)
    model = timm.create_model('lc_resnet20_16x2').eval()
    pixels = torch.rand(64, 3, 32, 32)
    with torch.inference_mode():
        labels = Normalized(model, MEAN, STD)(pixels).argmax(1)
    labels = torch.where(torch.arange(64) % 2 == 0, labels, (labels + 1) % 10).clone()
    return model, pixels, labels


@pytest.mark.parametrize('epsilon', [EPSILON, 8 / 255])
def test_fgsm_is_foolboxs(attacked, epsilon):
    foolbox = pytest.importorskip('foolbox', reason='needs foolbox')
    model, pixels, labels = attacked
    preprocessing = {'mean': MEAN, 'std': STD, 'axis': -3}
    theirs = foolbox.PyTorchModel(model, bounds=(0, 1), preprocessing=preprocessing, device='cpu')
    _, expected, fooled = foolbox.attacks.FGSM()(theirs, pixels, labels, epsilons=epsilon)
    ours = fgsm(Normalized(model, MEAN, STD), pixels, labels, epsilon)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    accuracy = robust_accuracy(Normalized(model, MEAN, STD), [(pixels, labels)], epsilon=epsilon)
    assert accuracy == 100 * (1 - fooled.double().mean().item())
