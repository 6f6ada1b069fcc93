r"""What a user would pick instead: MAP networks, deep ensembles, MC dropout, last-layer Laplace, NUTS.

Each method is a function `method(problem, *, seed, progress, **options) -> [Mixture]`, one mixture a split, and its
options are plain JSON values. All train tanh networks of `problem.widths` by Adam on the negative log joint per row,

$$ -\tfrac{1}{B} \sum_{i \in \text{batch}} \log \mathcal N(y_i \mid f_w(x_i), s^2)
   + \tfrac{1}{2 N} \sum_j w_j^2 / \sigma_j^2 , $$

the networks of all splits and members side by side in one batch. None depends on which others train beside it.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ..data.arrays import make_generator
from ..inference.sampling import sample
from ..masks.schemes import Unmasked
from ..masks.values import Zero
from ..model.bnn import BNN
from ..model.likelihoods import Gaussian
from ..network.build import mlp
from .problems import Problem
from .scores import Mixture
from .training import Networks, Training, check_bool, check_integer, dropout_masks_of, train_networks


def map_network(
    problem: Problem, *, members: int = 1, seed: int = 0, progress: bool = True, **options: Any
) -> list[Mixture]:
    """MAP estimates of a network: one, or an equally weighted mixture of several from different random starts.

    Args:
        problem: Splits of a data set.
        members: Networks of each split.
        seed: Seeds starts and orders of the rows.
        progress: Whether to show a progress bar (on a terminal).
        **options: Of training, those of `Training`.

    Returns:
        For each split a mixture of `members` components: the networks' outputs, and the noise as their scale.

    Raises:
        ValueError: If an option is out of range.
        TypeError: If an option is not known.
        FloatingPointError: If training diverged.

    Example:
        >>> import torch
        >>> from pyro_sps.study.problems import Problem
        >>> x = torch.randn(2, 20, 3)
        >>> problem = Problem("random", (3, 5, 1), x, x.sum(-1, keepdim=True), x, x.sum(-1, keepdim=True))
        >>> [mixture.means.shape for mixture in map_network(problem, members=4, num_steps=10)]
        [torch.Size([4, 20, 1]), torch.Size([4, 20, 1])]
    """
    check_integer("members", members, 1)
    networks = train_networks(problem, Training(**options), members=members, seed=seed, progress=progress)
    means = networks.forward(problem.x_test.repeat_interleave(members, 0))
    return [Mixture(*parts) for parts in zip(means.split(members), networks.noise.split(members), strict=True)]


def deep_ensemble(
    problem: Problem, *, members: int = 10, seed: int = 0, progress: bool = True, **options: Any
) -> list[Mixture]:
    """Deep ensembles (Lakshminarayanan et al. 2017), without adversarial training: `map_network` with ten members.

    Their networks predict a noise for every row; these have one noise each, as our other methods do.
    """
    return map_network(problem, members=members, seed=seed, progress=progress, **options)


def mc_dropout(
    problem: Problem,
    *,
    dropout: float = 0.05,
    draws: int = 100,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> list[Mixture]:
    """Dropout at test time too (Gal and Ghahramani 2016): a network, run with random units dropped.

    Hidden units are dropped before each layer but the first. While training each row has units of its own dropped; a
    draw drops the same for all rows, so that it is one function. The penalty is the expected log prior of the weights
    that are left, and the noise is added to the predictions (their τ is its inverse square).

    Args:
        problem: Splits of a data set.
        dropout: Probability that a hidden unit is dropped.
        draws: Components of each mixture.
        seed: Seeds start, orders of the rows and dropped units.
        progress: Whether to show a progress bar (on a terminal).
        **options: Of training, those of `Training`.

    Raises:
        ValueError: If an option is out of range.
        TypeError: If an option is not known.
        FloatingPointError: If training diverged.
    """
    check_integer("draws", draws, 1)
    training = Training(dropout=dropout, **options)
    networks = train_networks(problem, training, seed=seed, progress=progress)
    mixtures = []
    for split, x in enumerate(problem.x_test):
        generator = make_generator(x.device, seed, 10, split)
        masks = [mask[0].unsqueeze(1) for mask in dropout_masks_of(problem, [generator], draws, dropout)]
        own = networks[split : split + 1]
        means = own.repeated(draws).forward(x.expand(draws, -1, -1), masks)
        mixtures.append(Mixture(means, own.noise))
    return mixtures


def last_layer_laplace(
    problem: Problem,
    *,
    optimize_prior: bool = True,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> list[Mixture]:
    """A MAP network with a Laplace approximation of its last layer's posterior (Daxberger et al. 2021).

    By laplace-torch, with the full Hessian of the last layer. The likelihood is normal, so that this is Bayesian
    linear regression on the features. Needs laplace-torch (extra `study`), which imports torchvision where that is
    installed: it must then be of the same build as torch (one for CUDA beside a torch for CPU stops the import).

    Args:
        problem: Splits of a data set.
        optimize_prior: Whether the precision of the last layer's prior maximises the marginal likelihood (one number a
            network), or is that of the MAP estimate.
        seed: Seeds start and orders of the rows.
        progress: Whether to show a progress bar (on a terminal).
        **options: Of training, those of `Training`.

    Returns:
        One normal for each row and target, of the posterior's variance and the noise's.

    Raises:
        ValueError: If an option is out of range.
        TypeError: If an option is not known.
        ImportError: If laplace-torch cannot be imported.
        FloatingPointError: If training diverged.
    """
    check_bool("optimize_prior", optimize_prior)
    laplace = _laplace()
    training = Training(**options)
    networks = train_networks(problem, training, seed=seed, progress=progress)
    mixtures = []
    for split in range(problem.num_splits):
        # In double precision, since the Hessian is inverted.
        net = _double_mlp(problem)
        net.load_state_dict(networks.state_dict(split))
        x, y = problem.x[split].double(), problem.y[split].double()
        fan_in, targets = problem.widths[-2:]
        scales = [training.weight_scale(fan_in)] * (fan_in * targets) + [training.prior_scale] * targets
        posterior = laplace(
            net,
            "regression",
            subset_of_weights="last_layer",
            hessian_structure="full",
            sigma_noise=networks.noise[split].item(),
            prior_precision=x.new_tensor(scales) ** -2,
        )
        rows = torch.utils.data.TensorDataset(x, y)
        # A generator of its own, since a loader draws from the global one.
        posterior.fit(torch.utils.data.DataLoader(rows, batch_size=len(x), generator=torch.Generator()))
        if optimize_prior:
            posterior.prior_precision = 1.0
            posterior.optimize_prior_precision(pred_type="glm", method="marglik", prior_structure="scalar", n_steps=300)
        mean, covariance = posterior(problem.x_test[split].double())
        scale = (covariance.diagonal(dim1=-2, dim2=-1) + networks.noise[split].double() ** 2).sqrt()
        mixtures.append(Mixture(*(part.detach().unsqueeze(0).to(problem.x) for part in (mean, scale))))
    return mixtures


def nuts(
    problem: Problem,
    *,
    num_warmup: int = 100,
    num_samples: int = 100,
    max_tree_depth: int = 8,
    num_chains: int = 1,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> list[Mixture]:
    """Short chains of NUTS from MAP estimates, in float64, one split after another.

    What this is worth: a few hundred draws do not travel between the symmetric modes of a network, nor cover one in all
    directions, so this is the posterior near a MAP estimate rather than the whole. On one split of energy (492 rows,
    8-50-50-2, the defaults) no draw diverged, of predictions the split R-hat within the chain had median 1.01 and 90 %
    quantile 1.14, and 100 draws counted for about 30. It took 73 s of one core, about what trajectories as long as
    `max_tree_depth` allows would take (1.4 ms a step). The time grows with rows, draws and 2^max_tree_depth.

    Args:
        problem: Splits of a data set.
        num_warmup: Draws before, in which step size and mass matrix adapt.
        num_samples: Draws of each chain.
        max_tree_depth: Trajectories have at most 2 to this power leapfrog steps.
        num_chains: Number of chains, each from a MAP estimate of its own.
        seed: Seeds MAP estimates and chains.
        progress: Whether to show progress bars (on a terminal).
        **options: Of training, those of `Training`. The posterior has its noise (a learned one is held where the MAP
            estimate of the first chain left it) and its prior.

    Returns:
        For each split a mixture with a component for each draw.

    Raises:
        ValueError: If an option is out of range.
        TypeError: If an option is not known.
        FloatingPointError: If training diverged.
    """
    training = Training(**options)
    for name, value, least in [
        ("num_warmup", num_warmup, 0),
        ("num_samples", num_samples, 4),
        ("max_tree_depth", max_tree_depth, 1),
        ("num_chains", num_chains, 1),
    ]:
        check_integer(name, value, least)
    networks = train_networks(problem, training, members=num_chains, seed=seed, progress=progress)
    mixtures = []
    for split in range(problem.num_splits):
        own = networks[split * num_chains : (split + 1) * num_chains]
        noise = own.noise[0].item()
        bnn = BNN(
            _double_mlp(problem),
            scheme=Unmasked(),
            values=Zero(),
            likelihood=Gaussian(noise),
            prior_scale=training.prior_scale,
            scale_by_fan_in=training.scale_by_fan_in,
        )
        states = [own.state_dict(chain) for chain in range(num_chains)]
        starts = {name: torch.stack([state[name].double().flatten() for state in states]) for name in states[0]}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "NUTS on", RuntimeWarning)  # of many weights: the docstring says it
            chains = sample(
                bnn,
                problem.x[split],
                problem.y[split],
                num_samples=num_samples,
                warmup=num_warmup,
                chains=num_chains,
                kernel="nuts",
                starts=starts,
                standardize=False,
                max_tree_depth=max_tree_depth,
                seed=make_generator("cpu", seed, 11, split).initial_seed(),
                progress=progress,
            )
        drawn = {name: weight.flatten(0, 1).to(problem.x) for name, weight in chains.weights().items()}
        layers = range(len(problem.widths) - 1)
        posterior = Networks(
            [drawn[f"{2 * layer}.weight"].mT for layer in layers],
            [drawn[f"{2 * layer}.bias"].unsqueeze(1) for layer in layers],
            problem.x.new_full((1, 1, 1), noise),
        )
        means = posterior.forward(problem.x_test[split].expand(num_chains * num_samples, -1, -1))
        mixtures.append(Mixture(means, posterior.noise))
    return mixtures


def _double_mlp(problem: Problem) -> torch.nn.Module:
    """A network in double precision, of arbitrary weights."""
    with torch.random.fork_rng([]):  # layers draw their weights from the global generator
        return mlp(problem.widths, dtype=torch.float64).to(problem.x.device)


def _laplace() -> Any:
    try:
        from laplace import Laplace
    except Exception as error:  # a torchvision of another build raises RuntimeError
        raise ImportError(
            f"last_layer_laplace needs laplace-torch (pip install 'pyro-sps[study]'), whose import failed: {error}; "
            "if that is torchvision's doing, install the one for your build of torch or none at all"
        ) from error
    return Laplace
