"""Saving and loading fitted estimators: what they know beside their networks, as JSON. Nothing is ever unpickled."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..base.checks import is_integer, is_number
from ..base.files import LoadError
from ..data.encoding import Encoder
from ..model.bnn import BNN
from ..network.build import ACTIVATIONS, mlp
from ..posterior.fit import Fits
from ..posterior.load import read
from ..posterior.samples import Samples
from ..posterior.save import save

FORMAT = 1

#: Largest networks: a file could ask for any memory.
MAX_LAYERS, MAX_WEIGHTS = 1000, 10_000_000


def save_table_model(model: Any, directory: str | Path, encoder: Encoder | None) -> None:
    """Write a fitted estimator.

    Args:
        model: The estimator.
        directory: Where to.
        encoder: Its preprocessing; None if that is not ours.

    Raises:
        ValueError: If it holds what JSON does not.
    """
    if encoder is None and model.preprocessing_ is not None:
        raise ValueError(
            f"a preprocessing of your own, {type(model.preprocessing_).__name__}, cannot be saved without pickle; "
            "joblib.dump(model, file) keeps it, for those who trust the file"
        )
    classes = getattr(model, "classes_", None)
    if classes is not None and not all(isinstance(label, str | int | float) for label in classes.tolist()):
        raise ValueError(f"labels must be text, numbers or Booleans to be saved, got {classes[:5].tolist()}")
    first = _network_of(model.posterior_)
    widths = [group.size for group in first.topology.groups]
    if _too_large(widths):
        raise ValueError(f"networks of more than {MAX_WEIGHTS:,} weights cannot be saved so; save model.posterior_")
    plain = {k: v for k, v in model.get_params(deep=False).items() if isinstance(v, str | int | float | None)}
    content = {
        "format": FORMAT,
        "estimator": type(model).__name__,
        "options": {**plain, "hidden": [int(width) for width in model.hidden]},
        "widths": widths,
        "activation": model.activation,
        "skip": any(tensor.name == "skip.weight" for tensor in first.topology.tensors),
        "columns": [list(pair) for pair in model.columns_.items()],
        "named": hasattr(model, "feature_names_in_"),
        "encoder": None if encoder is None else encoder.to_json(),
        "range": model.range_.tolist(),
        "levels": {name: list(levels) for name, levels in model.levels_.items()},
        "seed": model.seed_,
        "classes": None if classes is None else classes.tolist(),
        "is_vector": getattr(model, "is_vector_", True),
    }
    save(model.posterior_, directory, content)


def load_table_model(classes: Sequence[Any], directory: str | Path) -> Any:
    """Read a fitted estimator of one of some classes.

    Args:
        classes: The classes.
        directory: Where it is.

    Raises:
        LoadError: If the file is no such estimator.
    """
    known = {cls.__name__: cls for cls in classes}

    def network(extra: Mapping[str, Any]) -> Any:
        if not isinstance(extra, Mapping) or extra.get("estimator") not in known:
            found = extra.get("estimator") if isinstance(extra, Mapping) else None
            wanted = " or ".join(known)
            raise LoadError(
                f"{directory} holds no {wanted}"
                + (f" but a {str(found)[:40]}" if found else ": pyro_sps.load(directory, net) reads fits of networks")
            )
        if extra.get("format") != FORMAT:
            raise LoadError(f"{directory} has format {str(extra.get('format'))[:20]}; this version reads {FORMAT}")
        widths, activation = extra.get("widths"), extra.get("activation")
        if not isinstance(widths, list) or not all(is_integer(width) for width in widths) or _too_large(widths):
            raise LoadError(f"{directory} is damaged: no network has the widths {str(widths)[:80]}")
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise LoadError(f"{directory} is damaged: there is no activation {str(activation)[:80]!r}")
        return mlp(widths, activation, device="meta", skip=extra.get("skip", False) is True)

    posterior, extra = read(directory, network)
    try:
        return _rebuilt(known[extra["estimator"]], posterior, extra)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, LoadError):
            raise
        raise LoadError(f"{directory} is damaged: {type(error).__name__} {str(error)[:200]}") from error


def _rebuilt(cls: Any, posterior: Any, extra: Mapping[str, Any]) -> Any:
    """The estimator, from parts of which each is checked."""
    model = cls(**_options(cls, extra["options"]))
    model.columns_ = {_text(name): _text(kind) for name, kind in extra["columns"]}
    encoder = None if extra["encoder"] is None else Encoder.from_json(extra["encoder"])
    _require(encoder is None or dict(encoder.columns) == model.columns_, "columns")
    inputs = len(model.columns_) if encoder is None else encoder.num_inputs
    _require(isinstance(posterior, Fits | Samples) and extra["widths"][0] == inputs, "inputs")
    bnn = _network_of(posterior)
    model.preprocessing_, model.left_out_ = encoder, [] if encoder is None else list(encoder.left_out)
    rows = extra["range"]
    _require(len(rows) == 3 and all(len(row) == inputs for row in rows), "range")
    _require(all(is_number(value) and math.isfinite(value) for row in rows for value in row), "range")
    model.range_ = np.array(rows, dtype=np.float64)
    model.levels_ = {name: [_text(level) for level in levels] for name, levels in extra["levels"].items()}
    _require(all(model.columns_.get(name) == "text" for name in model.levels_), "levels")
    _require(is_integer(extra["seed"], 0), "seed")
    model.seed_, model.posterior_, model.n_features_in_ = extra["seed"], posterior, len(model.columns_)
    model.method_ = "sample" if isinstance(posterior, Samples) else "fit"
    model.likelihood_ = bnn.likelihood
    if extra["named"]:
        model.feature_names_in_ = np.array(list(model.columns_), dtype=object)
    if extra["classes"] is None:
        model.is_vector_ = bool(extra["is_vector"])
        targets = bnn.likelihood.num_targets(extra["widths"][-1])
        _require(model.likelihood_.real_valued and (targets == 1 or not model.is_vector_), "targets")
    else:
        labels = extra["classes"]
        kinds = {type(label) for label in labels}
        _require(len(labels) == extra["widths"][-1] and len(set(labels)) == len(labels), "classes")
        _require(len(kinds) == 1 and kinds <= {str, int, float, bool}, "classes")
        model.classes_ = np.array(labels)
    _require((extra["classes"] is None) == (model.likelihood_.event_dim == 1), "classes")
    return model


def _network_of(posterior: Fits | Samples) -> BNN:
    return posterior.bnn if isinstance(posterior, Samples) else posterior[0].bnn


def _options(cls: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    known = cls().get_params(deep=False)
    _require(set(options) <= set(known), "options")
    _require(all(isinstance(v, str | int | float | None) for k, v in options.items() if k != "hidden"), "options")
    hidden = options["hidden"]
    _require(isinstance(hidden, list) and all(is_integer(width) for width in hidden), "options")
    return {**options, "hidden": tuple(hidden)}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:80]!r} is no text")
    return value


def _require(true: bool, what: str) -> None:
    if not true:
        raise LoadError(f"the saved model is damaged: its {what} do not fit")


def _too_large(widths: list[int]) -> bool:
    weights = sum(width * (other + 1) for width, other in itertools.pairwise(widths))
    return not 2 <= len(widths) <= MAX_LAYERS or weights > MAX_WEIGHTS
