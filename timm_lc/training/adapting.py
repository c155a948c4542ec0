"""Ways to adapt a trained network to a new task, compared: what learns, what it costs to store, how well it does."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from timm_lc.layers.held import hold_tensors
from timm_lc.spatial import spatial_convolutions
from timm_lc.training.data import Images, augment
from timm_lc.transforms.adapt import add_adapters
from timm_lc.transforms.fingerprint import classifiers

__all__ = ['FULL', 'METHODS', 'Tuning', 'by_length', 'choose', 'learn', 'shrink', 'stored_bytes']

FULL = 'full fine-tuning'

Normalize = Callable[[Tensor], Tensor]
Method = Callable[[nn.Module], nn.Module]


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How a network learns a task: SGD with Nesterov momentum, a cosine from `lr` to 0.

    Args:
        epochs: Passes over the training images.
        lr: Initial learning rate.
        batch_size: Images of a step.
        weight_decay: Of all that learns.
        warmup: Steps of rising learning rate.
        amp: Whether to compute under bfloat16 autocast.
    """

    epochs: int = 20
    lr: float = 0.05
    batch_size: int = 50
    weight_decay: float = 5e-4
    warmup: int = 10
    amp: bool = False


def choose(images: Images, classes: list[int], per_class: int | None = None, seed: int = 0) -> Images:
    """Return the images of some classes, labelled anew from 0: so many of each for training, drawn by the seed."""
    generator = torch.Generator().manual_seed(seed)
    train = []
    for label in classes:
        found = (images.train_labels == label).nonzero()[:, 0]
        train.append(found[torch.randperm(len(found), generator=generator)[:per_class]])
    chosen, held = torch.cat(train), torch.isin(images.validation_labels, torch.tensor(classes))
    anew = torch.zeros(max(classes) + 1, dtype=torch.long)
    anew[classes] = torch.arange(len(classes))
    return Images(
        images.name,
        [images.classes[label] for label in classes],
        images.train[chosen],
        anew[images.train_labels[chosen]],
        images.validation[held],
        anew[images.validation_labels[held]],
    )


def shrink(images: Images, pixels: int) -> Images:
    """Return the images with sides of so many pixels, each the mean of a square of the larger ones."""
    factor = images.train.shape[-1] // pixels
    if factor * pixels != images.train.shape[-1]:
        raise ValueError(f'`pixels` must divide {images.train.shape[-1]}, got {pixels}')
    change = functools.partial(avg_pool2d, kernel_size=factor)
    train, validation = (change(x.float()).round().to(torch.uint8) for x in (images.train, images.validation))
    return dataclasses.replace(images, train=train, validation=validation)


def learn(
    model: nn.Module, task: Images, tuning: Tuning, seed: int, *, normalize: Normalize, flips: bool = True
) -> float:
    """Train what learns in `model`, in place; return its accuracy on the validation images in percent.

    Args:
        model: A network on the CPU.
        task: Its images.
        tuning: How it learns.
        seed: Of the order of images and of their augmentation.
        normalize: From uint8 images to what the base was trained on.
        flips: Whether images may be mirrored.
    """
    torch.manual_seed(seed)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, tuning.lr, 0.9, weight_decay=tuning.weight_decay, nesterov=True)
    steps, step = tuning.epochs * math.ceil(len(task.train) / tuning.batch_size), 0
    model.train()
    for _ in range(tuning.epochs):
        for index in torch.randperm(len(task.train)).split(tuning.batch_size):
            rate = 0.5 * tuning.lr * (1 + math.cos(math.pi * step / steps)) * min(1, (step + 1) / tuning.warmup)
            optimizer.param_groups[0]['lr'] = rate
            loss = cross_entropy(
                _logits(model, normalize(_augmented(task.train[index], flips=flips)), tuning), task.train_labels[index]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return _accuracy(model.eval(), task, tuning, normalize)


def _augmented(images: Tensor, *, flips: bool) -> Tensor:
    """Return images shifted by up to an eighth of their side, and mirrored."""
    padding, n = images.shape[-1] // 8, len(images)
    mirrored = torch.rand(n) < 0.5 if flips else torch.zeros(n, dtype=torch.bool)
    return augment(images, mirrored, torch.randint(0, 2 * padding + 1, (n, 2)), padding)


def _logits(model: nn.Module, images: Tensor, tuning: Tuning) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=tuning.amp):
        logits: Tensor = model(images.contiguous(memory_format=torch.channels_last))
    return logits.float()


@torch.no_grad()
def _accuracy(model: nn.Module, task: Images, tuning: Tuning, normalize: Normalize) -> float:
    predicted = torch.cat([_logits(model, normalize(x), tuning).argmax(1) for x in task.validation.split(500)])
    return 100 * (predicted == task.validation_labels).double().mean().item()


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes of a file of what learns, statistics and records: what one more task costs to keep."""
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return len(save({name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in fixed}))


def _learn_only(model: nn.Module, *, norms: bool) -> nn.Module:
    """Hold, in place, everything but the classifier and, if wanted, the norms; as adapters do, without any."""
    heads = {child for module in classifiers(model).values() for child in module.modules()}
    for module in model.modules():
        if module not in heads and not (norms and 'Norm' in type(module).__name__):
            hold_tensors(module)
    return model


def _lora(model: nn.Module, rank: int) -> nn.Module:
    """Add PEFT's LoRA to the convolutions that an adapter would change, in place; norms and classifier learn too."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError:
        raise ModuleNotFoundError("LoRA needs peft: pip install 'timm_lc[compare]'") from None
    names = [name for name, _ in spatial_convolutions(model)]
    heads = {id(p) for module in classifiers(model).values() for p in module.parameters()}
    learned = {id(p) for m in model.modules() if 'Norm' in type(m).__name__ for p in m.parameters()} | heads
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_('lora_' in name or id(parameter) in learned)
    return model


def _full(model: nn.Module) -> nn.Module:
    return model


def by_length(lengths: tuple[float, ...], rank: int, layers: str = 'spatial') -> dict[str, Method]:
    """Return adapters whose random filters have these lengths, and full fine-tuning: what a default length rests on."""
    kind = f'adapter, rank {rank}' + ('' if layers == 'spatial' else f', {layers} layers')
    options: dict[str, Any] = {'rank': rank, 'layers': layers}
    adapters: dict[str, Method] = {
        f'{kind}, rows of length {length:g}': functools.partial(add_adapters, gain=length * 3**0.5, **options)
        for length in lengths
    }
    return {**adapters, FULL: _full}


METHODS: dict[str, Method] = {
    'head only': functools.partial(_learn_only, norms=False),
    'head and norms': functools.partial(_learn_only, norms=True),
    'LoRA, rank 8 (peft)': functools.partial(_lora, rank=8),
    'adapter, rank 4': functools.partial(add_adapters, rank=4),
    'adapter, rank 8': functools.partial(add_adapters, rank=8),
    'adapter, rank 16': functools.partial(add_adapters, rank=16),
    'adapter, rank 16, rows of length 1': functools.partial(add_adapters, rank=16, gain=3**0.5),
    'adapter, rank 16, uniform rows': functools.partial(add_adapters, rank=16, filters='uniform', gain=1.0),
    FULL: _full,
}
