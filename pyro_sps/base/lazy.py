"""Names that a package offers and imports only when they are used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def exports(package: str, rooms: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], list[str]]:
    """What a package's `__init__` needs to offer names of its modules without importing these.

    Args:
        package: The package's `__name__`.
        rooms: Names by the module, inside the package, that defines them.

    Returns:
        The package's `__getattr__` and its `__all__`.

    Example:
        >>> from pyro_sps.base.lazy import exports
        >>> get, names = exports("pyro_sps.base", {"text": ["columns_of"]})
        >>> get("columns_of").__module__, names
        ('pyro_sps.base.text', ['columns_of'])
    """
    module_of = {name: module for module, names in rooms.items() for name in names}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{module_of[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, list(module_of)
