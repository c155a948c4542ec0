"""Methods of one module alone that do not keep it alive.

Bound by `functools.partial` they would tie a network into a reference cycle: its memory would come back at the next
garbage collection, not with the last name for it.
"""

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ['BoundMethod']


class BoundMethod:
    """`function` with `module` as its first argument, as the attribute `name` of that module.

    A deep copy or a pickle belongs to the copied module, a shallow copy to the module that it was copied from.
    """

    def __init__(self, name: str, function: Callable[..., Any], module: nn.Module) -> None:
        self.name = name
        self.function = function
        self.reference = weakref.ref(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it; raise as `owner`."""
        return self.function(self.owner(), *args, **kwargs)

    def owner(self) -> nn.Module:
        """Return the module.

        Raises:
            ReferenceError: If it is gone.
        """
        module = self.reference()
        if module is None:
            raise ReferenceError(
                f'`{self.name}` belongs to a module that is gone: keep a name for it while its method runs, and copy '
                'it by `copy.deepcopy`'
            )
        return module

    def __reduce__(self) -> tuple:
        return BoundMethod, (self.name, self.function, self.owner())
