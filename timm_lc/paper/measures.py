"""What is measured of a trained network, by name: a function of the network and the images it was trained on.

Those in `UNTRAINED` need no training: they are functions of a variant and a device. Each returns a dictionary of
values: numbers, and lists where a figure shows pictures. Filters are those after linear combination, of the
network's first convolution (section 4.2, appendix E).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from timm_lc.analysis.conditioning import condition
from timm_lc.analysis.counting import count_parameters
from timm_lc.analysis.metrics import (
    effective_filters,
    pointwise_weights,
    position_variance,
    reconstruction_error,
    variance_entropy,
)
from timm_lc.analysis.robustness import Normalized, pgd, robust_accuracy
from timm_lc.filters import random_values
from timm_lc.layers.frozen import is_frozen
from timm_lc.layers.gram import expected_factor
from timm_lc.layers.implicit import ImplicitLCConv2d
from timm_lc.paper.experiment import Variant
from timm_lc.paper.timing import build, measure_timing
from timm_lc.training.data import Images
from timm_lc.training.trainer import evaluate

__all__ = ['COUNTS', 'MEASURES', 'UNTRAINED']

Measure = Callable[[nn.Module, Images], dict[str, Any]]
UntrainedMeasure = Callable[[Variant, torch.device], dict[str, Any]]

BATCH = 500
PGD_IMAGES = 1000  # ten steps on each: all images would take as long as training on a CPU
BINS = 51
RANDOM_STREAM = 1  # of the filters that figure 2 combines
COUNTS = (1, 2, 4, 8, 16, 24, 27)  # 3x3 filters of three channels have 27 weights


def accuracy(model: nn.Module, images: Images) -> dict[str, Any]:
    """Measure the validation accuracy in percent."""
    return {'accuracy': evaluate(model, images)['accuracy']}


def fgsm(model: nn.Module, images: Images) -> dict[str, Any]:
    """Measure the accuracy in percent under FGSM, epsilon 1/255 in pixels, on all validation images (figure 4)."""
    return {'fgsm': robust_accuracy(_on_pixels(model, images), _pixels(images, len(images.validation)))}


def pgd_accuracy(model: nn.Module, images: Images) -> dict[str, Any]:
    """Measure the accuracy in percent under ten steps of PGD, epsilon 1/255, on 1,000 validation images."""
    generator = torch.Generator().manual_seed(0)
    batches = _pixels(images, PGD_IMAGES)
    return {'pgd': robust_accuracy(_on_pixels(model, images), batches, pgd, generator=generator)}


def entropy_normalized(model: nn.Module, images: Images) -> dict[str, Any]:
    """Measure the first layer's variance entropy over the randomness threshold (figure 6)."""
    return {'entropy_normalized': variance_entropy(_stem(model), normalized=True)}


def entropy(model: nn.Module, images: Images) -> dict[str, Any]:
    """Measure the first layer's variance entropy (figure 15)."""
    return {'entropy': variance_entropy(_stem(model))}


def entropy_last(model: nn.Module, images: Images) -> dict[str, Any]:
    """Measure the last spatial layer's variance entropy (second version, figures 10 and 11)."""
    return {'entropy_last': variance_entropy(_last(model))}


def entropy_last_normalized(model: nn.Module, images: Images) -> dict[str, Any]:
    """Measure the last spatial layer's variance entropy over the randomness threshold (second version, figure 5)."""
    return {'entropy_last_normalized': variance_entropy(_last(model), normalized=True)}


def positions(model: nn.Module, images: Images) -> dict[str, Any]:
    """Measure the variance (k_h, k_w) of each kernel element over all kernels (figure 13)."""
    return {'positions': _rounded(position_variance(filters for _, filters in effective_filters(model)))}


def filters(model: nn.Module, images: Images) -> dict[str, Any]:
    """Take the first layer's filters (C_out, C_in, k_h, k_w) (figures 12 and 14)."""
    return {'filters': _rounded(_stem(model))}


def random_filters(model: nn.Module, images: Images) -> dict[str, Any]:
    """Draw C_out of the filters (C_out, C_in, k_h, k_w) that a frozen network's first LC-Block combines (figure 12)."""
    frozen = (module for module in model.modules() if is_frozen(module) or isinstance(module, ImplicitLCConv2d))
    for module in frozen:
        return {'random': _rounded(torch.from_numpy(module.filter_record.filters()[: len(_stem(model))]))}
    return {}


def rate(model: nn.Module, images: Images) -> dict[str, Any]:
    """Measure how far a step of SGD at a learning rate of 1 turns a filter in front of a norm (theory6)."""
    return {'rate': _rate(model)}


def pointwise(model: nn.Module, images: Images) -> dict[str, Any]:
    """Count each layer's pointwise weights in 51 bins over +-`range` (figure 16)."""
    layers = {}
    for name, weights in pointwise_weights(model):
        limit = weights.abs().max().item()
        counts = torch.histc(weights.float().cpu(), BINS, -limit, limit)
        layers[name] = {'range': limit, 'counts': counts.int().tolist()}
    return {'pointwise': layers}


def reconstruction(model: nn.Module, images: Images) -> dict[str, Any]:
    """Measure how well n random filters make up the first layer's learned ones, for several n (figure 2)."""
    target = _stem(model).double().cpu()
    draws = random_values(0, RANDOM_STREAM, max(COUNTS) * target[0].numel())
    drawn = torch.from_numpy(draws).double().view(-1, *target.shape[1:])
    pictures = {}
    for count in COUNTS:
        basis = torch.linalg.qr(drawn[:count].flatten(1).t()).Q  # (C_in*k_h*k_w, n)
        pictures[str(count)] = _rounded((target.flatten(1) @ basis @ basis.t()).view_as(target))
    errors = {f'error_{count}': reconstruction_error(target, drawn[:count]) for count in COUNTS}
    return {**errors, 'filters': _rounded(target), 'reconstructed': pictures}


def counts(variant: Variant, device: torch.device) -> dict[str, Any]:
    """Count parameters (table 1); zeros count less where weights are pruned: one that is drawn as 0 is a weight."""
    explicit = {key: value for key, value in variant.model_kwargs.items() if key != 'implicit'}  # the paper's form
    found = dict(count_parameters(build(dataclasses.replace(variant, model_kwargs=explicit)))._asdict())
    return found if variant.amount else {**found, 'nonzero': found['total']}


def rate_at_start(variant: Variant, device: torch.device) -> dict[str, Any]:
    """Measure `rate` before training."""
    return {'rate_at_start': _rate(build(variant))}


def conditioning(variant: Variant, device: torch.device) -> dict[str, Any]:
    """Measure rank and condition of G in the last LC-Block, whose channels are as many before as after (theory5)."""
    with torch.device('meta'):  # of the record alone
        model = build(variant)
    block = [module for module in model.modules() if isinstance(module, ImplicitLCConv2d)][-1]
    found = condition(block.filter_record, block.out_channels, block.groups)
    return {'reach': found.reach, 'log_condition': math.log10(found.condition), 'smallest': found.smallest}


MEASURES: dict[str, Measure] = {
    'accuracy': accuracy,
    'fgsm': fgsm,
    'pgd': pgd_accuracy,
    'entropy_normalized': entropy_normalized,
    'entropy': entropy,
    'entropy_last': entropy_last,
    'entropy_last_normalized': entropy_last_normalized,
    'positions': positions,
    'filters': filters,
    'random': random_filters,
    'rate': rate,
    'pointwise': pointwise,
    'reconstruction': reconstruction,
}

# Of networks that need no training
UNTRAINED: dict[str, UntrainedMeasure] = {
    'counts': counts,
    'timing': measure_timing,
    'conditioning': conditioning,
    'rate': rate_at_start,
}


def _stem(model: nn.Module) -> Tensor:
    return next(effective_filters(model))[1].detach()


def _last(model: nn.Module) -> Tensor:
    return list(effective_filters(model))[-1][1].detach()


def _rate(model: nn.Module) -> float:
    """Return c / |W_eff|^2, the geometric mean over spatial layers; c is that of implicit blocks, 1 elsewhere."""
    logarithms = []
    for name, weight in effective_filters(model):
        conv = model.get_submodule(name)
        implicit = isinstance(conv, ImplicitLCConv2d)
        factor = expected_factor(conv.filter_record, conv.groups) if implicit else 1.0
        logarithms.append(math.log(factor / weight.double().square().sum().item()))
    return math.exp(sum(logarithms) / len(logarithms))


def _on_pixels(model: nn.Module, images: Images) -> nn.Module:
    mean, std = images.statistics
    return Normalized(model.eval(), mean.tolist(), std.tolist()).to(images.validation.device)


def _pixels(images: Images, limit: int) -> list[tuple[Tensor, Tensor]]:
    """Return batches of up to `limit` validation images, evenly spaced, as pixels in [0, 1]."""
    count = len(images.validation)
    chosen = torch.linspace(0, count - 1, min(limit, count)).round().long().to(images.validation.device)
    return [(images.validation[part].float() / 255, images.validation_labels[part]) for part in chosen.split(BATCH)]


def _rounded(tensor: Tensor) -> Any:
    """Return nested lists of four significant digits, which a picture does not need more of."""
    return _round(tensor.cpu().tolist())


def _round(value: Any) -> Any:
    return [_round(item) for item in value] if isinstance(value, list) else float(f'{value:.4g}')
