"""From explicit LC-Blocks to implicit ones and back, in the middle of training: `to_implicit`, `to_explicit`."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from timm_lc._timm import replace_arguments
from timm_lc.arguments import changeable
from timm_lc.filters import EXPECTED
from timm_lc.layers.frozen import filter_shape, freeze_convolution, is_frozen, share_convolution
from timm_lc.layers.implicit import ImplicitLCConv2d, is_linear, plain_convolution
from timm_lc.layers.lc_conv import LCConv2d
from timm_lc.layers.shared import SharedFilters
from timm_lc.layers.verify import verify
from timm_lc.naming import has_lc_name
from timm_lc.optim import L1Optimizer
from timm_lc.transforms.combine import replace_modules
from timm_lc.transforms.freeze import settle

__all__ = ['to_explicit', 'to_implicit']

_MOMENTUM = 'momentum_buffer'
# Relative change of the function, by rounding P, beyond which `to_explicit` refuses
_TOLERANCE = 1e-3


def to_implicit(model: nn.Module, optimizer: Optimizer | None = None) -> nn.Module:
    """Replace, in place, each frozen LC-Block by an `ImplicitLCConv2d` of the same outputs; return `model`.

    Training goes on along the same trajectory under SGD, with momentum, Nesterov and weight decay.

    Args:
        model: A network with LC-Blocks, itself not one.
        optimizer: An SGD optimizer of `model`; its parameters and momentum are converted, in place.

    Raises:
        ValueError: If there is no LC-Block, one learns its filters or keeps some that no seed gives, or the optimizer
            holds more than momentum.

    Example:
        >>> import timm
        >>> model = to_implicit(timm.create_model('lc_resnet20_16x8'))
        >>> sum(p.numel() for p in model.parameters())
        272474
    """
    network = changeable(model)
    _check(network, optimizer)
    replacements: dict[nn.Module, nn.Module] = {}
    momenta: list[Tensor | None] = []
    for name, block in list(network.named_modules()):
        if not isinstance(block, LCConv2d):
            continue
        if not is_frozen(block.spatial):
            raise ValueError(f'layer `{name}` learns its filters, which has no implicit form: G would change')
        if verify(block.spatial)[''] == 'changed':
            raise ValueError(
                f'layer `{name}` has filters that were overwritten since they were drawn, which has no implicit form; '
                "`timm_lc.verify(model, remedy='restore')` draws them again"
            )
        conv = plain_convolution(block.spatial, block.out_channels, bias=block.pointwise.bias is not None)
        try:
            implicit = ImplicitLCConv2d.from_pointwise(conv, block.spatial.filter_record, block.pointwise)
        except ValueError as error:
            raise ValueError(f'layer `{name}`: {error}') from None
        replacements[block] = implicit.train(block.training)
        if (momentum := _take_momentum(optimizer, block.pointwise.weight)) is not None:
            momentum = implicit.combined(momentum)
        momenta.append(momentum)
    _finish(network, optimizer, replacements, momenta)
    _tell_form(network, {'implicit': True})
    settle(network)
    return model


def to_explicit(model: nn.Module, optimizer: Optimizer | None = None) -> nn.Module:
    """Replace, in place, each `ImplicitLCConv2d` by an `LCConv2d` of the same outputs; return `model`.

    P is that of the smallest norm with P W = W_eff: not the P that an explicit run would hold, but P W goes on along
    the same trajectory under SGD.

    Args:
        model: A network with implicit LC-Blocks, itself not one.
        optimizer: An SGD optimizer of `model`; its parameters and momentum are converted, in place.

    Raises:
        ValueError: If there is no LC-Block, G is the expected one, W_eff is no combination of the filters, G has a
            condition number so large that rounding P would change the function, or the optimizer holds more than
            momentum.
    """
    network = changeable(model)
    _check(network, optimizer)
    replacements: dict[nn.Module, nn.Module] = {}
    momenta: list[Tensor | None] = []
    for name, block in list(network.named_modules()):
        if not isinstance(block, ImplicitLCConv2d):
            continue
        momentum = _take_momentum(optimizer, block.weight)
        try:
            weight, momentum = _solve(block, momentum)
        except ValueError as error:
            raise ValueError(f'layer `{name}`: {error}') from None
        replacements[block] = _explicit(block, weight)
        momenta.append(momentum)
    _finish(network, optimizer, replacements, momenta)
    _share([block.spatial for block in replacements.values() if isinstance(block, LCConv2d)])
    _tell_form(network, {})
    settle(network)
    return model


def _finish(
    model: nn.Module,
    optimizer: Optimizer | None,
    replacements: dict[nn.Module, nn.Module],
    momenta: list[Tensor | None],
) -> None:
    """Replace the blocks, in place, once all of them are there; those of one weight have one again."""
    first: dict[int, nn.Module] = {}
    for (old, new), momentum in zip(replacements.items(), momenta, strict=True):
        owner = first.setdefault(id(_learned(old).weight), new)
        _learned(new).weight = _learned(owner).weight.requires_grad_(_learned(old).weight.requires_grad)
        if owner is new:
            _exchange(optimizer, _learned(old).weight, _learned(new).weight, momentum)
    replace_modules(model, replacements)


def _tell_form(model: nn.Module, arguments: dict[str, Any]) -> None:
    """Let timm build this form of an lc_ network again."""
    if has_lc_name(model):
        replace_arguments(model, ('implicit',), arguments)


def _learned(block: Any) -> nn.Conv2d:
    """Return the convolution whose weight a block learns."""
    return block if isinstance(block, ImplicitLCConv2d) else block.pointwise


def _check(model: nn.Module, optimizer: Optimizer | None) -> None:
    blocks = [module for module in model.modules() if isinstance(module, LCConv2d | ImplicitLCConv2d)]
    if not blocks:
        raise ValueError(f'{type(model).__name__} has no LC-Block')
    if model in blocks:
        raise ValueError('`model` is itself an LC-Block, which cannot be replaced in place: put it into a module')
    if optimizer is not None and (isinstance(optimizer, L1Optimizer) or not is_linear(optimizer)):
        raise ValueError(f'`optimizer` must be SGD without a penalty or caution, got {type(optimizer).__name__}')
    states = {} if optimizer is None else optimizer.state
    others = {key for state in states.values() for key, value in state.items() if value is not None} - {_MOMENTUM}
    if others:
        raise ValueError(f'`optimizer` must be SGD, whose state is momentum alone, got one with {sorted(others)}')


def _solve(block: ImplicitLCConv2d, momentum: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return P (C_out, R/groups, 1, 1), and the momentum that belongs to it."""
    if block.filter_record.filter_set == EXPECTED:
        raise ValueError("`filters='expected'` has no explicit form: there are no filters")
    solution = block.solved([block.weight.detach()] if momentum is None else [block.weight.detach(), momentum])
    change = max(solution.condition**0.5 * torch.finfo(block.weight.dtype).eps, solution.residual)
    if change > _TOLERANCE:
        raise ValueError(
            f'G has condition number {solution.condition:.3g} and leaves {solution.residual:.1e} of the weight outside '
            f'the span of its filters: the explicit form would differ by a relative {change:.1e}, above {_TOLERANCE}'
        )
    pointwise = [torch.from_numpy(solved).to(block.weight)[:, :, None, None] for solved in solution.pointwise]
    return pointwise[0], None if momentum is None else pointwise[1]


def _explicit(block: ImplicitLCConv2d, weight: Tensor) -> LCConv2d:
    """Return the explicit form with this P and the bias of `block` itself; no random state moves."""
    conv = plain_convolution(block, block.out_channels, bias=block.bias is not None).to_empty(device=weight.device)
    with torch.random.fork_rng([weight.device] if weight.is_cuda else []):
        explicit = LCConv2d.from_convolution(conv, block.expansion, block.filter_record, freeze_spatial=True)
    if block.filter_record.shape != filter_shape(explicit.spatial):
        freeze_convolution(explicit.spatial, block.filter_record)  # whose filters are adapted
    with torch.no_grad():
        explicit.pointwise.weight.copy_(weight)
    explicit.pointwise.bias = block.bias
    return explicit.train(block.training)


def _share(convolutions: list[nn.Conv2d]) -> None:
    """Let, in place, convolutions whose records are of one shared vector slice it again."""
    records = [(conv, conv.filter_record) for conv in convolutions]
    shared = [conv for conv, record in records if record.is_shared and record.shape == filter_shape(conv)]
    if not shared:
        return
    longest = max((conv.filter_record for conv in shared), key=lambda record: record.numel)
    like = shared[0].weight
    vector = SharedFilters(longest.seed, longest.numel, longest.period, device=like.device, dtype=like.dtype)
    for conv in shared:
        share_convolution(conv, conv.filter_record, vector.peer(conv.filter_record))


def _take_momentum(optimizer: Optimizer | None, weight: Tensor) -> Tensor | None:
    return None if optimizer is None else optimizer.state.get(weight, {}).get(_MOMENTUM)


def _exchange(optimizer: Optimizer | None, old: Tensor, new: Tensor, momentum: Tensor | None) -> None:
    """Put, in place, a parameter and its momentum where another was."""
    for group in [] if optimizer is None else optimizer.param_groups:
        group['params'] = [new if parameter is old else parameter for parameter in group['params']]
    if optimizer is not None and old in optimizer.state:
        optimizer.state[new] = {**optimizer.state.pop(old), _MOMENTUM: momentum}
