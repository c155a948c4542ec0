"""Handwritten digits: real images that need no download."""

from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

__all__ = ['Digits']

HELD_OUT = 450


class Digits(Dataset):
    """scikit-learn's 1,797 handwritten digits (8x8, Alpaydin and Kaynak, 1998) as RGB images, 450 of them held out.

    Args:
        train: Whether to give the 1,347 for training or the held-out 450.
        size: Side of the upscaled images in pixels.
    """

    def __init__(self, *, train: bool, size: int = 32) -> None:
        try:
            from sklearn.datasets import load_digits
        except ModuleNotFoundError:
            raise ModuleNotFoundError("the digits need scikit-learn: pip install 'timm_lc[demo]'") from None
        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))  # neighbours are of one writer
        part = order[HELD_OUT:] if train else order[:HELD_OUT]
        pixels = (digits.images[part] * (255 / 16)).astype(np.uint8)
        self.images = [
            Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC).convert('RGB') for image in pixels
        ]
        self.labels = [int(label) for label in digits.target[part]]
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.images[index]
        return (self.transform(image) if self.transform else image), self.labels[index]
