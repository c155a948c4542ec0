"""Optimizers with an l1 penalty on pointwise convolution weights, in timm's registry as `l1<name>`.

They minimise the loss plus `l1 * sum |w|` over the weights of all pointwise convolutions (section 4.3, equation 5):
with timm's train.py, `--opt l1sgd --opt-kwargs l1=5e-5`. An optimizer knows tensors, not layers, so a pointwise weight
is told by its shape, (C_out, C_in/groups, 1, 1) with both above one: (C, 1, 1, 1) and (1, C, 1, 1) may be a gain, and
stay free.

They also fine-tune a pruned network: `--opt l1sgd --opt-kwargs keep_zeros=True`. The mask is the zeros themselves,
which copies, files and moving averages of the weights carry along.
"""

import contextlib
import inspect
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.optim import OptimInfo, get_optimizer_info, list_optimizers
from torch import Tensor, distributed
from torch.optim import Optimizer

from timm_lc._timm import optimizer_registry

__all__: list[str] = []

MODES = ('subgradient', 'proximal')

_logger = logging.getLogger(__name__)


class L1Optimizer(Optimizer):
    """An optimizer that adds the penalty in `step`, the one method that schedulers, scalers and Lookahead all call.

    The penalty joins after gradients are unscaled, accumulated and clipped, so that `l1` keeps its meaning; a step that
    a gradient scaler skips has none. `p.grad` is left as it was.

    Args:
        params: As of the optimizer `base`.
        *args: As of the optimizer `base`.
        l1: The penalty's factor, lambda of equation 5, at least 0. Each parameter group may have its own.
        l1_mode: 'subgradient' adds `l1 * sign(w)` to the gradient, as the paper does. 'proximal' moves each weight
            towards 0 by `lr * l1` after the step and stops there, which gives exact zeros; Lookahead keeps them.
        keep_zeros: Whether pointwise weights that are zero before a step stay zero, their gradient taken for zero, as
            if a mask were part of the network. `l1` may then be left out. A layer that starts at zero never learns.
        **kwargs: As of the optimizer `base`.

    Raises:
        TypeError: If `l1` is not a number or `keep_zeros` not a bool.
        ValueError: If `l1` is missing, negative or not finite, `l1_mode` is unknown, or no weight is pointwise.
    """

    base: type[Optimizer]

    def __init__(
        self,
        params: Any,
        *args: Any,
        l1: float | None = None,
        l1_mode: str = 'subgradient',
        keep_zeros: bool = False,
        **kwargs: Any,
    ) -> None:
        l1 = 0.0 if l1 is None and keep_zeros is True else l1
        _check(l1, l1_mode, keep_zeros)
        super().__init__(params, *args, **kwargs)
        # Fused optimizers take scaled gradients from a gradient scaler, to which a penalty cannot be added.
        self.__dict__.pop('_step_supports_amp_scaling', None)
        self.defaults.update(l1=l1, l1_mode=l1_mode, keep_zeros=keep_zeros)
        self._fill_groups()
        self._report()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._fill_groups()  # of the state of an optimizer without a penalty

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; `closure`, if given, computes the loss without the penalty and its gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self._penalised(), self._pruned():
            _without_hooks(self.base.step)(self)
        self._shrink()
        return loss

    @contextlib.contextmanager
    def _penalised(self) -> Iterator[None]:
        """Let `p.grad` hold the gradient of the loss with its penalty."""
        grads: list[tuple[Tensor, Tensor | None]] = []
        for group, weights in self._weights(_penalises('subgradient')):
            with torch.no_grad():
                penalised = torch._foreach_add(
                    [weight.grad for weight in weights], torch._foreach_sign(weights), alpha=group['l1']
                )
            for weight, grad in zip(weights, penalised, strict=True):
                grads.append((weight, weight.grad))
                weight.grad = grad
        try:
            yield
        finally:
            for weight, grad in grads:
                weight.grad = grad

    @contextlib.contextmanager
    def _pruned(self) -> Iterator[None]:
        """Let `p.grad` be zero where weights are, and these weights stay zero."""
        pruned: list[tuple[Tensor, Tensor | None, Tensor]] = []
        for _, weights in self._weights(lambda group: group['keep_zeros']):
            for weight in weights:
                zeros = weight.detach() == 0
                pruned.append((weight, weight.grad, zeros))
                weight.grad = weight.grad.masked_fill(zeros, 0.0)
        try:
            yield
        finally:
            for weight, grad, _ in pruned:
                weight.grad = grad
        for weight, _, zeros in pruned:
            with torch.no_grad():
                weight.masked_fill_(zeros, 0.0)
            self._zero_slow(weight, zeros)

    @torch.no_grad()
    def _shrink(self) -> None:
        """Apply the penalty's proximal operator, soft thresholding."""
        for group, weights in self._weights(_penalises('proximal')):
            magnitudes = torch._foreach_abs(weights)
            torch._foreach_add_(magnitudes, -group['lr'] * group['l1'])
            torch._foreach_clamp_min_(magnitudes, 0.0)
            torch._foreach_mul_(magnitudes, torch._foreach_sign(weights))
            torch._foreach_copy_(weights, magnitudes)
            for weight in weights:
                self._zero_slow(weight, weight == 0)

    @torch.no_grad()
    def _zero_slow(self, weight: Tensor, zeros: Tensor) -> None:
        """Let Lookahead's slow copy of a weight be zero too: its average with an older one would not be."""
        slow = self.state.get(weight, {}).get('lookahead_slow_buff')
        if slow is not None:
            slow.masked_fill_(zeros, 0.0)

    def _weights(self, concerns: Callable[[dict[str, Any]], bool]) -> Iterator[tuple[dict[str, Any], list[Tensor]]]:
        """Yield the groups that `concerns` accepts with their pointwise weights that have a gradient."""
        for group in self.param_groups:
            weights = [p for p in group['params'] if p.grad is not None and _is_pointwise(p)]
            if weights and concerns(group):
                yield group, weights

    def _fill_groups(self) -> None:
        for group in self.param_groups:
            for key in ('l1', 'l1_mode', 'keep_zeros'):
                group.setdefault(key, self.defaults[key])
            _check(group['l1'], group['l1_mode'], group['keep_zeros'])

    def _report(self) -> None:
        """Log once which tensors the penalty concerns."""
        tensors = [p for group in self.param_groups for p in group['params']]
        if any(getattr(p, 'is_implicit', False) for p in tensors):
            raise ValueError(
                '`l1` penalises pointwise weights, which implicit LC-Blocks have not: use `implicit=False`'
            )
        shapes = Counter(tuple(p.shape) for p in tensors if _is_pointwise(p))
        if not shapes:
            raise ValueError(f'`l1` penalises pointwise convolution weights, and none of {len(tensors)} tensors is one')
        if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0:
            numel = sum(math.prod(shape) * count for shape, count in shapes.items())
            listed = ', '.join(f'{count} of {shape}' for shape, count in shapes.items())
            zeros = ', keeping zeros,' if self.defaults['keep_zeros'] else ''
            _logger.info(
                f'l1 penalty of {self.defaults["l1"]} ({self.defaults["l1_mode"]}){zeros} on {numel:,} pointwise '
                f'weights in {shapes.total()} of {len(tensors)} tensors: {listed}'
            )


def _check(l1: object, l1_mode: str, keep_zeros: object) -> None:
    if not isinstance(keep_zeros, bool):
        raise TypeError(f'`keep_zeros` must be True or False, got {keep_zeros!r}')
    if l1 is None:
        raise ValueError('`l1` must be given to an l1 optimizer without `keep_zeros`, as in `--opt-kwargs l1=5e-5`')
    if isinstance(l1, bool) or not isinstance(l1, int | float):
        raise TypeError(f'`l1` must be a number, got {l1!r}')
    if not 0 <= l1 < math.inf:
        raise ValueError(f'`l1` must be finite and at least 0, got {l1}')
    if l1_mode not in MODES:
        raise ValueError(f'`l1_mode` must be one of {", ".join(MODES)}, got {l1_mode!r}')


def _penalises(mode: str) -> Callable[[dict[str, Any]], bool]:
    return lambda group: bool(group['l1']) and group['l1_mode'] == mode


def _is_pointwise(weight: Tensor) -> bool:
    return weight.ndim == 4 and weight.shape[2:] == (1, 1) and min(weight.shape[:2]) > 1


def _without_hooks(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a step function that leaves its hooks to ours: torch wraps that of any class that has been used."""
    return inspect.unwrap(step, stop=lambda wrapper: not getattr(wrapper, 'hooked', False))


def _register() -> None:
    """Register `l1<name>` for each of timm's optimizers but those of other packages and of second order."""
    classes: dict[type[Optimizer], type[L1Optimizer]] = {}
    for name in list_optimizers():
        info = get_optimizer_info(name)
        base = info.opt_class
        if not isinstance(base, type) or info.second_order or issubclass(base, L1Optimizer):
            continue
        if base not in classes:
            classes[base] = type(
                f'L1{base.__name__}', (L1Optimizer, base), {'base': base, '__doc__': L1Optimizer.__doc__}
            )
            globals()[classes[base].__name__] = classes[base]  # where pickle looks for it
        changes = {'name': f'l1{name}', 'opt_class': classes[base]}
        description = f'{info.description} and an l1 penalty on pointwise convolutions'
        optimizer_registry.register(OptimInfo(**{**vars(info), **changes, 'description': description}))


_register()
