"""Conversion to ArviZ against direct computation and against Pyro."""

import json
import warnings

import numpy as np
import pytest
import scipy.stats
import torch
from network.networks import build, example
from pyro import poutine
from pyro.infer import MCMC, NUTS

import pyro_sps as sps
from pyro_sps.data.arrays import Standardizer
from pyro_sps.diagnostics.convert import GROUPS
from pyro_sps.diagnostics.generations import has_data_tree

arviz = pytest.importorskip("arviz")
DRAWS, ROWS = 60, 15


@pytest.fixture(scope="module")
def fits():
    x = torch.linspace(-2, 2, ROWS, dtype=torch.float64).unsqueeze(1) * 3 + 7
    y = torch.cat([x.sin(), x.cos()], 1) * 5 + 20
    likelihood = sps.Gaussian(0.2, learn=True, per_output=2)
    net, values = sps.mlp([1, 4, 4, 2], dtype=torch.float64), sps.Constant(1.0, learn=True)
    bnn = sps.BNN(net, sps.Heavy(), values, likelihood, prior_scale=1.0)
    fits = sps.fit(bnn, x, y, num_steps=60, standardize=True, progress=False, num_particles=4, replicas=2)
    return fits, x.numpy(), y.numpy()


@pytest.fixture(scope="module")
def data(fits):
    return fits[0].to_arviz(DRAWS)


@pytest.fixture(scope="module")
def tensors(fits):
    return sps.to_arviz(list(fits[0]), DRAWS, layout="tensors", groups=["posterior", "prior"])


def outputs(tensors, group, fit, chain, x):
    """The network by hand, in original units: (draws, rows, targets)."""
    weights = {name: tensors[group][name].values[chain] for name in ("0", "2", "4") for name in (f"{name}.weight",)}
    biases = {name: tensors[group][f"{name}.bias"].values[chain][:, None, :] for name in ("0", "2", "4")}
    own = {name: value.numpy() for name, value in vars(fit.standardizer).items()}
    hidden = np.broadcast_to((x - own["x_mean"]) / own["x_scale"], (DRAWS, *x.shape))
    for name in ("0", "2", "4"):
        hidden = hidden @ weights[f"{name}.weight"].swapaxes(1, 2) + biases[name]
        hidden = np.tanh(hidden) if name != "4" else hidden
    return hidden * own["y_scale"] + own["y_mean"]


@pytest.mark.parametrize("name", ["conv, flatten", "transposed", "lstm", "small gpt", "weight norm, convolutions"])
def test_tensors_whose_axes_do_not_count_units_one_by_one(name, tmp_path):
    net, x = build(name), example(name, 6)
    bnn = sps.BNN(net, sps.Random(like=0.4), sps.Zero(), example=x)
    fit = sps.fit(bnn, x, torch.randn(6, bnn.num_outputs, dtype=torch.float64), num_steps=3, progress=False)
    data = fit.to_arviz(5, layout="tensors")
    data.to_netcdf(str(tmp_path / "fit.nc"))
    for weight in bnn.weights:
        assert data.posterior[weight.name].shape == (1, 5, *weight.mask.shape)
        if weight.num_free < weight.mask.numel():
            assert np.array_equal(data.constant_data[f"{weight.name}.mask"].values, weight.mask.numpy())


def test_labels_name_the_entries_of_the_tensors(data, tensors):
    labels = data.posterior["weight"].values.tolist()
    # The second layer's ranks count from the bottom: unit 2, of rank 1, has lost its connection from unit 3, of rank 0.
    assert "2.weight[3, 2]" in labels
    assert "2.weight[2, 3]" not in labels
    assert len(set(labels)) == len(labels) == data.posterior.sizes["weight"]
    for group in ("posterior", "prior"):
        for label in labels:
            name, entry = label[:-1].split("[")
            index = tuple(map(int, entry.split(", ")))
            np.testing.assert_array_equal(
                data[group]["w"].sel(weight=label).values, tensors[group][name].values[(..., *index)]
            )


def test_tensors_have_layers_as_dimensions_and_constants(data, tensors):
    weight = tensors.posterior["2.weight"]
    assert weight.dims == ("chain", "draw", "layer_2", "layer_1")
    assert tensors.posterior["4.bias"].dims == ("chain", "draw", "output")
    mask = data.constant_data["2.weight.mask"].values
    fixed = data.constant_data["2.weight.fixed"].values
    assert (~mask).sum() == 6
    for chain in range(2):
        assert (weight.values[chain][:, ~mask] == fixed[chain][~mask]).all()
        np.testing.assert_allclose(np.abs(fixed[chain][~mask]), data.constant_data["learned_c"].values[chain])
    assert (weight.values.std(1)[:, mask] > 0).all()


def test_learned_constants_of_layers_are_named():
    x = torch.linspace(-1, 1, 10).unsqueeze(1)
    bnn = sps.BNN(sps.mlp([1, 4, 4, 2]), sps.Heavy(), sps.Constant(1.0, learn=True, per_layer=True))
    fits = sps.fit(bnn, x, torch.cat([x, x**2], 1), num_steps=3, progress=False, replicas=2)
    constants = fits.to_arviz(3, groups=["posterior", "constant_data"]).constant_data
    learned = constants["learned_c"]
    assert learned.dims == ("chain", "fixed_tensor")
    assert learned["fixed_tensor"].values.tolist() == ["2.weight", "4.weight"]
    for chain, fit in enumerate(fits):
        for name in fit.bnn.scaled:
            fixed = fit.bnn.fixed[name][~fit.bnn.masks[name]].abs().numpy()
            np.testing.assert_allclose(fixed, learned.sel(chain=chain, fixed_tensor=name).item(), rtol=1e-6)


def test_log_likelihood_and_predictive_are_in_original_units(fits, data, tensors):
    fits, x, y = fits
    for chain, fit in enumerate(fits):
        mean = outputs(tensors, "posterior", fit, chain, x)
        noise = data.constant_data["noise_scale"].values[chain]
        np.testing.assert_allclose(noise, (fit.bnn.likelihood.noise_scale * fit.standardizer.y_scale).detach().numpy())
        logs = scipy.stats.norm.logpdf(y, mean, noise).sum(-1)
        np.testing.assert_allclose(data.log_likelihood["obs"].values[chain], logs, rtol=1e-7, atol=1e-7)
        residual = (data.posterior_predictive["obs"].values[chain] - mean) / noise
        assert abs(residual.mean()) < 4 / residual.size**0.5
        assert abs(residual.var() - 1) < 4 * (2 / residual.size) ** 0.5
        prior = outputs(tensors, "prior", fit, chain, x)
        residual = (data.prior_predictive["obs"].values[chain] - prior) / noise
        assert abs(residual.var() - 1) < 4 * (2 / residual.size) ** 0.5
    np.testing.assert_allclose(data.observed_data["obs"].values, y, rtol=1e-12)
    np.testing.assert_allclose(data.constant_data["x"].values, x, rtol=1e-12)


def test_sample_stats_are_log_densities(fits, data):
    fits, _, _ = fits
    for chain, fit in enumerate(fits):
        w = data.posterior["w"].values[chain]
        logs = data.log_likelihood["obs"].values[chain].sum(-1)
        lp, lq = (data.sample_stats[name].values[chain] for name in ("lp", "lq"))
        np.testing.assert_allclose(lp, scipy.stats.norm.logpdf(w).sum(-1) + logs)
        loc, scale = (value.detach().numpy() for value in fit.guide.parameters_of_sites())
        np.testing.assert_allclose(lq, scipy.stats.norm.logpdf(w, loc, scale).sum(-1))
        elbo = data.sample_stats["elbo"].values[chain]
        np.testing.assert_allclose(elbo, lp - lq)
        # The ELBO of the network's units, less the Jacobian of the scaling.
        expected = fit.elbo_draws(400) - ROWS * fit.standardizer.y_scale.log().sum()
        error = (elbo.var() / DRAWS + expected.var().item() / 400) ** 0.5
        assert abs(elbo.mean() - expected.mean().item()) < 4 * error


def test_prior_is_the_prior(fits):
    prior = fits[0].to_arviz(400, groups="prior").prior["w"].values
    assert abs(prior.mean()) < 4 / prior.size**0.5
    assert abs(prior.var() - 1) < 4 * (2 / prior.size) ** 0.5


def test_densities_of_ordered_biases_are_those_of_the_ordered_values():
    net = sps.mlp([1, 3, 1], dtype=torch.float64)
    bnn = sps.BNN(net, scheme=sps.Unmasked(), ordered_biases=True, prior_scale=1.0)
    x = torch.linspace(-1, 1, 5, dtype=torch.float64).unsqueeze(1)
    fit = sps.fit(bnn, x, x, num_steps=3, progress=False)
    data = fit.to_arviz(30)
    assert set(data.posterior.data_vars) == {"w"}
    w, names = data.posterior["w"].values[0], data.posterior["weight"].values
    bias = w[:, [name.startswith("0.bias") for name in names]]
    assert (np.diff(bias) > 0).all()
    logs = scipy.stats.norm.logpdf(w).sum(-1) + np.log(6) + data.log_likelihood["obs"].values[0].sum(-1)
    np.testing.assert_allclose(data.sample_stats["lp"].values[0], logs)
    # One draw's density under Pyro's own handlers.
    sites = {name: w[0, [n.startswith(name) for n in names]] for name in ("0.weight", "0.bias", "2.weight", "2.bias")}
    values = {name: torch.from_numpy(value) for name, value in sites.items()}
    trace = poutine.trace(poutine.condition(fit.guide, data=values)).get_trace(x, x)
    assert data.sample_stats["lq"].values[0, 0] == pytest.approx(trace.log_prob_sum().item(), rel=1e-6)


def test_attributes_say_how_it_was_made(fits, data):
    attrs = data.attrs
    assert attrs["scheme"] == "Heavy()"
    assert attrs["values"].startswith("Constant(")
    assert attrs["fit_seeds"] == [0, 1]
    assert json.loads(attrs["settings"])[1]["num_steps"] == 60
    assert attrs["symmetry"] == str(fits[0][0].bnn.symmetry())
    assert attrs["fixed_weights"] + data.posterior.sizes["weight"] == fits[0][0].bnn.topology.num_weights


@pytest.mark.parametrize("layout", ["flat", "tensors"])
def test_netcdf_round_trip(fits, layout, tmp_path):
    data = fits[0].to_arviz(10, layout=layout)
    data.to_netcdf(str(tmp_path / "fit.nc"))
    again = arviz.from_netcdf(str(tmp_path / "fit.nc"))
    for group in GROUPS:
        for name, variable in data[group].data_vars.items():
            assert again[group][name].dims == variable.dims
            np.testing.assert_array_equal(again[group][name].values, variable.values)
    assert again.attrs["symmetry"] == data.attrs["symmetry"]
    assert list(again.attrs["fit_seeds"]) == [0, 1]


def test_arviz_works_on_it(data, tensors):
    from matplotlib import pyplot

    table = arviz.summary(data, var_names=["w"])
    np.testing.assert_allclose(table["mean"], data.posterior["w"].values.mean((0, 1)), atol=1e-3)
    assert arviz.rhat(data)["w"].shape == (data.posterior.sizes["weight"],)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large Pareto k: the fit is a short one
        loo = arviz.loo(data)
        assert np.isfinite(loo.elpd if has_data_tree() else loo.elpd_loo)
        assert len(arviz.compare({"a": data, "b": data})) == 2
    if has_data_tree():
        arviz.plot_ppc_dist(data, num_samples=3, backend="matplotlib")
        arviz.plot_trace(data, coords={"weight": ["2.weight[3, 2]"]}, backend="matplotlib")
        arviz.plot_trace(tensors, var_names=["4.bias"], backend="matplotlib")
    else:
        arviz.plot_ppc(data, num_pp_samples=3)
        arviz.plot_ppc(data, num_pp_samples=3, group="prior")
        arviz.plot_trace(data, coords={"weight": ["2.weight[3, 2]"]})
        arviz.plot_trace(tensors, var_names=["4.bias"])
    pyplot.close("all")


def test_same_seed_same_draws(fits):
    one, same, other = (fits[0].to_arviz(5, seed=seed) for seed in (3, 3, 4))
    for group, name in (("posterior", "w"), ("prior", "w"), ("posterior_predictive", "obs")):
        np.testing.assert_array_equal(one[group][name].values, same[group][name].values)
        assert (one[group][name].values != other[group][name].values).any()
    twice = sps.to_arviz([fits[0][0], fits[0][0]], 5, groups=["posterior", "prior"])
    for group in ("posterior", "prior"):  # chains of one guide have draws of their own
        assert (twice[group]["w"].values[0] != twice[group]["w"].values[1]).all()


def test_global_random_state_and_parameters_stay_as_they_were(fits):
    import pyro

    state = torch.get_rng_state()
    fits[0].to_arviz(5)
    assert torch.equal(torch.get_rng_state(), state)
    assert not pyro.get_param_store()


def test_separate_fits_of_the_same_data_are_chains(fits):
    fits, x, y = fits
    again = sps.fit(fits[0].bnn, x, y, num_steps=3, standardize=True, progress=False, seed=9)
    data = sps.to_arviz([fits[0], again], 5)
    assert data.posterior["w"].shape[:2] == (2, 5)
    assert data.attrs["fit_seeds"] == [0, 9]


@pytest.mark.parametrize("likelihood", [sps.Categorical(), sps.Bernoulli(), sps.Poisson()])
def test_discrete_targets(likelihood):
    bnn = sps.BNN(sps.mlp([1, 4, 3]), scheme=sps.Unmasked(), likelihood=likelihood)
    x = torch.linspace(-1, 1, 5).unsqueeze(1)
    y = torch.tensor([0, 1, 2, 1, 0]) if isinstance(likelihood, sps.Categorical) else torch.ones(5, 3)
    data = sps.fit(bnn, x, y, num_steps=5, progress=False).to_arviz(7)
    assert data.log_likelihood["obs"].shape == (1, 7, 5)
    assert data.posterior_predictive["obs"].shape == (1, 7, *y.shape)
    np.testing.assert_array_equal(data.observed_data["obs"].values, y.numpy())
    assert "noise_scale" not in data.constant_data
    # Of a fit where nothing is fixed there is nothing to say about fixed weights.
    assert list(data.constant_data.data_vars) == ["x"]


def test_loaded_fits_need_their_data(fits, data, tmp_path):
    fits, x, y = fits
    fits[0].save(tmp_path)
    loaded = sps.load(tmp_path, sps.mlp([1, 4, 4, 2], dtype=torch.float64))
    with pytest.raises(ValueError, match="holds no training data"):
        loaded.to_arviz(5)
    assert set(loaded.to_arviz(5, groups=["posterior", "prior"]).posterior.data_vars) == {"w"}
    again = sps.to_arviz([loaded], DRAWS, x=x, y=y)
    np.testing.assert_allclose(again.sample_stats["lp"].values[0], data.sample_stats["lp"].values[0])
    assert again.attrs["scheme"] == "given masks"


def test_bad_arguments(fits):
    fits, x, y = fits
    other = sps.fit(sps.BNN(sps.mlp([1, 4, 4, 2]), scheme=sps.Unmasked()), x, y, num_steps=2, progress=False)
    shifted = sps.fit(fits[0].bnn, x, y + 1, num_steps=2, standardize=True, progress=False)
    small = sps.fit(sps.BNN(sps.mlp([1, 2]), sps.Unmasked()), x, y, num_steps=2, progress=False)
    for call, message in [
        (lambda: sps.to_arviz([]), "at least one fit, got none"),
        (lambda: fits.to_arviz(0), "draws must be a positive integer, got 0"),
        (lambda: fits.to_arviz(5, layout="wide"), "layout must be one of flat, tensors, got 'wide'"),
        (lambda: fits.to_arviz(5, groups=["posteriors"]), "groups must be among .*'posteriors'"),
        (lambda: fits.to_arviz(5, x=x), "x and y must be given together, got x alone"),
        (lambda: sps.to_arviz([fits[0], other], 5), "another mask of '.*weight' than fit 0"),
        (lambda: sps.to_arviz([fits[0], small], 5), "another network than fit 0"),
        (lambda: sps.to_arviz([fits[0], shifted], 5), "different training data"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match=r"must be pyro_sps\.Fit objects, got int"):
        sps.to_arviz([1], 5)


# --- MCMC ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain():
    """NUTS with steps so large that trajectories diverge."""
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).unsqueeze(1)
    net = sps.mlp([1, 2, 2, 1], dtype=torch.float64)
    bnn = sps.BNN(net, sps.Heavy(), sps.Constant(0.5), sps.Gaussian(0.1))
    kernel = NUTS(bnn, step_size=0.15, adapt_step_size=False, max_tree_depth=3)
    mcmc = MCMC(kernel, num_samples=30, warmup_steps=3, disable_progbar=True)
    torch.manual_seed(0)
    mcmc.run(x, x**2)
    return mcmc, bnn, x, x**2


def test_mcmc_draws_with_pyros_densities(chain):
    mcmc, bnn, x, y = chain
    data = sps.from_mcmc(mcmc, bnn, x, y)
    assert data.posterior["w"].shape == (1, 30, bnn.num_stochastic)
    samples = mcmc.get_samples()
    np.testing.assert_array_equal(
        data.posterior["w"].values[0], torch.cat([samples[w.name] for w in bnn.weights], 1).numpy()
    )
    for index in (0, 29):
        sites = {name: value[index] for name, value in samples.items()}
        trace = poutine.trace(poutine.condition(bnn, data=sites)).get_trace(x, y)
        assert data.sample_stats["lp"].values[0, index] == pytest.approx(trace.log_prob_sum().item())
        trace.compute_log_prob()
        np.testing.assert_allclose(data.log_likelihood["obs"].values[0, index], trace.nodes["obs"]["log_prob"].numpy())
    assert "lq" not in data.sample_stats
    assert data.attrs["method"] == "NUTS"
    divergences = mcmc.diagnostics()["divergences"]["chain 0"]
    assert divergences  # else this tests nothing
    np.testing.assert_array_equal(np.flatnonzero(data.sample_stats["diverging"].values[0]), divergences)


def test_mcmc_on_standardised_data_in_original_units(chain):
    mcmc, bnn, x, y = chain
    scaling = Standardizer(*(torch.full((1,), value, dtype=torch.float64) for value in (3.0, 2.0, -1.0, 4.0)))
    data = sps.from_mcmc(mcmc, bnn, x * 2 + 3, y * 4 - 1, standardizer=scaling)
    plain = sps.from_mcmc(mcmc, bnn, x, y)
    np.testing.assert_allclose(data.sample_stats["lp"], plain.sample_stats["lp"] - len(x) * np.log(4))
    np.testing.assert_allclose(data.observed_data["obs"], plain.observed_data["obs"] * 4 - 1)
    assert data.constant_data["noise_scale"].values.item() == pytest.approx(0.4)


def test_mcmc_with_a_hyperparameter():
    import pyro
    import pyro.distributions as dist

    def prior(tensor):
        if tensor.name != "0.weight":
            return dist.Normal(0.0, 1.0)
        scale = pyro.sample("scale", dist.HalfNormal(torch.tensor(1.0)))
        return dist.Normal(torch.tensor(0.0), scale[..., None, None])

    x = torch.linspace(-1, 1, 8).unsqueeze(1)
    bnn = sps.BNN(sps.mlp([1, 2, 1]), scheme=sps.Unmasked(), prior=prior)
    mcmc = MCMC(NUTS(bnn, max_tree_depth=2), num_samples=5, warmup_steps=2, disable_progbar=True)
    mcmc.run(x, x)
    data = sps.from_mcmc(mcmc, bnn, x, x)
    assert data.posterior["scale"].dims == data.prior["scale"].dims == ("chain", "draw")
    samples = {name: value[0] for name, value in mcmc.get_samples().items()}
    trace = poutine.trace(poutine.condition(bnn, data=samples)).get_trace(x, x)
    assert data.sample_stats["lp"].values[0, 0] == pytest.approx(trace.log_prob_sum().item(), rel=1e-4)


def test_mcmc_of_another_network_is_refused(chain):
    mcmc, _, x, y = chain
    other = sps.BNN(sps.mlp([1, 3, 2, 1]), scheme=sps.Unmasked())
    with pytest.raises(ValueError, match=r"samples of bnn's site '0.weight' with 3 entries, got \(2,\)"):
        sps.from_mcmc(mcmc, other, x, y)
    with pytest.raises(TypeError, match=r"bnn must be a pyro_sps\.BNN, got int"):
        sps.from_mcmc(mcmc, 1, x, y)


def test_samples_of_our_nuts_are_converted_in_original_units():
    x = torch.linspace(-1, 1, 10, dtype=torch.float64).unsqueeze(1)
    y = 3 * x + 5
    bnn = sps.BNN(sps.mlp([1, 2, 1], dtype=torch.float64), scheme=sps.Unmasked(), likelihood=sps.Gaussian(0.5))
    nuts = sps.sample(
        bnn, x, y, kernel="nuts", starts="prior", num_samples=5, warmup=4, chains=2, standardize=True, progress=False
    )
    data = sps.from_mcmc(nuts, nuts.bnn, x, y)
    assert (data.posterior.attrs["method"], data.posterior.attrs["tuning_steps"]) == ("NUTS", 4)
    first = nuts.samples["0.weight"].numpy()
    np.testing.assert_array_equal(data.posterior["w"].values[..., : first.shape[-1]], first)
    np.testing.assert_array_equal(data.observed_data["obs"].values, y.numpy())
    # The mean of the predictive draws is about that of the targets, 5, and not that of standardised ones, 0.
    assert abs(float(data.posterior_predictive["obs"].mean()) - 5) < 2


@pytest.mark.parametrize("per_output", [None, 2])
def test_a_sampled_noise_is_in_the_posterior(per_output):
    """In the units of the network as the site it is, in original units as `noise_scale`, and in the densities."""
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).unsqueeze(1)
    y = torch.cat([x.sin(), 10 * x.cos()], dim=1)
    likelihood = sps.Gaussian(0.3, learn=True, per_output=per_output, sampled=True)
    bnn = sps.BNN(sps.mlp([1, 3, 2], dtype=torch.float64), sps.Rigid(), sps.Constant(1.0), likelihood)
    fit = sps.fit(bnn, x, y, num_steps=20, standardize=True, progress=False)
    data = sps.to_arviz(fit, 9)
    assert "noise_scale" not in data.constant_data
    site = data.posterior["likelihood.log_scale"].values
    assert site.shape == (1, 9, per_output or 1)
    scale = fit.standardizer.y_scale.numpy()
    noise = data.posterior["noise_scale"].values
    np.testing.assert_allclose(noise, np.exp(site) * scale)
    assert data.prior["noise_scale"].shape == noise.shape
    # A density by hand: weights and noise of draw 0 belong together.
    weights = sps.to_arviz(fit, 9, layout="tensors").posterior
    full = {name: torch.from_numpy(weights[name].values[0, 0]) for name in fit.bnn.masks}
    mean = fit.bnn.function(full, fit.standardizer.inputs(x)) * fit.standardizer.y_scale + fit.standardizer.y_mean
    logs = torch.distributions.Normal(mean, torch.from_numpy(noise[0, 0])).log_prob(y).sum(1)
    np.testing.assert_allclose(data.log_likelihood["obs"].values[0, 0], logs.numpy())
