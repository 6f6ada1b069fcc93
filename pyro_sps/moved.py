"""Where the modules of version 0.1 are now, so that its pickles load and code that names them goes on."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Old modules, and the ones that have what they had. (`data` and `symmetry` are wings now, which offer it themselves.)
_PACKAGE = __name__.rpartition(".")[0]
_MOVED = {
    "automorphisms": ["symmetry.automorphisms"],
    "checkpoint": ["inference.checkpoint"],
    "datasets": ["data.datasets"],
    "demo": ["cli.toy"],
    "elbo": ["model.density", "inference.elbo"],
    "files": ["base.files"],
    "guides": ["model.guides"],
    "infer": ["posterior.fit", "inference.variational", "inference.resume"],
    "io": ["posterior.save", "posterior.load"],
    "likelihoods": ["model.likelihoods"],
    "loop": ["inference.loop"],
    "maximum": ["inference.maximum"],
    "nn": ["model.bnn", "model.partial", "model.priors"],
    "nuts": ["inference.nuts", "inference.sampling", "posterior.samples", "model.density", "model.target"],
    "predict": ["posterior.predict", "posterior.outputs"],
    "process": ["base.process"],
    "report": ["symmetry.report"],
    "rigid": ["masks.rigid", "masks.values", "symmetry.table"],
    "schemes": ["masks.schemes"],
    "step": ["inference.step", "inference.program"],
    "tables": ["data.tables"],
    "text": ["base.text"],
    "topology": ["network.topology", "network.units", "network.build", "network.run", "network.trace"],
    "values": ["masks.values"],
}


class _Finder(MetaPathFinder, Loader):
    """Makes an old module when it is imported; its names are looked up in the new ones."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == _PACKAGE and name in _MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name, f"Moved to {_MOVED[spec.name.rpartition('.')[2]]}.")
        module.__getattr__ = lambda name: _look_up(spec.name, name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def _look_up(module: str, name: str) -> Any:
    places: Sequence[str] = _MOVED[module.rpartition(".")[2]]
    for place in places if not name.startswith("__") else ():
        found = importlib.import_module(f".{place}", _PACKAGE)
        if hasattr(found, name):
            return getattr(found, name)
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


def install() -> None:
    """Let Python find the old modules, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
