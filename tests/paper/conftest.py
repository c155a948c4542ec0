"""Images to reproduce figures from."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def tiny_images(tmp_path, monkeypatch):
    """Go to an empty folder but for `images`: an ImageFolder tree of two classes, dark and bright."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for split, count in (('train', 8), ('validation', 4)):
        for label in range(2):
            folder = tmp_path / 'images' / split / f'class{label}'
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 128, (8, 8, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{index}.png')
