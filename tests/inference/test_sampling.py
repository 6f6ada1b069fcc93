"""Chains against exact posteriors, against NUTS, and on data of every kind."""

import functools
import pickle
import random
import warnings

import arviz as az
import numpy as np
import pyro
import pytest
import torch
from grids import few_of
from torch import nn

import pyro_sps as sps
from pyro_sps.inference.sample_settings import WARMUP, SampleSettings
from pyro_sps.inference.warmup import stands_apart

draw = functools.partial(sps.sample, standardize=False, progress=False)

QUICK = {"chains": 3, "num_samples": 4, "thinning": 2, "warmup": 20, "map_steps": 20}


def regression(rows=12, features=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    return x, x.sum(1, keepdim=True).sin()


def small(features=2, **options):
    net = sps.mlp([features, 3, 1], dtype=options.pop("dtype", torch.float64))
    return sps.BNN(net, **{"scheme": sps.Unmasked(), "values": sps.Zero()} | options)


@pytest.fixture(scope="module")
def linear():
    """A linear Gaussian model with half of its weights fixed, and its exact posterior."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    y = x @ weight + 0.6 * torch.randn(30, 1, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[True, False] * 3])
    given = torch.tensor([[0.0, 0.5, 0.0, -1.0, 0.0, 0.0]], dtype=torch.float64)
    bnn = sps.BNN(
        nn.Linear(6, 1).double(),
        scheme={"weight": mask},
        values=sps.Given({"weight": given}),
        likelihood=sps.Gaussian(0.6),
        prior_scale=1.0,
    )
    design = torch.cat([x[:, mask[0]], torch.ones(30, 1, dtype=torch.float64)], 1)
    precision = design.T @ design / 0.36 + torch.eye(4, dtype=torch.float64)
    mean = torch.linalg.solve(precision, design.T @ (y[:, 0] - x @ given[0]) / 0.36)
    return bnn, x, y, mean, torch.linalg.inv(precision)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"kernel": "mams", "warmup": 300, "num_samples": 200, "thinning": 1}, marks=pytest.mark.slow),
        {"energy_error": 1e-5, "warmup": 1000, "num_samples": 300, "thinning": 10},
        {"starts": "map", "energy_error": 1e-5, "warmup": 1000, "num_samples": 300, "thinning": 10},
    ],
    ids=["mams", "mclmc", "from map"],
)
def test_linear_posteriors_are_exact(linear, options):
    """Means and covariances within four standard errors; of the covariances the bias of ε comes on top."""
    bnn, x, y, mean, covariance = linear
    samples = draw(bnn, x, y, **{"chains": 4, "starts": "prior", "map_steps": 200} | options)
    draws = torch.cat([samples.samples["weight"], samples.samples["bias"]], -1)
    assert samples.restarted == []
    # E[Δ²] per direction is about h⁶/32 for a leapfrog step h of a harmonic force, and the bias of variances h²/12.
    bias = 0.0 if samples.kernel == "mams" else (32 * 1e-5) ** (1 / 3) / 12
    for i in range(4):
        error = draws[..., i] - mean[i]
        assert abs(error.mean()) < 4 * az.mcse(draws[..., i].numpy())
        for j in range(i + 1):
            product = error * (draws[..., j] - mean[j])
            allowed = 4 * az.mcse(product.numpy()) + 2 * bias * (covariance[i, i] * covariance[j, j]).sqrt()
            assert abs(product.mean() - covariance[i, j]) < allowed
    assert (samples.weights()["weight"][..., 0, 1] == 0.5).all()
    assert (samples.weights()["weight"][..., 0, 3] == -1.0).all()


def test_large_steps_bias_unadjusted_chains_and_not_adjusted_ones(linear):
    bnn, x, y, _, covariance = linear
    options = {"chains": 6, "starts": "prior", "warmup": 600, "num_samples": 200}
    rough = draw(bnn, x, y, energy_error=0.15, thinning=5, **options)
    exact = draw(bnn, x, y, kernel="mams", target_accept=0.5, thinning=1, **options)
    trace = covariance.diagonal().sum()
    spread = []
    for one in (rough, exact):
        draws = torch.cat([one.samples["weight"], one.samples["bias"]], -1)
        chains = (draws - draws.mean((0, 1))).square().sum(-1).mean(1)
        spread.append(((chains.mean() / trace).item(), (chains.std() / trace / 6**0.5).item()))
    assert spread[0][0] > 1 + 4 * spread[0][1]
    assert abs(spread[1][0] - 1) < 4 * spread[1][1]


@pytest.mark.slow
def test_a_single_weight_can_be_sampled():
    """Microcanonical dynamics needs more dimensions, which are added."""
    x = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(1)
    net = nn.Linear(1, 1, bias=False).double()
    bnn = sps.BNN(net, scheme=sps.Unmasked(), values=sps.Zero(), likelihood=sps.Gaussian(0.5), prior_scale=1.0)
    samples = draw(bnn, x, x, chains=4, starts="prior", kernel="mams", num_samples=300, thinning=1, warmup=200)
    precision = (x.square().sum() / 0.25 + 1).item()
    draws = samples.samples["weight"][..., 0]
    assert draws.shape == (4, 300)
    assert abs(draws.mean() - (1 - 1 / precision)) < 4 * az.mcse(draws.numpy())
    squares = (draws - draws.mean()).square()
    assert abs(squares.mean() - 1 / precision) < 4 * az.mcse(squares.numpy())


@pytest.mark.slow
def test_a_small_network_predicts_as_under_nuts():
    """In function space, noise sampled with the weights."""
    generator = torch.Generator().manual_seed(1)
    x = torch.linspace(-2, 2, 24, dtype=torch.float64).unsqueeze(1)
    y = (1.5 * x).sin() + 0.2 * torch.randn(24, 1, generator=generator, dtype=torch.float64)
    net = sps.mlp([1, 4, 1], dtype=torch.float64)
    bnn = sps.BNN(net, sps.Unmasked(), sps.Zero(), likelihood=sps.Gaussian(0.3, learn=True))
    grid = torch.linspace(-2.5, 2.5, 9, dtype=torch.float64).unsqueeze(1)
    nuts = draw(bnn, x, y, kernel="nuts", chains=3, num_samples=120, warmup=120, max_tree_depth=5, map_steps=300)
    ours = [
        draw(bnn, x, y, chains=8, num_samples=150, thinning=20, warmup=1500, energy_error=1e-3, map_steps=300),
        draw(bnn, x, y, kernel="mams", chains=8, num_samples=120, thinning=1, warmup=200, map_steps=300),
    ]
    expected = functions(nuts, grid)
    noise = nuts.samples["likelihood.log_scale"].exp()
    for one in ours:
        found = functions(one, grid)
        for point in range(len(grid)):
            errors = [az.mcse(values[..., point].numpy()) for values in (expected, found)]
            assert abs(expected[..., point].mean() - found[..., point].mean()) < 5 * np.hypot(*errors)
        own = one.samples["likelihood.log_scale"].exp()
        error = np.hypot(az.mcse(noise[..., 0].numpy()), az.mcse(own[..., 0].numpy()))
        assert abs(own.mean() - noise.mean()) < 5 * error + 0.02 * noise.mean()


def functions(samples, x):
    """Values of the network at inputs, shape (chains, draws, rows)."""
    with torch.no_grad():
        return samples.bnn.function(samples.weights(), x)[..., 0]


@pytest.mark.slow
def test_simulation_based_calibration():
    """Ranks of true weights among draws are uniform (Talts et al. 2018), at a level of 0.1 % for all quantities.

    20 data sets from the prior; for each of 5 quantities a χ² test of 4 bins, whose 99.98 % quantile is 19.7. Chains
    start at the truth, which is a draw of the posterior.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(15, 2, generator=generator, dtype=torch.float64)
    bnn = sps.BNN(
        sps.mlp([2, 2, 1], dtype=torch.float64), sps.Unmasked(), sps.Zero(), sps.Gaussian(0.5), prior_scale=1.0
    )
    ranks = []
    for index in range(20):
        truth = {
            weight.name: torch.randn(weight.num_free, generator=generator, dtype=torch.float64)
            for weight in bnn.weights
        }
        with torch.no_grad():
            outputs = bnn.function(bnn.assemble(truth), x)
        y = outputs + 0.5 * torch.randn(15, 1, generator=generator, dtype=torch.float64)
        samples = draw(
            bnn,
            x,
            y,
            kernel="mams",
            chains=1,
            starts={name: value.unsqueeze(0) for name, value in truth.items()},
            num_samples=15,
            thinning=1,
            warmup=20,
            seed=index,
        )
        drawn = functions(samples, x)[0, :, :3]
        # Of what no symmetry of the network changes: functions, the output's bias, the squared norm.
        norm = sum(value[0].square().sum(-1) for value in samples.samples.values())
        own = torch.cat([outputs[:3, 0], truth["2.bias"], sum(v.square().sum() for v in truth.values()).reshape(1)])
        every = torch.cat([drawn, samples.samples["2.bias"][0], norm.unsqueeze(1)], 1)
        ranks.append((every < own).sum(0))
    counts = torch.stack(ranks) // 4  # of 0 ... 15, in 4 bins
    for quantity in counts.T:
        observed = torch.bincount(quantity, minlength=4).double()
        assert ((observed - 5).square() / 5).sum() < 19.7


def test_seeds_chains_and_traces():
    x, y = regression()
    bnn = small()
    before = {name: value.clone() for name, value in bnn.state_dict().items()}
    pyro.clear_param_store()
    pyro.param("mine", torch.tensor(1.0))
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    one, two = (draw(bnn, x, y, seed=3, **QUICK) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert list(pyro.get_param_store().keys()) == ["mine"]
    pyro.clear_param_store()
    assert all(torch.equal(value, before[name]) for name, value in bnn.state_dict().items())
    assert not bnn.likelihood.sampled
    other = draw(bnn, x, y, seed=4, **QUICK)
    for name, value in one.samples.items():
        assert torch.equal(value, two.samples[name])
        assert not torch.equal(value, other.samples[name])
        assert not torch.equal(value[0], value[1])


@pytest.mark.parametrize("kernel", ["mclmc", "mams"])
def test_thinning_picks_draws(kernel):
    x, y = regression()
    dense = draw(small(), x, y, kernel=kernel, **QUICK | {"thinning": 1, "num_samples": 8})
    sparse = draw(small(), x, y, kernel=kernel, **QUICK)
    again = dense.thinned(2)
    assert again.num_samples == 4
    for name, value in sparse.samples.items():
        torch.testing.assert_close(value, dense.samples[name][:, 1::2])
        torch.testing.assert_close(value, again.samples[name])
    torch.testing.assert_close(sparse.energies, again.energies)


@pytest.mark.parametrize("kernel", ["mclmc", "mams"])
def test_energies_are_those_of_the_model(kernel):
    """Minus the log joint density: log prior and log likelihood of each draw, which ArviZ is told too."""
    x, y = regression()
    samples = draw(small(likelihood=sps.Gaussian(0.4)), x, y, kernel=kernel, **QUICK)
    data = samples.to_arviz(groups=("posterior", "sample_stats"))
    np.testing.assert_allclose(-data.sample_stats["lp"].values, samples.energies.numpy(), rtol=1e-10)
    assert data.posterior["w"].shape == (3, 4, 13)
    assert data.posterior.attrs["method"] == kernel.upper()


def odd_tables():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "five rows": (normal(5, 2), normal(5, 1), sps.Gaussian(0.1, learn=True)),
        "one row": (normal(1, 2), normal(1, 1), sps.Gaussian(0.1, learn=True)),
        "constant targets": (normal(20, 2), torch.ones(20, 1).double(), sps.Gaussian(0.1, learn=True)),
        "one feature": (normal(20, 1), normal(20, 1), sps.HeteroscedasticGaussian()),
        "200 features": (normal(20, 200), normal(20, 1), sps.StudentT(learn=True)),
        "heavy tails": (normal(30, 2), normal(30, 1) / normal(30, 1).abs() ** 3, sps.StudentT(df=None, learn=True)),
        "one class": (normal(20, 2), torch.zeros(20, dtype=torch.int64), sps.Categorical()),
        "yes and no": (normal(20, 2), (normal(20, 1) > 0).double(), sps.Bernoulli()),
        "counts": (normal(20, 2), normal(20, 1).abs().round(), sps.Poisson()),
    }


@pytest.mark.parametrize("table", few_of(odd_tables(), "one row", "200 features", "heavy tails", "one class"))
def test_odd_tables_give_numbers(table):
    x, y, likelihood = odd_tables()[table]
    outputs = {"one feature": 2, "one class": 3}.get(table, 1)
    net = sps.mlp([x.shape[1], 4, outputs], skip=True, dtype=torch.float32)
    bnn = sps.BNN(net, sps.Unmasked(), sps.Zero(), likelihood=likelihood, prior=sps.Hierarchical())
    options = QUICK | {"warmup": 200, "map_steps": 100, "num_samples": 10, "thinning": 5}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of chains that stand apart, after so few steps
        samples = draw(bnn, x, y, standardize=True, **options)
    assert all(value.isfinite().all() for value in samples.samples.values())
    assert samples.energies.isfinite().all()
    assert np.isfinite(samples.predict(x).lpp(y))
    assert all(0 < step < np.inf for step in samples.tuning["step_size"])


def test_only_free_entries_move():
    x, y = regression()
    masked = draw(small(scheme=sps.Random(0.5), values=sps.Constant(0.7)), x, y, **QUICK)
    assert sum(value.shape[-1] for name, value in masked.samples.items() if "likelihood" not in name) == (
        masked.bnn.num_stochastic
    )
    for weight in masked.bnn.weights:
        full = masked.weights()[weight.name]
        assert (full[..., ~weight.mask].abs() == 0.7).all()


def test_predictions_use_all_chains_alike():
    x, y = regression()
    samples = draw(small(), x, y, **QUICK)
    every = functions(samples, x)
    torch.testing.assert_close(samples.predict(x).mean[:, 0], every.mean((0, 1)))
    three = samples.member(3).sites["0.bias"]
    torch.testing.assert_close(three, samples.samples["0.bias"][:, -1])
    twice = samples.predict(x, num_samples=24)
    torch.testing.assert_close(twice.mean, samples.predict(x).mean)
    one = samples.chain(1)
    torch.testing.assert_close(one.predict(x).mean[:, 0], every[1].mean(0))
    noise = samples.samples["likelihood.log_scale"].exp()
    expected = (noise.square().mean() + every.var((0, 1), unbiased=False)).sqrt()
    torch.testing.assert_close(samples.predict(x).std[:, 0], expected)


def test_starts_are_where_they_are_said_to_be():
    x, y = regression(rows=30)
    bnn = small(likelihood=sps.Gaussian(0.2, learn=True))
    still = QUICK | {"warmup": 0, "num_samples": 1, "thinning": 1}
    fits = sps.fit(bnn, x, y, num_steps=200, replicas=2, standardize=False, progress=False)
    first = draw(bnn, x, y, **still | {"starts": fits, "chains": 2})
    for chain, fit in enumerate(fits):
        for site in fit.guide.sites:
            assert (first.samples[site.name][chain, 0] - site.view(fit.guide.loc)).abs().max() < 1.0
        noise = fit.bnn.likelihood.noise_scale.log().item()
        assert first.samples["likelihood.log_scale"][chain, 0].item() == pytest.approx(noise, abs=0.1)
    more = draw(bnn, x, y, **still | {"starts": first})
    assert more.num_chains == 3
    for name, value in more.samples.items():
        torch.testing.assert_close(value[2, 0], first.samples[name][0, 0], rtol=0, atol=0.2)


def test_starts_of_other_units_are_refused():
    x, y = regression(rows=30)
    fit = sps.fit(small(), 3 * x, y, num_steps=5, progress=False)
    with pytest.raises(ValueError, match="starts were standardised otherwise"):
        draw(small(), x, y, **QUICK | {"starts": fit})


def test_map_starts_predict_rows_that_were_held_out():
    """Better than random networks do, each chain on its own."""
    x, y = regression(rows=60)
    bnn = small(likelihood=sps.Gaussian(0.2, learn=True))
    still = QUICK | {"warmup": 0, "num_samples": 1, "thinning": 1, "map_steps": 400}
    start = draw(bnn, x, y, **still)
    errors = (functions(start, x) - y[:, 0]).square().mean(-1)
    assert (errors < 0.3 * y.var()).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "hmc"}, "kernel must be one of 'mclmc', 'mams', 'nuts', got 'hmc'"),
        ({"chains": 0}, "chains must be a positive integer, got 0"),
        ({"num_samples": True}, "num_samples must be a positive integer, got True"),
        ({"thinning": 0}, "thinning must be a positive integer, got 0"),
        ({"warmup": -1}, "warmup must be a non-negative integer, got -1"),
        ({"energy_error": 0.0}, "energy_error must be a positive finite number"),
        ({"starts": "fit"}, "starts must be 'map', 'prior', fits, samples or values by site, got 'fit'"),
        ({"target_accept": 0.8}, "target_accept is of no use with kernel='mclmc', only with mams and nuts"),
        ({"kernel": "mams", "batch_size": 4}, "batch_size is of no use with kernel='mams', only with mclmc"),
        ({"kernel": "nuts", "time_limit": 1.0}, "time_limit is of no use with kernel='nuts'"),
        ({"time_limit": -1}, "time_limit must be a positive finite number"),
        ({"checkpoint": 3}, "checkpoint must be a directory, got 3"),
        ({"seed": -1}, "seed must be"),
        ({"x": torch.zeros(3, 5)}, "x must have 2 features"),
    ],
)
def test_bad_arguments(options, message):
    x, y = regression()
    with pytest.raises(ValueError, match=message):
        draw(small(), **{"x": x, "y": y, **QUICK} | options)


def test_bad_models():
    x, y = regression()
    with pytest.raises(TypeError, match=r"bnn must be a pyro_sps\.BNN, got Sequential"):
        draw(sps.mlp([2, 3, 1]), x, y)
    with pytest.raises(TypeError, match=r"starts must be .* got int"):
        draw(small(), x, y, starts=3)
    with pytest.raises(ValueError, match="must be of dtype float32 or float64 to be sampled"):
        draw(small(dtype=torch.bfloat16), x, y)
    with pytest.raises(MemoryError, match=r"GiB, and there are .*; lower num_samples and raise thinning"):
        draw(small(), x, y, **QUICK | {"num_samples": 10**12})


def test_callbacks_time_limits_and_interruption():
    x, y = regression()
    seen = []
    draw(small(), x, y, callbacks=[lambda step, energies: seen.append((step, energies.shape))], **QUICK)
    assert seen == [(step, (3,)) for step in range(28)]
    stopped = draw(small(), x, y, callbacks=[lambda step, _: step == 24], **QUICK)
    assert stopped.num_samples == 2
    assert stopped.stopped == "a callback stopped it after step 25"
    with pytest.raises(RuntimeError, match="no draw yet: a callback stopped it after step 3"):
        draw(small(), x, y, callbacks=[lambda step, _: step == 2], **QUICK)
    with pytest.warns(RuntimeWarning, match="the time limit leaves .* steps for the warm-up"):
        limited = draw(small(), x, y, time_limit=1e-3, compile=False, **QUICK | {"warmup": 10**6, "num_samples": 10**4})
    assert 1 <= limited.num_samples < 10**4
    assert "time limit" in limited.stopped


def test_the_warmup_goes_on_while_energies_fall(monkeypatch, tmp_path):
    """Far from the posterior it becomes twice as long; at stationarity, or where a length is asked for, it does not."""
    monkeypatch.setitem(WARMUP, "mclmc", 80)
    x, y = regression()
    options = {"chains": 5, "num_samples": 3, "thinning": 2, "compile": False}
    at_rest = draw(small(), x, y, warmup=400, map_steps=200, **options)
    assert draw(small(), x, y, starts=at_rest, **options).settings["warmup"] == 80
    away = {name: value[:, -1] + 300.0 for name, value in at_rest.samples.items()}
    whole = draw(small(), x, y, starts=away, **options)
    assert whole.settings["warmup"] == 160
    assert draw(small(), x, y, starts=away, warmup=80, **options).settings["warmup"] == 80

    def fail(now, _):
        if now == 130:
            raise RuntimeError("the machine is gone")

    with pytest.raises(RuntimeError, match="the machine is gone"):
        draw(small(), x, y, starts=away, checkpoint=tmp_path, checkpoint_every=10, callbacks=[fail], **options)
    again = sps.resume(tmp_path, small(), x, y, progress=False)
    assert again.settings["warmup"] == 160
    assert all(torch.equal(value, whole.samples[name]) for name, value in again.samples.items())


def test_ctrl_c_returns_the_draws_so_far():
    import signal

    x, y = regression()

    def press(step, _):
        if step == 23:
            signal.raise_signal(signal.SIGINT)

    samples = draw(small(), x, y, callbacks=[press], **QUICK)
    assert samples.stopped == "interrupted after step 24"
    assert samples.num_samples == 2
    whole = draw(small(), x, y, **QUICK)
    assert all(torch.equal(value, whole.samples[name][:, :2]) for name, value in samples.samples.items())


def test_chains_that_stand_apart_are_told():
    energies = torch.tensor([10.0, 11.0, 9.0, 500.0])
    assert stands_apart(energies, 1.0).tolist() == [False, False, False, True]
    assert not stands_apart(energies[:2], 1.0).any()
    assert not stands_apart(-energies, 1.0).any()  # below is no fault


def test_samples_can_be_pickled():
    x, y = regression()
    samples = draw(small(), x, y, **QUICK)
    again = pickle.loads(pickle.dumps(samples))
    torch.testing.assert_close(again.predict(x).mean, samples.predict(x).mean)


def test_minibatches_are_told_and_near_the_posterior():
    """Means and variances of a linear model within a quarter; with steps as on all rows, variances were doubled."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 8, generator=generator, dtype=torch.float64)
    y = x.sum(1, keepdim=True) + 0.6 * torch.randn(200, 1, generator=generator, dtype=torch.float64)
    bnn = sps.BNN(nn.Linear(8, 1, bias=False).double(), sps.Unmasked(), likelihood=sps.Gaussian(0.6), prior_scale=1.0)
    covariance = torch.linalg.inv(x.T @ x / 0.36 + torch.eye(8, dtype=torch.float64))
    mean, spread = covariance @ x.T @ y[:, 0] / 0.36, covariance.diagonal().sqrt()
    options = {"chains": 4, "starts": "prior", "warmup": 400, "num_samples": 100, "thinning": 10}
    noisy = draw(bnn, x, y, batch_size=50, energy_error=1e-3, **options)
    assert "minibatches" in noisy.approximate
    assert max(noisy.tuning["step_size"]) < min(noisy.tuning["largest_step"])
    error = (noisy.samples["weight"] - mean) / spread
    assert (error.mean((0, 1)).abs() < 0.25).all()
    assert abs(error.square().mean() - 1) < 0.25


def test_settings_tell_what_was_left_open():
    told = SampleSettings(kernel="mams", num_samples=7).to_dict()
    assert (told["warmup"], told["thinning"], told["num_samples"]) == (400, 4, 7)


# --- checkpoints -----------------------------------------------------------------------------------


def interrupted(directory, step, kernel="mclmc"):
    """Chains that were stopped by an error of the user's after so many steps, and what they would have given."""
    x, y = regression()
    options = QUICK | {"kernel": kernel, "checkpoint": directory, "checkpoint_every": 5}

    def fail(now, _):
        if now == step:
            raise RuntimeError("the machine is gone")

    with pytest.raises(RuntimeError, match="the machine is gone"):
        draw(small(), x, y, callbacks=[fail], **options)
    return x, y, draw(small(), x, y, **QUICK | {"kernel": kernel})


BREAKS = [(kernel, step) for kernel in ("mclmc", "mams") for step in (8, 25)]  # in the warm-up, and after it


@pytest.mark.parametrize("when", few_of(BREAKS, ("mclmc", 8), ("mams", 25)), ids=lambda when: f"{when[0]} at {when[1]}")
def test_resumed_chains_are_those_without_a_break(tmp_path, when):
    kernel, step = when
    x, y, whole = interrupted(tmp_path, step, kernel)
    again = sps.resume(tmp_path, small(), x, y, progress=False)
    assert all(torch.equal(value, whole.samples[name]) for name, value in again.samples.items())
    assert torch.equal(again.energies, whole.energies)
    assert again.tuning == whole.tuning
    ended = sps.resume(tmp_path, small(), x, y, progress=False)
    assert all(torch.equal(value, whole.samples[name]) for name, value in ended.samples.items())


def test_chains_that_ended_can_be_drawn_on(tmp_path):
    x, y = regression()
    draw(small(), x, y, checkpoint=tmp_path, **QUICK)
    more = sps.resume(tmp_path, small(), x, y, num_samples=7, progress=False)
    whole = draw(small(), x, y, **QUICK | {"num_samples": 7})
    assert all(torch.equal(value, whole.samples[name]) for name, value in more.samples.items())
    with pytest.raises(ValueError, match="num_samples must be at least the 7 of before, got 5"):
        sps.resume(tmp_path, small(), x, y, num_samples=5)
    with pytest.raises(ValueError, match="validation is of no use here"):
        sps.resume(tmp_path, small(), x, y, validation=(x, y))


def test_checkpoints_of_others_are_refused(tmp_path):
    x, y, _ = interrupted(tmp_path, 8)
    with pytest.raises(FileExistsError, match="holds the checkpoint"):
        draw(small(), x, y, checkpoint=tmp_path, **QUICK)
    with pytest.raises(sps.LoadError, match="x and y are not what"):
        sps.resume(tmp_path, small(), x + 1, y)
    with pytest.raises(sps.LoadError, match="whose priors differ"):
        sps.resume(tmp_path, small(prior_scale=3.0), x, y)
    sps.fit(small(), x, y, num_steps=5, checkpoint=tmp_path / "fit", progress=False)
    with pytest.raises(ValueError, match="num_samples is of no use here"):
        sps.resume(tmp_path / "fit", small(), x, y, num_samples=5)
    content = (tmp_path / "checkpoint.safetensors").read_bytes()
    (tmp_path / "checkpoint.safetensors").write_bytes(content[:-9] + b"123456789")
    with pytest.raises(sps.LoadError, match="damaged"):
        sps.resume(tmp_path, small(), x, y)


def test_a_learned_c_that_is_held_is_told():
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(-1, 1)
    bnn = sps.BNN(sps.mlp([1, 3, 1], dtype=torch.float64), sps.Rigid(), sps.Constant(0.7, learn=True))
    with pytest.warns(UserWarning, match=r"the learned c of the fixed values is not sampled: it is held at 0\.7"):
        sps.sample(bnn, x, x, chains=2, num_samples=2, thinning=1, warmup=5, map_steps=2, progress=False)
