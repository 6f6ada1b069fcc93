import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_median, init_to_sample, init_to_value
from pyro.infer.autoguide.utils import deep_setattr
from pyro.poutine.messenger import Messenger

import pyro_sps as sps
from pyro_sps.model.guides import AutoSPSNormal


class Draws(Messenger):
    """Notes, or sets, the noise of the guide's normal sites."""

    def __init__(self, noise=None):
        super().__init__()
        self.noise, self.values = noise, {}

    def _pyro_sample(self, msg):
        if self.noise is not None and msg["name"] in self.noise and msg["value"] is None:
            normal = msg["fn"].base_dist
            msg["value"] = normal.loc + normal.scale * self.noise[msg["name"]]

    def _pyro_post_sample(self, msg):
        if not msg["is_observed"]:
            self.values[msg["name"]] = msg["value"]


def started(guide, *args, seed=1):
    """Parameters at random places, so that nothing holds by chance of the initial ones."""
    guide(*args)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        guide.loc.copy_(torch.randn(guide.loc.shape, generator=generator, dtype=guide.loc.dtype))
        rho = torch.randn(guide.loc.shape, generator=generator, dtype=guide.loc.dtype)
        guide.scale_unconstrained.copy_(rho - 1)
    return guide


def small_bnn(**options):
    mask = torch.tensor([[True, False], [True, True], [False, True]])
    net = sps.mlp([2, 3, 2], dtype=torch.float64)
    return sps.BNN(net, {"0.weight": mask}, options.pop("values", sps.Constant(0.7)), sps.Gaussian(0.5), **options)


@pytest.fixture
def data():
    return torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)


def kl_formula(loc, scale, prior_loc, prior_scale):
    """KL divergence between diagonal normals, written out."""
    ratio = (scale / prior_scale) ** 2
    return 0.5 * (ratio + ((loc - prior_loc) / prior_scale) ** 2 - 1 - ratio.log()).sum()


# --- the objective -----------------------------------------------------------------------------------


def test_loss_of_a_model_without_data_is_the_kl_formula():
    prior_loc, prior_scale = torch.randn(3, 4).double(), torch.rand(3, 4).double() + 0.5

    def model():
        pyro.sample("a", dist.Normal(prior_loc, prior_scale).to_event(2))
        pyro.sample("b", dist.Normal(torch.tensor(0.5).double(), 2.0))

    guide = started(AutoSPSNormal(model))
    loc = torch.cat([prior_loc.flatten(), torch.tensor([0.5]).double()])
    scale = torch.cat([prior_scale.flatten(), torch.tensor([2.0]).double()])
    expected = kl_formula(guide.loc, guide.scale, loc, scale).item()
    for particles in (1, 3):
        elbo = TraceMeanField_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=0)
        assert elbo.loss(model, guide) == pytest.approx(expected, rel=1e-12)
    assert len({TraceMeanField_ELBO().loss(model, guide) for _ in range(3)}) == 1  # nothing is sampled for it

    stock = AutoNormal(model)
    stock()
    assert len({TraceMeanField_ELBO().loss(model, stock) for _ in range(3)}) == 3


def test_loss_of_a_bnn_is_kl_minus_log_likelihood(data):
    bnn = small_bnn(prior_scale=0.8)
    guide = started(AutoSPSNormal(bnn), *data)
    with Draws() as draws:
        loss = TraceMeanField_ELBO().loss(bnn, guide, *data)
    trace = poutine.trace(poutine.condition(bnn, draws.values)).get_trace(*data)
    trace.compute_log_prob()
    zero = torch.zeros((), dtype=torch.float64)
    expected = kl_formula(guide.loc, guide.scale, zero, zero + 0.8) - trace.nodes["obs"]["log_prob_sum"]
    assert loss == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("particles", [1, 4])
def test_gradient_is_that_of_the_written_out_elbo(data, particles):
    """With common random numbers, down to the network written out by hand."""
    x, y = data
    bnn = small_bnn(values=sps.Constant(0.7, learn=True), prior_scale=1.0)
    guide = started(AutoSPSNormal(bnn), *data)
    elbo = TraceMeanField_ELBO(particles, max_plate_nesting=1, vectorize_particles=particles > 1)
    with Draws() as draws:
        elbo.loss_and_grads(bnn, guide, x, y)

    parameters = {"loc": guide.loc, "rho": guide.scale_unconstrained, "log_c": bnn.fixed_scale_unconstrained}
    loc, rho, log_c = (value.detach().clone().requires_grad_() for value in parameters.values())
    scale = torch.nn.functional.softplus(rho)
    flat = torch.cat([draws.values[site.name].reshape(particles, -1) for site in guide.sites], -1)
    noise = ((flat - loc) / scale).detach()
    signs = bnn.weights[0].fixed
    log_likelihood = 0.0
    for eps in noise:
        w = dict(zip([site.name for site in guide.sites], (loc + scale * eps).split([4, 3, 6, 2]), strict=True))
        a = w["0.weight"]
        c = log_c.exp()
        first = torch.stack([a[0], signs[0, 1] * c, a[1], a[2], signs[2, 0] * c, a[3]]).reshape(3, 2)
        outputs = torch.tanh(x @ first.T + w["0.bias"]) @ w["2.weight"].reshape(2, 3).T + w["2.bias"]
        log_likelihood = log_likelihood - 0.5 * ((y - outputs) / 0.5).square().sum() / particles
    zero = torch.zeros((), dtype=torch.float64)
    loss = kl_formula(loc, scale, zero, zero + 1) - log_likelihood
    expected = torch.autograd.grad(loss, (loc, rho, log_c))
    for parameter, gradient in zip(parameters.values(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-10)


# --- the linear-Gaussian model, where everything is known -----------------------------------------------


def linear_gaussian():
    """One linear layer, half of its weights fixed; the exact posterior of the others."""
    features, rows, noise = 6, 20, 0.5
    x = torch.randn(rows, features, dtype=torch.float64)
    x[:, 2] += 0.5 * x[:, 0]  # correlated weights, so that mean field is an approximation
    y = torch.randn(rows, 1, dtype=torch.float64)
    mask = torch.tensor([[True, False, True, False, True, False]])
    net = torch.nn.Linear(features, 1, bias=False, dtype=torch.float64)
    bnn = sps.BNN(net, {"weight": mask}, sps.RandomConstant(1.0), sps.Gaussian(noise), prior_scale=1.5)
    free, fixed = x[:, mask[0]], bnn.fixed["weight"][0]
    precision = torch.eye(3, dtype=torch.float64) / 1.5**2 + free.T @ free / noise**2
    mean = torch.linalg.solve(precision, free.T @ (y[:, 0] - x @ fixed) / noise**2)
    return bnn, x, y, precision, mean


def test_exact_optimum_of_the_linear_gaussian_model():
    """The log-likelihood is quadratic, so the six points ±√3 e_i integrate it exactly: no Monte Carlo error."""
    bnn, x, y, precision, mean = linear_gaussian()
    guide = AutoSPSNormal(bnn)
    guide(x, y)
    points = math.sqrt(3) * torch.cat([torch.eye(3), -torch.eye(3)]).double().unsqueeze(1)
    elbo = TraceMeanField_ELBO(num_particles=6, vectorize_particles=True, max_plate_nesting=1)
    optimizer = torch.optim.LBFGS(
        guide.parameters(), max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        with Draws({"weight": points}):
            loss = elbo.differentiable_loss(bnn, guide, x, y)
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(guide.loc.detach(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(guide.scale.detach(), precision.diagonal().rsqrt(), rtol=1e-6, atol=1e-6)
    with Draws({"weight": points}):
        loss = elbo.loss(bnn, guide, x, y)
    # The mean-field optimum falls short of the evidence by ½ (Σ log diagonal - log determinant) of the precision.
    residual = (y - x @ bnn.fixed["weight"].T)[:, 0]
    free = x[:, bnn.masks["weight"][0]]
    covariance = 0.25 * torch.eye(len(y), dtype=torch.float64) + 1.5**2 * free @ free.T
    evidence = dist.MultivariateNormal(torch.zeros_like(residual), covariance).log_prob(residual)
    gap = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    assert loss == pytest.approx((gap - evidence).item(), rel=1e-9)


def test_stock_svi_finds_the_optimum_of_the_linear_gaussian_model():
    bnn, x, y, precision, mean = linear_gaussian()
    guide = AutoSPSNormal(bnn)
    particles, steps, start, end = 16, 500, 0.2, 1e-4
    decay = math.log(start / end) / steps
    scheduler = pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": start}, "gamma": math.exp(-decay)}
    )
    svi = SVI(bnn, guide, scheduler, TraceMeanField_ELBO(particles, max_plate_nesting=1, vectorize_particles=True))
    for _ in range(steps):
        svi.step(x, y)
        scheduler.step()

    def wandering(curvature, noise):
        """Standard deviation about the optimum.

        Adam with rate η on a quadratic of curvature a with gradient noise σ has variance η σ / (2 a). It follows the
        decaying rate as long as it relaxes faster, by η a / σ a step.
        """
        rate = (decay * noise / curvature).clamp(min=end)
        return (rate * noise / (2 * curvature)).sqrt()

    curvature, scale = precision.diagonal(), precision.diagonal().rsqrt()
    noise = ((precision.square() @ scale.square()) / particles).sqrt()
    loc_error = wandering(curvature, noise)
    assert ((guide.loc.detach() - mean).abs() < 5 * loc_error).all()
    assert (5 * loc_error < 0.2 * scale).all()  # the test can fail
    slope = 1 - (-scale).exp()  # of softplus, in whose argument the optimiser works
    scale_noise = (noise.square() + (curvature * scale).square() / particles).sqrt()
    scale_error = slope * wandering(2 * curvature * slope**2, scale_noise * slope)
    assert ((guide.scale.detach() - scale).abs() < 5 * scale_error).all()
    assert (5 * scale_error < 0.3 * scale).all()


# --- the interface of AutoNormal ---------------------------------------------------------------------


def every_support():
    pyro.sample("real", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    pyro.sample("scalar", dist.Normal(0.0, 1.0))
    pyro.sample("positive", dist.HalfNormal(1.0).expand([4]).to_event(1))
    pyro.sample("interval", dist.Uniform(-1.0, 2.0))
    pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))
    pyro.sample("correlation", dist.LKJCholesky(3, torch.tensor(1.0)))
    with pyro.plate("columns", 3, dim=-1):
        pyro.sample("in a plate", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", 2, dim=-2):
            pyro.sample("in two plates", dist.Normal(0.0, 1.0).expand([4]).to_event(1))


def twins(model, *args):
    """AutoNormal and AutoSPSNormal with the same random parameters."""
    ours, stock = started(AutoSPSNormal(model), *args), AutoNormal(model)
    stock(*args)
    with torch.no_grad():
        for site in ours.sites:
            deep_setattr(stock.locs, site.name, site.view(ours.loc).clone())
            deep_setattr(stock.scales, site.name, site.view(ours.scale))
    return ours, stock


def assert_same(first, second):
    assert set(first) == set(second)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name])


def test_median_and_quantiles_equal_those_of_auto_normal():
    ours, stock = twins(every_support)
    assert_same(ours.median(), stock.median())
    for levels in ([0.1, 0.5, 0.9], torch.tensor([0.1, 0.5, 0.9])):
        assert_same(ours.quantiles(levels), stock.quantiles([0.1, 0.5, 0.9]))


def test_the_median_is_a_snapshot():
    ours = started(AutoSPSNormal(every_support))
    median = {name: value.clone() for name, value in ours.median().items()}
    before = ours.median()
    with torch.no_grad():
        ours.loc.add_(1.0)
    assert_same(before, median)


def test_density_equals_that_of_auto_normal():
    ours, stock = twins(every_support)
    for _ in range(5):
        trace = poutine.trace(stock).get_trace()
        values = {site.name: trace.nodes[site.name]["value"] for site in ours.sites}
        own = poutine.trace(poutine.condition(ours, values)).get_trace()
        torch.testing.assert_close(own.log_prob_sum(), trace.log_prob_sum(), rtol=1e-4, atol=1e-4)
        assert {name: own.nodes[name]["value"].shape for name in values} == {n: v.shape for n, v in values.items()}


def test_density_equals_that_of_auto_normal_on_a_bnn_with_constrained_priors(data):
    bnn = small_bnn(prior={"0.bias": dist.HalfNormal(1.0), "2.weight": dist.Uniform(-2.0, 3.0)})
    ours, stock = twins(bnn, *data)
    trace = poutine.trace(stock).get_trace(*data)
    values = {site.name: trace.nodes[site.name]["value"] for site in ours.sites}
    own = poutine.trace(poutine.condition(ours, values)).get_trace(*data)
    torch.testing.assert_close(own.log_prob_sum(), trace.log_prob_sum(), rtol=1e-10, atol=1e-10)
    assert_same(ours.median(), stock.median())
    assert (ours.median()["0.bias"] > 0).all()


@pytest.mark.parametrize("particles", [None, 3])
def test_sites_in_plates_have_the_models_shapes(particles):
    guide = started(AutoSPSNormal(every_support))
    with pyro.plate("particles", particles or 1, dim=-3):
        values = guide()
    batch = (particles,) if particles else (1,)
    assert values["in two plates"].shape == (*batch, 2, 3, 4)
    assert values["in a plate"].shape == (*batch, 1, 3)
    assert values["simplex"].shape == (*batch, 1, 1, 3)
    elbo = TraceMeanField_ELBO(num_particles=particles or 1, vectorize_particles=True, max_plate_nesting=2)
    assert math.isfinite(elbo.loss(every_support, guide))


def test_kl_in_plates_is_summed_over_their_entries():
    def model():
        with pyro.plate("rows", 4), poutine.scale(scale=2.5):
            pyro.sample("w", dist.Normal(torch.tensor(0.3).double(), 2.0).expand([3]).to_event(1))

    guide = started(AutoSPSNormal(model))
    expected = 2.5 * kl_formula(guide.loc, guide.scale, torch.tensor(0.3).double(), torch.tensor(2.0).double())
    loss = TraceMeanField_ELBO().loss(model, poutine.scale(guide, 2.5))
    assert loss == pytest.approx(expected.item(), rel=1e-12)


def test_initial_values():
    values = {"real": torch.randn(2, 3), "positive": torch.rand(4) + 0.1, "simplex": torch.tensor([0.2, 0.3, 0.5])}
    guide = AutoSPSNormal(every_support, init_loc_fn=init_to_value(values=values), init_scale=0.03)
    guide()
    median = guide.median()
    for name, value in values.items():
        torch.testing.assert_close(median[name], value)
    torch.testing.assert_close(guide.scale.detach(), torch.full_like(guide.loc, 0.03))
    for init in (init_to_median, init_to_sample):
        AutoSPSNormal(every_support, init_loc_fn=init)()


def test_default_initialisation_equals_auto_normals():
    ours, stock = AutoSPSNormal(every_support, init_scale=0.1), AutoNormal(every_support, init_scale=0.1)
    ours(), stock()
    assert_same(ours.median(), stock.median())
    assert_same(ours.quantiles([0.3]), stock.quantiles([0.3]))


def test_parameters_are_two_flat_vectors(data):
    guide = AutoSPSNormal(small_bnn())
    guide(*data)
    assert {name: tuple(value.shape) for name, value in guide.named_parameters()} == {
        "loc": (15,),
        "scale_unconstrained": (15,),
    }
    svi = SVI(guide.model, guide, pyro.optim.Adam({"lr": 0.1}), TraceMeanField_ELBO())
    before = guide.loc.detach().clone(), guide.scale.detach().clone()
    svi.step(*data)
    assert (guide.loc != before[0]).all()
    assert (guide.scale != before[1]).all()


def test_state_dict_round_trip(data):
    first, second = started(AutoSPSNormal(small_bnn()), *data), AutoSPSNormal(small_bnn())
    pyro.clear_param_store()  # where guides of one class share their parameters' names
    second(*data)
    second.load_state_dict(first.state_dict())
    assert_same(second.quantiles([0.2, 0.7]), first.quantiles([0.2, 0.7]))


def test_dtype_follows_the_model(data):
    guide = started(AutoSPSNormal(small_bnn()), *data)
    values = [*guide(*data).values(), *guide.median().values(), *guide.quantiles([0.5]).values()]
    values += [*guide.draws(3).values(), guide.loc, guide.scale]
    assert {value.dtype for value in values} == {torch.float64}


def test_predictive(data):
    bnn = small_bnn()
    guide = started(AutoSPSNormal(bnn), *data)
    for parallel in (False, True):
        draws = Predictive(bnn, guide=guide, num_samples=7, parallel=parallel)(data[0])
        assert draws["obs"].shape == (7, 6, 2)


def test_elbo_agrees_with_auto_normals_in_expectation(data):
    """Constrained sites have no closed KL: the two guides must still estimate one number."""
    bnn = small_bnn(prior={"0.bias": dist.HalfNormal(1.0)})
    ours, stock = twins(bnn, *data)
    losses = []
    for guide, elbo in ((ours, TraceMeanField_ELBO), (ours, Trace_ELBO), (stock, Trace_ELBO)):
        # The particles are a batch, whose losses are summed up, so its spread comes from repetitions.
        estimator = elbo(num_particles=500, vectorize_particles=True, max_plate_nesting=1)
        losses.append(torch.tensor([estimator.loss(bnn, guide, *data) for _ in range(20)]).double())
    means = [values.mean() for values in losses]
    errors = [values.std() / math.sqrt(20) for values in losses]
    for other in (1, 2):
        assert abs(means[0] - means[other]) < 5 * math.hypot(errors[0], errors[other])


# --- draws -------------------------------------------------------------------------------------------


def test_draws_follow_the_guide():
    guide = started(AutoSPSNormal(every_support))
    draws = guide.draws(4000, torch.Generator().manual_seed(0))
    assert {name: tuple(value.shape) for name, value in draws.items()} == {
        site.name: (4000, *guide.median()[site.name].shape) for site in guide.sites
    }
    quantiles = guide.quantiles([0.25, 0.8])
    for site in guide.sites:
        if site.name not in ("simplex", "correlation"):  # whose entries are not functions of one normal each
            for level, quantile in zip((0.25, 0.8), quantiles[site.name], strict=True):
                share = (draws[site.name] < quantile).double().mean(0)
                assert ((share - level).abs() < 5 * math.sqrt(level * (1 - level) / 4000)).all()
    torch.testing.assert_close(draws["simplex"].sum(-1), torch.ones(4000))


def test_draws_come_from_the_generator_and_carry_no_gradient():
    guide = started(AutoSPSNormal(every_support))
    state = torch.get_rng_state()
    first, second, third = (guide.draws(3, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(first, second)
    assert not torch.equal(first["real"], third["real"])
    assert not any(value.requires_grad for value in first.values())


def test_adopt(data):
    bnn = small_bnn()
    first = started(AutoSPSNormal(bnn), *data)
    pyro.clear_param_store()
    second = AutoSPSNormal(bnn)
    second.adopt(first, first.loc, first.scale_unconstrained)
    assert_same(second.quantiles([0.2, 0.7]), first.quantiles([0.2, 0.7]))
    with torch.no_grad():
        first.loc.add_(1.0)
        first.scale_unconstrained.add_(1.0)
    assert (second.loc != first.loc).all()
    svi = SVI(bnn, second, pyro.optim.Adam({"lr": 0.1}), TraceMeanField_ELBO())
    before = second.loc.detach().clone()
    svi.step(*data)
    assert (second.loc != before).all()


# --- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan, "1", None, True])
def test_init_scale_errors(scale):
    with pytest.raises(ValueError, match=f"init_scale must be a positive finite number, got {scale!r}"):
        AutoSPSNormal(every_support, init_scale=scale)


def test_subsampled_plates_are_rejected():
    def model():
        with pyro.plate("data", 10, subsample_size=5):
            pyro.sample("local", dist.Normal(0.0, 1.0))

    with pytest.raises(NotImplementedError, match=r"'local' in the subsampled plate 'data'; use .*AutoNormal"):
        AutoSPSNormal(model)()


def test_observed_sites_in_subsampled_plates_are_fine(data):
    bnn = small_bnn()
    guide = AutoSPSNormal(bnn)
    guide(*data, num_data=100)
    assert math.isfinite(TraceMeanField_ELBO().loss(bnn, guide, *data, num_data=100))


def test_discrete_sites_are_rejected():
    def model():
        pyro.sample("count", dist.Poisson(2.0))

    with pytest.raises(NotImplementedError, match="discrete site 'count'"):
        AutoSPSNormal(model, init_loc_fn=init_to_sample)()
    with pytest.raises(ValueError, match="discrete sample site 'count'"):  # Pyro's own error
        AutoSPSNormal(model)()


def test_a_model_without_latent_sites_is_rejected():
    net = sps.mlp([2, 1])
    masks = {"0.weight": torch.zeros(1, 2, dtype=torch.bool), "0.bias": torch.zeros(1, dtype=torch.bool)}
    with pytest.raises(ValueError, match="no latent site: every weight is fixed"):
        AutoSPSNormal(sps.BNN(net, masks, sps.Zero()))(torch.zeros(1, 2), torch.zeros(1, 1))


def test_a_guide_that_has_not_run_says_so():
    guide = AutoSPSNormal(every_support)
    for method in (guide.median, lambda: guide.quantiles([0.5])):
        with pytest.raises(ValueError, match="has not seen the model yet"):
            method()
