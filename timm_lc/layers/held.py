"""Modules whose tensors belong to a base network: they never learn, and no state dict holds them.

The parameters of a held module become buffers that are not persistent, its buffers stop being so, and a held norm
computes as in evaluation for ever, so that its statistics stay those of the base.
"""

import functools
from typing import Any, NamedTuple

from timm.models import register_notrace_module
from torch import Tensor, nn

__all__ = ['held_parameters', 'hold_tensors', 'is_held', 'release_tensors', 'tensors_of']

# Counts batches, for norms that average their statistics over all of them; no output depends on it
_COUNTER = 'num_batches_tracked'


class _Held(NamedTuple):
    """What `release_tensors` needs: all names of parameters in order, which were held, and names of buffers."""

    order: tuple[str, ...]
    parameters: dict[str, bool]  # name: requires_grad
    buffers: tuple[str, ...]


def is_held(module: nn.Module) -> bool:
    """Return whether the tensors of `module` itself, not of its children, belong to a base."""
    return isinstance(vars(module).get('held'), _Held)


def hold_tensors(module: Any) -> None:
    """Let the tensors of `module` itself stay as they are, in place, and leave them out of its state dict."""
    parameters = {name: tensor for name, tensor in module._parameters.items() if tensor is not None}
    buffers = tuple(
        name for name, tensor in module._buffers.items() if tensor is not None and _is_persistent(module, name)
    )
    module.held = _Held(
        tuple(module._parameters), {name: tensor.requires_grad for name, tensor in parameters.items()}, buffers
    )
    for name, tensor in parameters.items():
        del module._parameters[name]
        module.register_buffer(name, tensor.detach(), persistent=False)
    module._non_persistent_buffers_set.update(buffers)
    if getattr(module, 'running_mean', None) is not None:
        kind: Any = type(module)
        module.__class__ = _evaluating_class(kind)
        module.eval()


def release_tensors(module: Any) -> None:
    """Undo `hold_tensors`, in place."""
    held: _Held = module.held
    del module.held
    for name, requires_grad in held.parameters.items():
        tensor = module._buffers.pop(name)
        module._parameters[name] = nn.Parameter(tensor, requires_grad)
    module._parameters = {name: module._parameters[name] for name in held.order}
    module._non_persistent_buffers_set -= {*held.parameters, *held.buffers}
    if isinstance(module, _Evaluating):
        module.__class__ = type(module).__bases__[1]


def held_parameters(module: nn.Module) -> list[Tensor]:
    """Return what were parameters of `module` itself before it was held."""
    return [getattr(module, name) for name in module.held.parameters] if is_held(module) else []


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return by name the tensors of `module` itself that decide what it computes, held or not."""
    held = module.held.buffers if is_held(module) else ()
    buffers = {name: tensor for name, tensor in module._buffers.items() if _is_persistent(module, name) or name in held}
    parameters = module.held.parameters if is_held(module) else module._parameters
    tensors = {**{name: getattr(module, name) for name in parameters}, **buffers}
    return {name: tensor for name, tensor in sorted(tensors.items()) if tensor is not None and name != _COUNTER}


def _is_persistent(module: nn.Module, buffer: str) -> bool:
    return buffer not in module._non_persistent_buffers_set


class _Evaluating:
    """A norm that computes with its statistics, and keeps them, in training too; mixed into the norm's own class."""

    _version: Any

    def train(self, mode: bool = True) -> Any:
        return super().train(False)  # type: ignore[misc]

    def reset_running_stats(self) -> None:
        """Keep the statistics of the base, which `torch.optim.swa_utils.update_bn` would measure anew."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        current = {
            **local_metadata,
            'version': self._version,
        }  # to older states batch norm would add a count of batches
        super()._load_from_state_dict(state_dict, prefix, current, *args)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return _new_evaluating, (type(self).__bases__[1],), self.__dict__


@functools.cache
def _evaluating_class(base: Any) -> Any:
    """Return the subclass of the norm `base` that evaluates only; instances pickle through `_new_evaluating`."""
    return register_notrace_module(type(f'Held{base.__name__}', (_Evaluating, base), {'__module__': __name__}))


def _new_evaluating(base: Any) -> nn.Module:
    cls = _evaluating_class(base)
    return cls.__new__(cls)
