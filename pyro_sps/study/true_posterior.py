"""What symmetry breaking does to the true posterior of networks that are small enough to know it.

For each network and scheme: the evidence and draws from it by sequential Monte Carlo, the modes that these draws belong
to, how NUTS mixes in weight space and in function space, and how far the mean-field ELBO stays below the evidence.

    python -m pyro_sps.study.true_posterior --out DIR [--quick]
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from torch import Tensor

from ..data.arrays import make_generator
from ..inference.sampling import sample
from ..inference.variational import fit
from ..masks.rigid import Rigid
from ..masks.schemes import Heavy, Light, Scheme, SymmetryWarning, Unmasked
from ..masks.values import Constant, Ladder, Values, Zero
from ..model.bnn import BNN
from ..model.likelihoods import Gaussian
from ..model.target import Target
from ..network.build import mlp
from ..plots import plot_twins
from ..posterior.samples import Samples
from . import records
from .evidence import log_evidence
from .modes import effective_number, find_modes, log_order

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOISE = 0.2
_ZERO = Zero()


@dataclass(frozen=True)
class Experiment:
    """One network with one scheme.

    Attributes:
        widths: Widths of the network's layers; it has tanh units.
        scheme: What picks the masks.
        values: What the fixed weights are set to.
        ordered_biases: Whether the biases of hidden layers increase.
        label: What the scheme is called in tables.
    """

    widths: tuple[int, ...]
    label: str
    scheme: Scheme
    values: Values = _ZERO
    ordered_biases: bool = False

    @property
    def network(self) -> str:
        """The widths as text."""
        return "-".join(map(str, self.widths))

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.network} {self.label}"

    def model(self) -> BNN:
        """The Bayesian network, in float64."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SymmetryWarning)  # that some leave symmetries is what is measured
            return BNN(
                mlp(self.widths, dtype=torch.float64),
                scheme=self.scheme,
                values=self.values,
                likelihood=Gaussian(NOISE),
                prior_scale=1.0,
                ordered_biases=self.ordered_biases,
            )


#: Light and heavy masks fix nothing in 1-3-1 and 1-5-1 networks; equal constants cannot tell the latter's units apart.
EXPERIMENTS = (
    Experiment((1, 3, 1), "none", Unmasked()),
    Experiment((1, 3, 1), "rigid, zero", Rigid()),
    Experiment((1, 3, 1), "rigid with signs, ±1", Rigid(signs=True), Constant(1.0)),
    Experiment((1, 3, 1), "rigid with signs, ladder", Rigid(signs=True), Ladder(1.0)),
    Experiment((1, 3, 1), "ordered biases", Unmasked(), ordered_biases=True),
    Experiment((1, 5, 1), "none", Unmasked()),
    Experiment((1, 5, 1), "rigid, ladder", Rigid(), Ladder(1.0)),
    Experiment((1, 5, 1), "rigid with signs, ladder", Rigid(signs=True), Ladder(1.0)),
    Experiment((1, 5, 1), "ordered biases", Unmasked(), ordered_biases=True),
    Experiment((2, 3, 3, 1), "none", Unmasked()),
    Experiment((2, 3, 3, 1), "light, zero", Light()),
    Experiment((2, 3, 3, 1), "light, ±1", Light(), Constant(1.0)),
    Experiment((2, 3, 3, 1), "heavy, zero", Heavy()),
    Experiment((2, 3, 3, 1), "heavy, ±1", Heavy(), Constant(1.0)),
    Experiment((2, 3, 3, 1), "rigid, zero", Rigid()),
    Experiment((2, 3, 3, 1), "rigid with signs, ±1", Rigid(signs=True), Constant(1.0)),
    Experiment((2, 3, 3, 1), "ordered biases", Unmasked(), ordered_biases=True),
)


#: Of which the weights of two units are drawn.
TWINS = ("1-3-1 none", "1-3-1 rigid with signs, ±1")


@dataclass(frozen=True)
class Effort:
    """How much is computed for each experiment.

    Attributes:
        particles: Of each run of sequential Monte Carlo.
        runs: Number of such runs.
        climbs: Draws whose modes are found, of either sampler.
        climb_steps: Steps of the ascents that find them.
        chains: Chains of NUTS.
        warmup: Draws of each before its step size is fixed.
        draws: Draws of each afterwards.
        tree_depth: Trajectories have at most 2 to this power leapfrog steps.
        replicas: Fits of the mean-field guide from different starts.
        steps: Steps of each.
        elbo_draws: Draws that their final ELBO is estimated from.
    """

    particles: int = 1000
    runs: int = 8
    climbs: int = 800
    climb_steps: int = 3000
    chains: int = 4
    warmup: int = 200
    draws: int = 200
    tree_depth: int = 7
    replicas: int = 10
    steps: int = 4000
    elbo_draws: int = 1000


FULL = Effort()
QUICK = Effort(50, 2, 20, 50, chains=2, warmup=5, draws=10, tree_depth=3, replicas=2, steps=20, elbo_draws=50)


def toy(features: int, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """A smooth function of one or two inputs in [-2, 2] with noise: x of shape (rows, features), y of (rows, 1)."""
    generator = make_generator("cpu", seed, 10, features, rows)
    x = 4 * torch.rand(rows, features, generator=generator, dtype=torch.float64) - 2
    function = (1.5 * x[:, :1]).sin() * (x[:, 1:].cos() if features > 1 else 1.0)
    return x, function + NOISE * torch.randn(rows, 1, generator=generator, dtype=torch.float64)


def measure(experiment: Experiment, effort: Effort, seed: int) -> tuple[dict[str, Any], Samples]:
    """Everything that is measured of one experiment, and the draws of NUTS."""
    features = experiment.widths[0]
    x, y = toy(features, 16 * features, seed)
    x_test, y_test = toy(features, 1000, seed)
    bnn = experiment.model()
    target = Target.of(bnn, x, y)
    times = [time.perf_counter()]

    evidence = log_evidence(target, num_particles=effort.particles, num_runs=effort.runs, seed=seed)
    times.append(time.perf_counter())
    particles = evidence.particles[:: max(1, len(evidence.particles) // effort.climbs)]
    nuts = sample(
        bnn,
        x,
        y,
        num_samples=effort.draws,
        warmup=effort.warmup,
        chains=effort.chains,
        kernel="nuts",
        starts="prior",
        standardize=False,
        max_tree_depth=effort.tree_depth,
        seed=seed,
        progress=False,
    )
    times.append(time.perf_counter())
    settings: dict[str, Any] = {"num_steps": effort.steps, "num_particles": 16, "batch_size": None, "compile": False}
    settings |= {"standardize": False, "progress": False}
    fits = fit(bnn, x, y, replicas=effort.replicas, seed=seed, **settings)
    elbos = np.array([one.elbo_draws(effort.elbo_draws, seed).mean().item() for one in fits])
    times.append(time.perf_counter())

    # Draws of both samplers climb together, so that they have the same numbers for the same modes.
    chains = target.flat(nuts.samples)
    every = max(1, effort.chains * effort.draws // effort.climbs)
    chains = chains[:, ::every]
    modes = find_modes(target, torch.cat([particles, chains.flatten(0, 1)]), effort.climb_steps)
    reference, visited = modes.labels[: len(particles)], modes.labels[len(particles) :].reshape(effort.chains, -1)
    times.append(time.perf_counter())

    with torch.no_grad():
        outputs = bnn.function(nuts.weights(), x_test[:50])[..., 0]
    weight, function = _mixing(chains=target.flat(nuts.samples)), _mixing(chains=outputs)
    left = log_order(target)
    row = {
        "experiment": experiment.name,
        "network": experiment.network,
        "scheme": experiment.label,
        "stochastic": bnn.num_stochastic,
        "fixed": bnn.num_fixed,
        "symmetries_left": round(math.exp(left)),
        "log_symmetries_left": left,
        "modes": len(set(reference.tolist())),
        "effective_modes": effective_number(reference),
        "functions": len(set(modes.functions[reference].tolist())),
        "effective_functions": effective_number(modes.functions[reference]),
        "nuts_modes": len(set(visited.flatten().tolist())),
        "nuts_modes_per_chain": float(np.mean([len(set(chain.tolist())) for chain in visited])),
        "rhat_weights": weight[0],
        "ess_weights": weight[1],
        "rhat_functions": function[0],
        "ess_functions": function[1],
        "divergent": nuts.num_divergent,
        "log_evidence": evidence.log_z,
        "log_evidence_se": evidence.standard_error,
        "elbo_best": float(elbos.max()),
        "elbo_mean": float(elbos.mean()),
        "elbo_sd": float(elbos.std(ddof=1)),
        "gap": evidence.log_z - float(elbos.max()),
        "gap_without_copies": evidence.log_z - left - float(elbos.max()),
        "lpp_posterior": _lpp(target, evidence.particles[:: max(1, len(evidence.particles) // 2000)], x_test, y_test),
        "lpp_nuts": _lpp(target, target.flat(nuts.samples).flatten(0, 1), x_test, y_test),
        "lpp_guide": float(np.mean([one.predict(x_test, seed=seed).lpp(y_test) for one in fits])),
        "lpp_guide_best": fits[int(elbos.argmax())].predict(x_test, seed=seed).lpp(y_test),
    }
    for part, spent in zip(("evidence", "nuts", "fits", "modes"), np.diff(times), strict=True):
        row[f"seconds_{part}"] = round(float(spent), 1)
    return row, nuts


def _mixing(chains: Tensor) -> tuple[float, float]:
    """Largest R-hat and smallest bulk effective sample size of quantities, shape (chains, draws, quantities)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ announces its next generation
        import arviz as az

        data = az.convert_to_dataset({"value": chains.numpy()})
        return float(az.rhat(data)["value"].max()), float(az.ess(data)["value"].min())


def _lpp(target: Target, flat: Tensor, x: Tensor, y: Tensor) -> float:
    """Mean log posterior predictive density under equally weighted draws."""
    with torch.no_grad():
        outputs = target.bnn.function(target.bnn.assemble(target.sites(flat)), x)
        log_prob = target.bnn.likelihood.elementwise(outputs).log_prob(y)
    return float((log_prob.logsumexp(0) - math.log(len(flat))).mean())


def run(
    out: Path,
    *,
    quick: bool = False,
    seed: int = 0,
    limit: int | None = None,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Measure every experiment that `out` does not hold yet, then write the tables and figures.

    Args:
        out: Folder of the results; it is made if there is none.
        quick: Whether to compute next to nothing, to see that it runs.
        seed: Decides data, draws and fits.
        limit: Largest number of experiments to measure now.
        say: Prints a line.

    Returns:
        All rows that `out` holds for this seed and effort, in the order of `EXPERIMENTS`.
    """
    path, effort = out / "results.jsonl", QUICK if quick else FULL
    measured = 0
    for experiment in EXPERIMENTS:
        if experiment.name in _rows(path, quick, seed) or measured == limit:
            continue
        started = time.perf_counter()
        row, nuts = measure(experiment, effort, seed)
        (out / "draws").mkdir(parents=True, exist_ok=True)
        weights: dict[str, Any] = {name: value.numpy() for name, value in nuts.weights().items()}
        np.savez_compressed(_draws_file(out, experiment), **weights)
        records.append(path, {**row, "seed": seed, "quick": quick})
        measured += 1
        say(f"{experiment.name}: {time.perf_counter() - started:.0f} s")
    rows = list(_rows(path, quick, seed).values())
    aggregate(out, rows)
    say(f"{len(rows)} of {len(EXPERIMENTS)} experiments are in {out}")
    return rows


def _rows(path: Path, quick: bool, seed: int) -> dict[str, dict[str, Any]]:
    known = {row["experiment"]: row for row in records.read(path) if (row["quick"], row["seed"]) == (quick, seed)}
    return {one.name: known[one.name] for one in EXPERIMENTS if one.name in known}


def _draws_file(out: Path, experiment: Experiment) -> Path:
    return out / "draws" / (experiment.name.replace(" ", "_").replace("±", "").replace(",", "") + ".npz")


#: Headings and formats of the Markdown table.
COLUMNS = {
    "network, scheme": "{experiment}",
    "stochastic weights": "{stochastic}",
    "symmetries left": "{symmetries_left:,}",
    "modes (effective)": "{modes} ({effective_modes:.1f})",
    "functions (effective)": "{functions} ({effective_functions:.1f})",
    "modes in a NUTS chain": "{nuts_modes_per_chain:.1f}",
    "R-hat, weights": "{rhat_weights:.2f}",
    "R-hat, functions": "{rhat_functions:.2f}",
    "ESS, weights": "{ess_weights:.0f}",
    "ESS, functions": "{ess_functions:.0f}",
    "log evidence": "{log_evidence:.2f} ± {log_evidence_se:.2f}",
    "best ELBO": "{elbo_best:.2f}",
    "gap": "{gap:.2f}",
    "gap without copies": "{gap_without_copies:.2f}",
    "LPP, posterior": "{lpp_posterior:.3f}",
    "LPP, guides": "{lpp_guide:.3f}",
}


def aggregate(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `results.csv`, `results.md` and the figures of results."""
    if not rows:
        return
    out.mkdir(parents=True, exist_ok=True)
    records.write_csv(out / "results.csv", rows)
    (out / "results.md").write_text(records.markdown(rows, COLUMNS) + "\n", encoding="utf-8")
    gap_figure(rows).savefig(out / "gap.png", dpi=120)
    mixing_figure(rows).savefig(out / "mixing.png", dpi=120)
    if (twins := twins_figure(out)) is not None:
        twins.savefig(out / "twins.png", dpi=120)


def _panel(rows: Sequence[Mapping[str, Any]]) -> tuple[Figure, Any, np.ndarray]:
    """Axes with a line for each experiment, first on top."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7.5, 1.4 + 0.34 * len(rows)), layout="constrained")
    ax = drawn.subplots()
    place = np.arange(len(rows))
    ax.set_yticks(place, [row["experiment"] for row in rows], fontsize="small")
    ax.set(ylim=(len(rows) - 0.5, -0.5))
    networks = [row["network"] for row in rows]
    for index in range(1, len(rows)):
        if networks[index] != networks[index - 1]:
            ax.axhline(index - 0.5, color="0.6", linewidth=0.8)
    return drawn, ax, place


def gap_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """By how much the best ELBO misses the log evidence, and which part of it the symmetric copies explain."""
    drawn, ax, place = _panel(rows)
    gap, copies = (np.array([row[name] for row in rows]) for name in ("gap", "log_symmetries_left"))
    error = 1.96 * np.array([row["log_evidence_se"] for row in rows])
    ax.barh(place, gap, color="0.8", edgecolor="black", linewidth=0.5, label="log evidence − best ELBO")
    ax.barh(place, copies, 0.4, color="tab:blue", label="of this, log of the symmetries left")
    ax.errorbar(gap, place, xerr=error, fmt="none", ecolor="black", capsize=2, label="95 % interval of the evidence")
    ax.set_xlabel("nats")
    drawn.legend(fontsize="small", loc="outside lower center", ncols=3)
    return drawn


def mixing_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """R-hat of NUTS in weight space and in function space."""
    drawn, ax, place = _panel(rows)
    weights, functions = ([max(row[f"rhat_{kind}"] - 1, 1e-3) for row in rows] for kind in ("weights", "functions"))
    ax.hlines(place, functions, weights, color="0.7", linewidth=1.0, zorder=0)
    ax.plot(weights, place, "s", color="black", label="worst weight")
    ax.plot(functions, place, "o", color="tab:blue", markerfacecolor="white", label="worst output of the network")
    ax.axvline(0.01, color="0.4", linestyle="--", linewidth=1.0, label="1.01: chains agree")
    ax.set(xscale="log", xlabel="R-hat − 1")
    drawn.legend(fontsize="small", loc="outside lower center", ncols=3)
    return drawn


def twins_figure(out: Path) -> Figure | None:
    """Two units of the 1-3-1 network in NUTS chains: with nothing fixed, and with rigid masks; None without draws."""
    from matplotlib.figure import Figure

    chosen = [one for one in EXPERIMENTS if one.name in TWINS and _draws_file(out, one).exists()]
    if not chosen:
        return None
    drawn = Figure(figsize=(9.5, 3.4 * len(chosen)), layout="constrained")
    grid = drawn.subplots(len(chosen), 3, squeeze=False)
    for axes, experiment in zip(grid, chosen, strict=True):
        with np.load(_draws_file(out, experiment)) as draws:
            plot_twins((experiment.model().topology, dict(draws)), axes=list(axes))
        drawn.suptitle("Weights of two units of the 1-3-1 network in NUTS, a colour a chain", fontsize="medium")
        axes[0].set_ylabel(f"{experiment.label}\n\n{axes[0].get_ylabel()}")
    return drawn


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the results.")
@click.option("--quick", is_flag=True, help="Compute next to nothing, to see that it runs.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--limit", type=click.IntRange(0), help="Measure at most so many experiments now.")
def main(out: Path, quick: bool, seed: int, limit: int | None) -> None:
    """What symmetry breaking does to the true posterior of small networks. Goes on where it was cut off."""
    run(out, quick=quick, seed=seed, limit=limit, say=click.echo)


if __name__ == "__main__":
    main()
