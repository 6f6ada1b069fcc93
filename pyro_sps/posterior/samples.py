"""Draws of a posterior by a sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.checks import is_integer, require_count
from ..data.arrays import Standardizer
from ..data.observed import Observed, observed_of
from ..data.sources import Source
from ..model.bnn import BNN
from .outputs import Member
from .predict import Prediction


@dataclass(frozen=True)
class Samples:
    """Draws from the posterior of a network by Markov chains, with the interface of a `pyro.infer.MCMC` that has run.

    Attributes:
        bnn: The model that was sampled, a copy of the one given to `sample`.
        samples: Values of each sample site, shape (chains, draws, entries). 4 bytes a value in single precision.
        kernel: `mclmc`, `mams` or `nuts`.
        energies: Minus the log joint density of each draw in unconstrained space, shape (chains, draws).
        errors: For `mclmc` and `mams`, the mean square energy error of the steps of each stretch of the run that ended
            in a draw or could have, for each stiff direction, shape (chains, draws); else empty.
        failures: The share of steps of each of these that were taken back or not accepted, or for `nuts` whether the
            trajectory diverged, shape (chains, draws).
        acceptance_rates: For each chain the share of steps (trajectories) that were kept.
        tuning: What the warm-up chose, for each chain: `largest_step`, `scales` (by site), `trajectory` (steps of one);
            and the mean `step_size` that was used after it.
        restarted: Chains that were stuck or far from the others in the warm-up and began again.
        standardizer: Shift and scale between the user's units and the network's.
        seconds: Wall time of each part: `prepare`, `starts`, `sample`.
        settings: What `sample` was asked for.
        stopped: Why it ended before its last draw; empty if it did not.
        starts: Values of the sample sites where chains began, shape (chains, entries); None if that is not known.
        mode: How steps were run: `compiled`, `recorded` or `traced`.
        x: Training inputs, in the units of the network; None after loading.
        y: Training targets, likewise.
        input_shape: Shape of a row of inputs.
        features: Names of the input columns, if the inputs had names.
        targets: Names of the target columns, likewise.
        row_weights: How often each training row counts, if that was said.
        y_scale: Known error bars of the training targets, in the units of the network, likewise.
        source: What the training data is read from, where it was read in pieces, as of a `Fit`.

    Where gaps in the targets were ignored, `y` has NaN there, of labels -1.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> posterior = sps.sample(bnn, x, x**2, chains=2, num_samples=5, warmup=50, map_steps=50, progress=False)
        >>> posterior.weights()["0.weight"].shape, posterior.predict(x).mean.shape
        (torch.Size([2, 5, 5, 1]), torch.Size([20, 1]))
    """

    bnn: BNN
    samples: Mapping[str, Tensor] = field(repr=False)
    kernel: str
    energies: Tensor = field(repr=False)
    errors: Tensor = field(repr=False)
    failures: Tensor = field(repr=False)
    acceptance_rates: Sequence[float]
    tuning: Mapping[str, Any] = field(repr=False)
    restarted: Sequence[int]
    standardizer: Standardizer = field(repr=False)
    seconds: Mapping[str, float]
    settings: Mapping[str, Any] = field(repr=False)
    stopped: str = ""
    mode: str = ""
    starts: Mapping[str, Tensor] | None = field(default=None, repr=False)
    x: Tensor | None = field(default=None, repr=False)
    y: Tensor | None = field(default=None, repr=False)
    input_shape: tuple[int, ...] | None = field(default=None, repr=False)
    features: tuple[str, ...] | None = field(default=None, repr=False)
    targets: tuple[str, ...] | None = field(default=None, repr=False)
    row_weights: Tensor | None = field(default=None, repr=False)
    y_scale: Tensor | None = field(default=None, repr=False)
    source: Source | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "source"}

    @property
    def observed(self) -> Tensor | Observed | None:
        """The training targets with what says how each counts; targets alone where all count the same."""
        return None if self.y is None else observed_of(self.y, self.row_weights, self.y_scale)

    @property
    def num_chains(self) -> int:
        """Number of chains."""
        return self.energies.shape[0]

    @property
    def num_samples(self) -> int:
        """Number of draws of each chain."""
        return self.energies.shape[1]

    @property
    def divergences(self) -> list[list[int]]:
        """For each chain the draws before which a step was taken back (`mclmc`), or a trajectory diverged (`nuts`)."""
        if self.kernel == "mams":  # of which some are not accepted as a matter of course
            return [[] for _ in range(self.num_chains)]
        return [chain.nonzero().flatten().tolist() for chain in self.failures]

    @property
    def num_divergent(self) -> int:
        """Number of `divergences` in all chains."""
        return sum(map(len, self.divergences))

    @property
    def approximate(self) -> str:
        """In which way the draws are not those of the posterior even in the long run; empty if they are."""
        if self.kernel != "mclmc":
            return ""
        rows = None if self.x is None else len(self.x)
        batch = self.settings.get("batch_size")
        noisy = batch is not None and (rows is None or batch < rows)
        return "unadjusted steps" + (" on minibatches, whose noise heats the chains" if noisy else "")

    def get_samples(self, num_samples: int | None = None, group_by_chain: bool = False) -> dict[str, Tensor]:
        """Values of the sample sites, as `pyro.infer.MCMC.get_samples` gives them.

        Args:
            num_samples: Number of draws, taken at random with replacement; None for all.
            group_by_chain: Whether to keep the dimension of the chains.

        Returns:
            Shape (draws, entries), or (chains, draws, entries), by site.
        """
        from pyro.infer.mcmc.util import select_samples

        selected: dict[str, Tensor] = select_samples(dict(self.samples), num_samples, group_by_chain)
        return selected

    def diagnostics(self) -> dict[str, Any]:
        """R-hat and effective sample size by site, divergences and acceptance rates by chain, as Pyro gives them."""
        from pyro.infer.mcmc.util import diagnostics

        found: dict[str, Any] = diagnostics(dict(self.samples))
        chains = [f"chain {index}" for index in range(self.num_chains)]
        found["divergences"] = dict(zip(chains, self.divergences, strict=True))
        found["acceptance rate"] = dict(zip(chains, self.acceptance_rates, strict=True))
        return found

    def weights(self) -> dict[str, Tensor]:
        """All weight tensors in full, fixed entries included: shape (chains, draws) + the tensor's, by name."""
        with torch.no_grad():
            return self.bnn.assemble(self.samples)

    def draws(self, num_samples: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draws of every site at random, with replacement, as a guide gives them: shape (num_samples, entries)."""
        flat = {name: value.flatten(0, 1) for name, value in self.samples.items()}
        first = next(iter(flat.values()))
        index = torch.randint(len(first), (num_samples,), generator=generator, device=first.device)
        return {name: value[index] for name, value in flat.items()}

    def thinned(self, every: int) -> Samples:
        """Every so-many-th draw of each chain, the last one included.

        Args:
            every: How many draws make one.

        Raises:
            ValueError: If it is not between 1 and the number of draws.
        """
        if not is_integer(every) or every > self.num_samples:
            raise ValueError(f"every must be an integer from 1 to {self.num_samples}, got {every!r}")
        rows = torch.arange(self.num_samples - 1, -1, -every).flip(0)
        return self._select(lambda value: value[:, rows.to(value.device)])

    def chain(self, *chains: int) -> Samples:
        """Some of the chains, for instance without one that stands apart.

        Args:
            *chains: Their numbers.

        Raises:
            ValueError: If there is none, or one that does not exist.
        """
        if not chains or not all(isinstance(one, int) and 0 <= one < self.num_chains for one in chains):
            raise ValueError(f"chains must be among 0 ... {self.num_chains - 1}, got {chains}")
        picked = self._select(lambda value: value[list(chains)])
        return replace(
            picked,
            starts=None if self.starts is None else {n: v[list(chains)] for n, v in self.starts.items()},
            acceptance_rates=[self.acceptance_rates[one] for one in chains],
            restarted=[new for new, old in enumerate(chains) if old in self.restarted],
        )

    def _select(self, pick: Any) -> Samples:
        own = {name: pick(getattr(self, name)) for name in ("energies", "failures")}
        errors = pick(self.errors) if self.errors.numel() else self.errors
        return replace(self, samples={name: pick(v) for name, v in self.samples.items()}, errors=errors, **own)

    def member(self, num_samples: int) -> Member:
        """What predictions need: so many draws, from all chains alike and spread evenly over each.

        Args:
            num_samples: Number of draws; where there are fewer, each is used several times.
        """
        count, length = self.num_chains, self.num_samples
        total = count * length
        order = torch.arange(num_samples) % total
        each = -(-min(num_samples, total) // count)
        place = (((order // count) + 1) * length / each).round().long() - 1
        chain = order % count
        sites = {n: v[chain.to(v.device), place.clamp(0, length - 1).to(v.device)] for n, v in self.samples.items()}
        return self._member(sites)

    def starting_member(self, num_samples: int) -> Member:
        """The same of the networks where chains began: with `starts="map"` an ensemble of MAP networks.

        Args:
            num_samples: Number of draws, among which the networks take turns.

        Raises:
            ValueError: If it is not known where chains began.
        """
        if self.starts is None:
            raise ValueError("these samples do not know where their chains began")
        turns = torch.arange(num_samples) % self.num_chains
        return self._member({name: value[turns.to(value.device)] for name, value in self.starts.items()})

    def _member(self, sites: Mapping[str, Tensor]) -> Member:
        missing = str(self.settings.get("missing", "error"))
        return Member(self.bnn, None, self.standardizer, sites, self.features, self.targets, missing)

    def predict(self, x: Any, num_samples: int | None = None, seed: int = 0, *, y_scale: Any = None) -> Prediction:
        """The posterior predictive distribution at new inputs; see `Fit.predict`.

        Args:
            x: Inputs in original units, in the form that they were fitted in: shape (rows, features), for instance.
            num_samples: Number of posterior draws S, spread evenly over chains; default: all, or 1,000 of more.
            seed: Seeds the noise of predictive draws.
            y_scale: As for `Fit.predict`.

        Raises:
            ValueError: If `x` does not fit the network, or `num_samples` is not positive.
        """
        count = min(1000, self.num_chains * self.num_samples) if num_samples is None else num_samples
        require_count("num_samples", count)
        return Prediction.of([self.member(count)], x, count, seed, y_scale)

    def to_arviz(self, **options: Any) -> Any:
        """The chains as ArviZ's `InferenceData` or `DataTree`; see `pyro_sps.diagnostics.convert.samples_to_arviz`."""
        from ..diagnostics.convert import samples_to_arviz

        return samples_to_arviz(self, **options)

    def diagnose(self, **options: Any) -> Any:
        """Whether the chains have mixed; see `pyro_sps.diagnose`, which takes the same options."""
        from ..diagnostics.diagnose import diagnose

        return diagnose(self, **options)

    def save(self, directory: str | Path) -> None:
        """Write the draws to a directory; `pyro_sps.load` reads them again. See `pyro_sps.posterior.save.save`."""
        from .save import save

        save(self, directory)
