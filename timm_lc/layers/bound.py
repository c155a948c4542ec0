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
    """`function` with `module` as its first argument, as an attribute of that module; copies belong to its copies."""

    def __init__(self, function: Callable[..., Any], module: nn.Module) -> None:
        self.function = function
        self.module = weakref.ref(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it.

        Raises:
            ReferenceError: If the module is gone, of which a shallow copy has the method.
        """
        module = self.module()
        if module is None:
            raise ReferenceError(f'the module that `{self.function.__name__.lstrip("_")}` belongs to is gone')
        return self.function(module, *args, **kwargs)

    def __reduce__(self) -> tuple:
        return BoundMethod, (self.function, self.module())
