"""Image sets that live on the device as uint8, and their augmentation there (appendix C; the second version's table 1).

Each set is normalised by its own mean and deviation. SVHN is not augmented; Fashion-MNIST is upscaled to 32x32.
"""

import dataclasses
import functools
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.utils import natural_key
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from timm_lc.arguments import check_count

__all__ = ['DATA', 'TRAIN_IMAGES', 'Images', 'augment', 'load_images']

TRAIN_IMAGES = {'cifar10': 50_000, 'cifar100': 50_000, 'svhn': 73_257, 'fashion_mnist': 60_000, 'digits': 1347}
DATA = tuple(TRAIN_IMAGES)
_FORMAT = 'a folder with train/CLASS/*.png and validation/CLASS/*.png'
_TENSORS = ('train', 'train_labels', 'validation', 'validation_labels')


@dataclasses.dataclass(frozen=True)
class Images:
    """A training and a validation set.

    Attributes:
        name: Of the set, or its folder's.
        classes: Names.
        train: (N, C, H, W), uint8.
        train_labels: (N,), int64.
        validation: (M, C, H, W), uint8.
        validation_labels: (M,), int64.
        augmented: Whether training pads, crops and mirrors them.
        limit: Images of each split that were taken of a larger set; None is all.
    """

    name: str
    classes: list[str]
    train: Tensor
    train_labels: Tensor
    validation: Tensor
    validation_labels: Tensor
    augmented: bool = True
    limit: int | None = None

    @functools.cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (C,) of the training pixels in [0, 1], by channel."""
        pixels = self.train.transpose(0, 1).flatten(1)  # (C, N*H*W)
        counts = torch.stack([torch.bincount(channel, minlength=256) for channel in pixels]).double()
        values = torch.arange(256, device=pixels.device).double() / 255
        mean = (counts * values).sum(1, keepdim=True) / pixels.shape[1]
        variance = (counts * (values - mean).square()).sum(1) / pixels.shape[1]
        std = variance.sqrt()
        return mean[:, 0].float(), std.where(std > 0, 1.0).float()  # a channel of one value becomes 0

    @functools.cached_property
    def checksum(self) -> str:
        """CRC-32 of all pixels and labels, in hexadecimal digits."""
        tensors = (getattr(self, name) for name in _TENSORS)
        crc = functools.reduce(lambda crc, tensor: zlib.crc32(tensor.cpu().contiguous().numpy(), crc), tensors, 0)
        return f'{crc:08x}'

    def normalize(self, images: Tensor) -> Tensor:
        """Return uint8 images (N, C, H, W) as float32, less the mean and over the deviation of each channel."""
        mean, std = self.statistics
        return (images.float() / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)

    def map(self, change: Callable[[Tensor], Tensor]) -> 'Images':
        """Return the set with `change` applied to each tensor, such as a move to a device."""
        return dataclasses.replace(self, **{name: change(getattr(self, name)) for name in _TENSORS})


def load_images(source: str, root: str | Path = 'data', limit: int | None = None) -> Images:
    """Return a set of images by name, or from an ImageFolder tree.

    Args:
        source: 'cifar10', 'cifar100', 'svhn' or 'fashion_mnist' (downloaded and verified by torchvision), 'digits'
            (scikit-learn's handwritten ones at 32 pixels), or a folder with the splits train/ and validation/.
        root: Where torchvision keeps its downloads.
        limit: Images of each split, evenly spaced; None is all.

    Raises:
        ValueError: If there is no such set, a split is missing or has no images, or there is but one class.
        ModuleNotFoundError: If the digits need scikit-learn, or SVHN needs scipy.
    """
    if source in DATA:
        images = _digits() if source == 'digits' else _named(source, Path(root))
    elif Path(source).is_dir():
        images = _folder(Path(source))
    else:
        raise ValueError(f'`data` must be one of {", ".join(DATA)} or {_FORMAT}, got {source!r}')
    if len(images.classes) < 2:
        raise ValueError(f'`data` {source!r} must have two or more classes, got {images.classes}')
    return images if limit is None else _thin(images, limit)


def augment(images: Tensor, flips: Tensor, offsets: Tensor, padding: int = 4) -> Tensor:
    """Return images padded with zeros, cropped to their own size, and mirrored.

    Args:
        images: (N, C, H, W).
        flips: (N,), bool; whether to mirror the crop.
        offsets: (N, 2), the crop's upper and left edge in the padded image, in [0, 2 * padding].
        padding: Zeros on each side.
    """
    n, c, h, w = images.shape
    rows = offsets[:, :1] + torch.arange(h, device=images.device)  # (N, H)
    columns = torch.arange(w, device=images.device).expand(n, w)
    columns = offsets[:, 1:] + torch.where(flips[:, None], w - 1 - columns, columns)  # (N, W)
    padded = pad(images, (padding,) * 4).flatten(2)  # (N, C, H' * W')
    index = rows[:, :, None] * (w + 2 * padding) + columns[:, None, :]  # (N, H, W)
    return padded.gather(2, index.view(n, 1, h * w).expand(n, c, h * w)).view(n, c, h, w)


def _named(name: str, root: Path) -> Images:
    splits = _download(name, root)
    if name == 'svhn':
        tensors = [(torch.from_numpy(s.data).contiguous(), torch.from_numpy(s.labels)) for s in splits]
        return Images(name, [str(digit) for digit in range(10)], *tensors[0], *tensors[1], augmented=False)
    if name == 'fashion_mnist':
        tensors = [(torch.stack([_upscaled(image) for image in s.data.numpy()]), s.targets) for s in splits]
    else:
        tensors = [(torch.from_numpy(s.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(s.targets)) for s in splits]
    return Images(name, splits[0].classes, *tensors[0], *tensors[1])


def _download(name: str, root: Path) -> list[Any]:
    """Return torchvision's training and test set."""
    from torchvision import datasets

    kinds = {'cifar10': datasets.CIFAR10, 'cifar100': datasets.CIFAR100, 'fashion_mnist': datasets.FashionMNIST}
    try:
        if name == 'svhn':
            return [datasets.SVHN(root, split=split, download=True) for split in ('train', 'test')]
        return [kinds[name](root, train=train, download=True) for train in (True, False)]
    except ModuleNotFoundError:
        raise ModuleNotFoundError("SVHN needs scipy: pip install 'timm_lc[plots]'") from None
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f'`data` {name}: torchvision cannot download it to {root.resolve()}: {error}; `data` may also be {_FORMAT}'
        ) from error


def _upscaled(pixels: Any) -> Tensor:
    """Return a grey image (28, 28) as (1, 32, 32)."""
    image = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image))[None]


def _digits() -> Images:
    from timm_lc.training.digits import Digits

    splits = [Digits(train=train) for train in (True, False)]
    tensors = [(torch.stack([_pixels(image) for image in s.images]), torch.tensor(s.labels)) for s in splits]
    return Images('digits', [str(digit) for digit in range(10)], *tensors[0], *tensors[1])


def _folder(root: Path) -> Images:
    """Read an ImageFolder tree whose images have one size."""
    splits = []
    for split in ('train', 'validation'):
        try:
            splits.append(_image_folder(root / split))
        except FileNotFoundError as error:
            raise ValueError(f'`data` must be {_FORMAT}: {error}') from None
    if splits[0].classes != splits[1].classes:
        raise ValueError(f'`data` {root}: train/ and validation/ must hold the same classes')
    _check_names([root.resolve(), *(root / 'train' / name for name in splits[0].classes)])
    tensors = [_read(split, root) for split in splits]
    if tensors[0][0].shape[1:] != tensors[1][0].shape[1:]:
        sizes = [tuple(images.shape[1:]) for images, _ in tensors]
        raise ValueError(f'`data` {root}: all images must have one size, got {sizes[0]} and {sizes[1]}')
    return Images(root.resolve().name, splits[0].classes, *tensors[0], *tensors[1])


def _image_folder(root: Path) -> Any:
    """Return torchvision's data set of a folder of classes, which stand in timm's order: 2 before 10, a before B."""
    from torchvision.datasets import ImageFolder

    class Ordered(ImageFolder):
        def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
            classes = sorted(super().find_classes(directory)[0], key=natural_key)
            return classes, {name: index for index, name in enumerate(classes)}

    return Ordered(root)


def _check_names(folders: list[Path]) -> None:
    """Refuse names that are no text, which neither a config nor a card could hold after the training."""
    for folder in folders:
        try:
            folder.name.encode()
        except UnicodeEncodeError:
            raise ValueError(f'`data`: the name of the folder {os.fsencode(folder)!r} must be UTF-8') from None


def _read(split: Any, root: Path) -> tuple[Tensor, Tensor]:
    """Return the images (N, 3, H, W) and labels of a torchvision data set."""
    images: list[Tensor] = []
    for path, _ in tqdm(split.samples, desc=f'reading {split.root}', unit='image', disable=None):
        try:
            images.append(_pixels(_open(path)))
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(f'`data` {root}: cannot read {path}: {error}') from error
        if images[-1].shape != images[0].shape:
            sizes = tuple(images[0].shape), tuple(images[-1].shape)
            raise ValueError(f'`data` {root}: all images must have one size, got {sizes[0]} and {sizes[1]} at {path}')
    return torch.stack(images), torch.tensor(split.targets)


def _open(path: str) -> Image.Image:
    with Image.open(path) as image:
        if image.mode[0] in 'IF':
            raise OSError(f'its pixels must have 8 bits a channel, got those of mode {image.mode}')
        return image.convert('RGB')


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _thin(images: Images, limit: int) -> Images:
    check_count('limit', limit)
    thin = images.map(lambda tensor: tensor[torch.linspace(0, len(tensor) - 1, min(limit, len(tensor))).round().long()])
    return dataclasses.replace(thin, limit=limit)
