"""The experiments: what `pyro-sps study NAME` runs.

Where an experiment says nothing else, a network has two hidden layers of 50 tanh units, priors are Normal(0, 1), inputs
and targets are standardised, and a fit has the budget of `pyro_sps.study.methods.BUDGET`. The noise is 0.1 and known
for `energy`, as in the paper's second experiment; for other data sets it is learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from .harness import Run, Study

UCI = ("energy", "concrete", "power-plant", "wine-red", "kin8nm")

Options = Mapping[str, Any]

ZERO: Options = {"values": "zero"}
MAP: Options = {"values": "map"}
FROM_MAP: Options = {"init": "map"}


def _learned(kind: str, scale: float, **options: Any) -> Options:
    return {"values": kind, "value_options": {"scale": scale, "learn": True, **options}}


def _given(scale: float) -> Options:
    return {"values": "constant", "value_options": {"scale": scale}}


def _scheme(name: str, **options: Any) -> Options:
    return {"scheme": name, "scheme_options": options}


NONE, LIGHT, HEAVY = _scheme("none"), _scheme("light"), _scheme("heavy")
RANDOM_LIGHT, RANDOM_HEAVY = _scheme("random", like="light"), _scheme("random", like="heavy")
RIGID = _scheme("rigid", signs=True)
#: Where the learned c of a scheme starts: few fixed weights need a large c to matter (the paper's choice in its toy).
C = {"light": 4.0, "heavy": 1.0, "rigid": 4.0}


def _partial(name: str, *parts: Options) -> Run:
    options: dict[str, Any] = {}
    for part in parts:
        options |= part
    return Run(name, "partial", options)


def _at_values(name: str, normal: bool = False) -> tuple[Run, ...]:
    """A scheme, or as many weights at random places, fixed at zero, ±c, draws of a normal if asked, and MAP values."""
    scheme = {"light": LIGHT, "heavy": HEAVY, "random as light": RANDOM_LIGHT, "random as heavy": RANDOM_HEAVY}[name]
    start = C[name.removeprefix("random as ")]
    values = {
        "zero": ZERO,
        "c learned": _learned("constant", start),
        **({"normal learned": _learned("normal", start)} if normal else {}),
        "MAP": MAP,
    }
    return tuple(_partial(f"{name}, {what}", scheme, own) for what, own in values.items())


def _on_all(*runs: Run) -> tuple[Run, ...]:
    """Runs for all data sets: other than on `energy` the noise is learned, and steps are halved to save time."""
    return tuple(replace(run, elsewhere={"learn_noise": True, "num_steps": 5000}) for run in runs)


_TOY = {"noise": 0.05, "num_particles": 16, "batch_size": None}

TOY = Study(
    "toy",
    "The paper's first experiment: one input, thirty rows, a gap",
    ("toy",),
    (
        _partial("none", _TOY, NONE),
        _partial("light, zero", _TOY, LIGHT, ZERO),
        _partial("light, ±15", _TOY, LIGHT, _given(15.0)),
        _partial("light, MAP", _TOY, LIGHT, MAP),
        _partial("heavy, zero", _TOY, HEAVY, ZERO),
        _partial("heavy, ±5", _TOY, HEAVY, _given(5.0)),
        _partial("heavy, MAP", _TOY, HEAVY, MAP),
    ),
    "none",
)

ENERGY = Study(
    "energy",
    "The paper's second experiment: Energy Efficiency, schemes and values, with random controls",
    ("energy",),
    (
        _partial("none", NONE),
        _partial("none, noise 0.05", NONE, {"noise": 0.05}),
        _partial("heavy, zero, noise 0.05", HEAVY, ZERO, {"noise": 0.05}),
        *_at_values("light"),
        *_at_values("heavy"),
        *_at_values("random as light"),
        *_at_values("random as heavy"),
    ),
    "none",
)

MATTERS = Study(
    "matters",
    "What matters: symmetries, the number of fixed weights, their values, their places, or the start?",
    UCI,
    _on_all(
        _partial("none", NONE),
        *_at_values("light"),
        *_at_values("random as light"),
        _partial("rigid, zero", _scheme("rigid"), ZERO),
        _partial("rigid, c learned", RIGID, _learned("constant", C["rigid"])),
        _partial("rigid, c learned, from MAP", RIGID, _learned("constant", C["rigid"]), FROM_MAP),
        _partial("rigid strength 2, zero", _scheme("rigid", strength=2), ZERO),
        _partial("rigid strength 2, c learned", _scheme("rigid", strength=2), _learned("constant", C["rigid"])),
        *_at_values("heavy", normal=True),
        *_at_values("random as heavy", normal=True),
        _partial("heavy, zero, from MAP", HEAVY, ZERO, FROM_MAP),
        _partial("heavy, c learned, from MAP", HEAVY, _learned("constant", C["heavy"]), FROM_MAP),
        _partial("none, from MAP", NONE, FROM_MAP),
    ),
    "none",
)

ALTERNATIVES = Study(
    "alternatives",
    "Other ways to break symmetries, or to start: ordered biases, residual connections, input augmentation, MAP start",
    UCI,
    _on_all(
        _partial("none", NONE),
        _partial("ordered biases", NONE, {"ordered_biases": True}),
        _partial("residual", NONE, {"residual": True}),
        _partial("input augmentation", _scheme("offsets"), _learned("ladder", 1.0)),
        _partial("none, from MAP", NONE, FROM_MAP),
    ),
    "none",
)

_FRACTIONS = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95)
_FEWER = {"num_steps": 5000}


def _swept(kind: str, what: str, fraction: float) -> tuple[str, ...]:
    """Where a row of the sweep is run: on energy and concrete all, elsewhere fewer."""
    if kind == "random":
        return ("energy", "concrete") if what == "normal learned" else ()
    if what == "MAP, from MAP" or (what == "normal learned" and fraction > 0.75):
        return ("energy", "concrete")
    return ("energy", "concrete", "kin8nm")


SWEEP = Study(
    "sweep",
    "How many weights to fix, where and at what; how strongly rigid; which c",
    UCI,
    _on_all(
        _partial("none", _FEWER, NONE),
        *(
            replace(
                _partial(f"{where} {fraction:.0%}, {what}", _FEWER, _scheme(kind, fraction=fraction), values),
                data=_swept(kind, what, fraction),
            )
            for where, kind in (("structured", "wedge"), ("random", "random"))
            for what, values in (
                ("zero", ZERO),
                ("c learned", _learned("constant", 1.0)),
                ("normal learned", _learned("normal", 1.0)),
                ("MAP, from MAP", {**MAP, **FROM_MAP}),
            )
            for fraction in _FRACTIONS
        ),
        *(
            _partial(
                f"rigid strength {k}, c learned", _FEWER, _scheme("rigid", strength=k), _learned("constant", C["rigid"])
            )
            for k in (1, 2, 5, 10, 20)
        ),
        _partial("heavy, zero, from MAP", _FEWER, HEAVY, ZERO, FROM_MAP),
        _partial("heavy, c learned, from MAP", _FEWER, HEAVY, _learned("constant", C["heavy"]), FROM_MAP),
        *(_partial(f"heavy, ±{c:g}", _FEWER, HEAVY, _given(c)) for c in (0.1, 0.3, 1.0, 3.0, 10.0)),
    ),
    "none",
)

#: What baselines are tuned over. A known noise is also what regularises a MAP network, so it is not learned: learned
#: together with the weights it shrinks to the residuals of rows that were fitted.
_NOISES = (0.04, 0.05, 0.06, 0.1, 0.2, 0.25, 0.3, 0.8)
_NETWORK = {"num_steps": 3000, "batch_size": 128}
#: Few steps are early stopping.
_STEPS = (300, 1000, 3000)


def _over_noises(**others: tuple[Any, ...]) -> tuple[Options, ...]:
    """All combinations of the noises and of other options."""
    return tuple(
        {"noise": noise, **dict(zip(others, values, strict=True))}
        for noise in _NOISES
        for values in product(*others.values())
    )


#: What a user would pick instead.
_BASELINES = (
    Run("MAP network", "map", _NETWORK, _over_noises(num_steps=_STEPS)),
    Run(
        "deep ensemble of 10",
        "ensemble",
        {**_NETWORK, "members": 10},
        _over_noises(num_steps=_STEPS),
        tuning={"members": 3},
    ),
    Run("MC dropout", "dropout", _NETWORK, _over_noises(dropout=(0.02, 0.1))),
    Run("last-layer Laplace", "laplace", _NETWORK, _over_noises()),
)

_LEARNED = {"learn_noise": True}


def _by_fan_in(scale: float) -> Options:
    """The prior of `BNN`, whose scale is 2: divided by √fan-in."""
    return {"prior_scale": scale, "scale_by_fan_in": True}


def _fixed_at_map(fraction: float = 0.85, kind: str = "random", noise_share: float = 0.5, **rule: Any) -> Options:
    """Most weights at MAP values, the rest stochastic, started from them; the noise learned."""
    rule["noise_share"] = noise_share
    return {
        **_scheme(kind, fraction=fraction),
        **MAP,
        "value_options": rule,
        **FROM_MAP,
        **_LEARNED,
        **_by_fan_in(2.0),
    }


#: Recipes besides the default.
_VARIANTS: dict[str, Options] = {
    "no early stop": _fixed_at_map(held_out=0.0),
    **{f"noise share {share:g}": _fixed_at_map(noise_share=share) for share in (0.25, 1.0)},
    **{f"random {fraction:.0%}": _fixed_at_map(fraction) for fraction in (0.8, 0.9)},
    "structured 85%": _fixed_at_map(kind="wedge"),
    "prior N(0, 1)": {**_fixed_at_map(), "prior_scale": 1.0, "scale_by_fan_in": False},
    **{f"prior {scale:g}/√fan-in": {**_fixed_at_map(), **_by_fan_in(scale)} for scale in (1.0, 4.0)},
}

#: The default with other settings of its optimisation (sixteen particles take twice the time) or another family.
_SETTINGS: dict[str, Options] = {
    **{f"initial scale {scale:g}": {"init_scale": scale} for scale in (0.01, 0.2)},
    "1 particle, 10,000 steps": {"num_particles": 1, "num_steps": 10_000},
    "16 particles, 2,000 steps": {"num_particles": 16, "num_steps": 2000},
    "constant learning rate": {"final_learning_rate": 0.01},
    "last learning rate 0.0003": {"final_learning_rate": 0.0003},
    "low rank 5": {"rank": 5},
}

#: Mixtures of three fits, by which the recipes are judged.
_THREE = {"members": 3, "num_steps": 5000}

RECIPES = Study(
    "recipes",
    "Which recipe to make the default: candidates on validation rows, no test row is looked at",
    UCI,
    (
        _partial("none", _THREE, NONE, _LEARNED),
        _partial("heavy, zero", _THREE, HEAVY, ZERO, _LEARNED),
        _partial("heavy, c learned", _THREE, HEAVY, _learned("constant", 1.0), _LEARNED),
        _partial("heavy, c learned per layer", _THREE, HEAVY, _learned("constant", 1.0, per_layer=True), _LEARNED),
        _partial("none, prior by fan-in", _THREE, NONE, _LEARNED, _by_fan_in(2.0)),
        _partial("default", _THREE, _fixed_at_map()),
        *(_partial(name, _THREE, recipe) for name, recipe in _VARIANTS.items()),
        *(_partial(name, _THREE, _fixed_at_map(), other) for name, other in _SETTINGS.items()),
    ),
    "none",
    part="validation",
)

_FOUR_NOISES: tuple[Options, ...] = tuple({"noise": noise} for noise in (0.05, 0.1, 0.25, 0.8))

#: What `sps.BNN(net)` and `sps.fit(bnn, x, y)` do.
DEFAULT = {**_fixed_at_map(), "num_steps": 5000}

HEADLINE = Study(
    "headline",
    "The default on test rows, alone and as a mixture of ten replicas",
    UCI,
    (
        *_on_all(_partial("none", NONE)),
        _partial("none, noise learned", NONE, _LEARNED, {"num_steps": 5000}),
        *(
            Run(f"none{what}, noise chosen", "partial", {**NONE, **prior, "num_steps": 5000}, _FOUR_NOISES)
            for what, prior in (("", {}), (", prior by fan-in", _by_fan_in(2.0)))
        ),
        _partial("default", DEFAULT),
        _partial("default, ten replicas", DEFAULT, {"members": 10}),
        Run(
            "ten replicas, recipe chosen",
            "partial",
            {**DEFAULT, "members": 10},
            (_fixed_at_map(), *_VARIANTS.values()),
            tuning={"members": 3},
        ),
        *_BASELINES,
    ),
    "none",
)

NUTS = Study(
    "nuts",
    "The true posterior of the vanilla network, as far as one short chain of NUTS shows it",
    ("energy",),
    (_partial("none", NONE), Run("MAP network", "map", _NETWORK), Run("NUTS", "nuts")),
    "none",
)

#: All studies by name.
STUDIES = {study.name: study for study in (TOY, ENERGY, MATTERS, ALTERNATIVES, SWEEP, RECIPES, HEADLINE, NUTS)}
