"""Accuracy under attack: FGSM (Goodfellow et al., 2015), as in figure 4, and the stronger PGD (Madry et al., 2018).

Images are pixels in [0, 1], shape (N, C, H, W); a model of normalised images is wrapped by `Normalized`.
Perturbations are at most `epsilon` in each pixel, and stay within the range of pixels.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from timm_lc.arguments import check_count

__all__ = ['EPSILON', 'Normalized', 'fgsm', 'pgd', 'robust_accuracy']

EPSILON = 1 / 255  # figure 4


class Normalized(nn.Module):
    """A model that takes pixels in [0, 1] and normalises them itself, so that an attack works on pixels.

    Args:
        model: Takes normalised images (N, C, H, W).
        mean: Of each channel, in [0, 1].
        std: Of each channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer('mean', torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer('std', torch.tensor(std).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, classes)."""
        return self.model((pixels - self.mean) / self.std)


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Return images (N, C, H, W) moved by `epsilon` along the sign of the loss's gradient."""
    return _limit(images + epsilon * _gradient(model, images, labels).sign(), images, epsilon)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float = EPSILON,
    *,
    steps: int = 10,
    step_size: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return images (N, C, H, W) after `steps` of projected gradient ascent from a random start within `epsilon`.

    Args:
        model: Takes pixels in [0, 1].
        images: Pixels in [0, 1].
        labels: (N,).
        epsilon: Largest change of a pixel.
        steps: Number of steps.
        step_size: Change of a pixel in one step; None is 2.5 * epsilon / steps, as Madry et al. advise.
        generator: Of the random start, on the CPU.

    Raises:
        ValueError: If `steps` is not positive.
    """
    check_count('steps', steps)
    step_size = 2.5 * epsilon / steps if step_size is None else step_size
    noise = torch.rand(images.shape, generator=generator).to(images) * 2 - 1
    adversarial = _limit(images + epsilon * noise, images, epsilon)
    for _ in range(steps):
        moved = adversarial + step_size * _gradient(model, adversarial, labels).sign()
        adversarial = _limit(moved, images, epsilon)
    return adversarial


def robust_accuracy(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    attack: Callable[..., Tensor] = fgsm,
    **options: Any,
) -> float:
    """Return the accuracy, in percent, on images that `attack` has changed; `options` are the attack's.

    Raises:
        ValueError: If there are no batches, or a pixel is outside [0, 1].
    """
    model.eval()
    correct, total = 0, 0
    for images, labels in batches:
        if images.min() < 0 or images.max() > 1:
            raise ValueError('`batches` must hold pixels in [0, 1]: wrap the model in `Normalized`')
        adversarial = attack(model, images, labels, **options)
        with torch.inference_mode():
            correct += int((model(adversarial).argmax(1) == labels).sum())
        total += len(labels)
    if not total:
        raise ValueError('`batches` must hold at least one image')
    return 100 * correct / total


def _gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of each image's loss, leaving those of the parameters alone."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        return torch.autograd.grad(cross_entropy(model(images), labels, reduction='sum'), images)[0]


def _limit(adversarial: Tensor, images: Tensor, epsilon: float) -> Tensor:
    """Return the nearest images within `epsilon` of `images` and within [0, 1]."""
    exact = images.double()
    limited = adversarial.detach().double().clamp(exact - epsilon, exact + epsilon).clamp(0, 1).to(images.dtype)
    is_beyond = (limited.double() - exact).abs() > epsilon  # by rounding
    return torch.where(is_beyond, torch.nextafter(limited, images), limited)
