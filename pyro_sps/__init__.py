"""Bayesian neural networks without redundant posterior modes, for Pyro."""

from __future__ import annotations

import importlib
from typing import Any

from .version import __version__

# Names are imported when they are used, so that `import pyro_sps` costs nothing beyond pyro and torch.
_EXPORTS = {
    "topology": ["Topology", "UnitGroup", "UnsupportedLayerError", "WeightTensor", "mlp"],
    "schemes": ["Heavy", "Light", "Random", "SymmetryWarning", "Unmasked", "fixed_count"],
    "values": ["MAP", "Constant", "FixedValues", "Given", "RandomConstant", "Zero"],
    "symmetry": ["SymmetryReport", "certify"],
    "rigid": ["InputOffsets", "Ladder", "Rigid"],
    "nn": ["BNN", "FixWeights", "PartialWeight"],
    "likelihoods": ["Bernoulli", "Categorical", "Gaussian", "HeteroscedasticGaussian", "Poisson"],
    "guides": ["AutoSPSNormal"],
    "elbo": ["MeanFieldELBO"],
    "infer": ["Fit", "Fits", "NonFiniteLossError", "fit", "map_estimate", "resume"],
    "predict": ["Prediction"],
    "diagnostics.convert": ["from_mcmc", "to_arviz"],
    "diagnostics.diagnose": ["Diagnosis", "diagnose"],
    "nuts": ["NutsSamples", "sample_nuts"],
    "files": ["LoadError"],
    "io": ["load"],
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}
_MODULES = ["datasets", "likelihoods", "plots", "schemes", "tables", "topology", "values"]

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
