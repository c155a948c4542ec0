"""What is trained and how: appendix C's recipe, a run of it, and how a run uses its device."""

import dataclasses
import math
from typing import Any

import torch

from timm_lc.arguments import check_count

__all__ = ['Recipe', 'Run', 'Speed']


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Appendix C.

    Args:
        epochs: Passes over the training images.
        batch_size: Images of a step.
        lr: Initial learning rate; a cosine takes it to 0, step by step.
        momentum: Of Nesterov.
        weight_decay: Of every learnable tensor.
        smoothing: Of the labels.
        padding: Zeros around an image, of which random crops are taken.
        l1: Factor of the l1 penalty on pointwise weights (section 4.3); 0 is none.
        drop_last: Whether an incomplete last batch is left out, as in results made before it was kept.
    """

    epochs: int = 75
    batch_size: int = 256
    lr: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 1e-2
    smoothing: float = 0.1
    padding: int = 4
    l1: float = 0.0
    drop_last: bool = False

    def steps(self, images: int) -> int:
        """Return the steps of an epoch over that many images."""
        whole, rest = divmod(images, self.batch_size)
        return whole if self.drop_last else whole + bool(rest)

    def __post_init__(self) -> None:
        for name in ('epochs', 'batch_size'):
            check_count(name, getattr(self, name))
        if not 0 < self.lr < math.inf:
            raise ValueError(f'`lr` must be a positive number, got {self.lr!r}')
        if not 0 <= self.l1 < math.inf:
            raise ValueError(f'`l1` must be 0 or a positive number, got {self.l1!r}')


@dataclasses.dataclass(frozen=True)
class Run:
    """What is trained: a model by name and arguments, the seed of its training (filters have their own), the recipe."""

    model: str
    model_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0
    recipe: Recipe = dataclasses.field(default_factory=Recipe)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f'`seed` must be an integer in [0, 2**32), got {self.seed!r}')


@dataclasses.dataclass(frozen=True)
class Speed:
    """How a run uses its device; `best_for` chooses."""

    amp: bool = False
    channels_last: bool = False
    compile: bool = False

    @classmethod
    def best_for(cls, device: torch.device) -> 'Speed':
        """Return channels_last, and on a GPU also bfloat16 autocast and CUDA graphs."""
        return cls(amp=device.type == 'cuda', channels_last=True, compile=device.type == 'cuda')
