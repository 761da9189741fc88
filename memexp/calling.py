"""Modules that are called. `memexp.run`, `memexp.bench` and `memexp.report` name a function of the package and the module that
holds it, and importing the module puts it in the function's place: so the module is one, too.
"""

import types
from typing import Any


class CallableModule(types.ModuleType):
    """A module whose call is that of its function of the same name: `sys.modules[__name__].__class__ = CallableModule`."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.__dict__[self.__name__.rpartition(".")[2]](*arguments, **named)
