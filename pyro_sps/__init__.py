"""Bayesian neural networks without redundant posterior modes, for Pyro."""

from __future__ import annotations

import importlib
from typing import Any

from . import moved
from .base.lazy import exports
from .version import __version__

# Names are imported when they are used, so that `import pyro_sps` costs nothing beyond pyro and torch.
_get, _names = exports(
    __name__,
    {
        "base.files": ["LoadError"],
        "data.observed": ["Observed"],
        "data.row_groups": ["ParquetData"],
        "network.topology": ["Topology", "UnsupportedLayerError"],
        "network.units": ["UnitGroup", "WeightTensor"],
        "network.build": ["mlp"],
        "masks.schemes": ["Heavy", "Light", "Random", "SymmetryWarning", "Unmasked", "fixed_count"],
        "masks.rigid": ["InputOffsets", "Rigid"],
        "masks.values": ["MAP", "Constant", "FixedValues", "Given", "Ladder", "Point", "RandomConstant", "Zero"],
        "symmetry.certificate": ["certify"],
        "symmetry.report": ["SymmetryReport"],
        "model.bnn": ["BNN"],
        "model.hierarchy": ["Hierarchical"],
        "model.partial": ["FixWeights", "PartialWeight"],
        "model.likelihoods": [
            "Bernoulli",
            "Categorical",
            "Gaussian",
            "HeteroscedasticGaussian",
            "HeteroscedasticStudentT",
            "Ordinal",
            "Poisson",
            "StudentT",
        ],
        "model.guides": ["AutoSPSNormal"],
        "posterior.fit": ["Fit", "Fits", "NonFiniteLossError"],
        "posterior.samples": ["Samples"],
        "posterior.predict": ["Prediction"],
        "posterior.load": ["load"],
        "inference.elbo": ["MeanFieldELBO"],
        "inference.variational": ["fit", "map_estimate"],
        "inference.resume": ["resume"],
        "inference.sampling": ["sample"],
        "diagnostics.convert": ["from_mcmc", "to_arviz"],
        "diagnostics.diagnose": ["Diagnosis", "diagnose"],
        "estimators": ["BNNClassifier", "BNNRegressor"],
    },
)
# Rooms that users know by these names.
_MODULES = {
    "datasets": "data.datasets",
    "likelihoods": "model.likelihoods",
    "networks": "network.architectures",
    "plots": "plots",
    "schemes": "masks.schemes",
    "tables": "data.tables",
    "topology": "network",
    "values": "masks.values",
}
# What was called otherwise once.
_RENAMED = {
    "sample_nuts": "pyro_sps.sample(..., kernel='nuts', chains=4, num_samples=1000, starts='prior')",
    "NutsSamples": "pyro_sps.Samples, which pyro_sps.sample returns",
}

__all__ = ["__version__", *_names]

moved.install()


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        raise AttributeError(f"pyro_sps.{name} is now {_RENAMED[name]}")
    if name in _MODULES:
        return importlib.import_module(f".{_MODULES[name]}", __name__)
    return _get(name)


def __dir__() -> list[str]:
    return sorted(__all__)
