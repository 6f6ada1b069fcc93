"""The pure ELBO against stock Pyro with the same random numbers, and against written-out formulas."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceMeanField_ELBO

import pyro_sps as sps
from pyro_sps.model.density import elbo_terms, negative_elbo, negative_log_joint, prepare


class Capture(TraceMeanField_ELBO):
    """Stock ELBO that keeps the guide's trace, so that its noise can be used again."""

    def _get_trace(self, model, guide, args, kwargs):
        model_trace, self.guide_trace = super()._get_trace(model, guide, args, kwargs)
        return model_trace, self.guide_trace


def stock(model, guide, particles, args, kwargs=None):
    """Loss, gradients of the guide's parameters, and the noise that stock Pyro drew."""
    nesting = 1
    elbo = Capture(num_particles=particles, vectorize_particles=True, max_plate_nesting=nesting)
    guide.zero_grad()
    loss = elbo.differentiable_loss(model, guide, *args, **(kwargs or {}))
    loss.backward()
    flat = []
    for site in guide.sites:
        value = elbo.guide_trace.nodes[site.name]["value"]
        if site.support is not None:
            value = torch.distributions.biject_to(site.support).inv(value)
        flat.append(value.reshape(particles, -1))
    noise = ((torch.cat(flat, 1) - guide.loc) / guide.scale).detach()
    return loss.detach(), (guide.loc.grad.clone(), guide.scale_unconstrained.grad.clone()), noise


def ours(model, guide, noise, args, kwargs=None):
    problem, _ = prepare(model, guide, *args, **(kwargs or {}))
    loc = guide.loc.detach().requires_grad_()
    rho = guide.scale_unconstrained.detach().requires_grad_()
    loss = negative_elbo(problem, loc, torch.nn.functional.softplus(rho), noise, args, kwargs)
    return loss.detach(), torch.autograd.grad(loss, (loc, rho))


def hierarchical(x, y=None, num_data=None):
    spread = pyro.sample("spread", dist.HalfNormal(x.new_tensor(1.0)))
    with pyro.plate("features", x.shape[1], dim=-1):
        weight = pyro.sample("weight", dist.Normal(x.new_tensor(0.0), spread))
    mean = (weight.unsqueeze(-2) @ x.T).squeeze(-2) if weight.dim() > 1 else x @ weight
    with pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x)), dim=-1):
        pyro.sample("obs", dist.Normal(mean, x.new_tensor(0.3)), obs=y)


def student(x, y=None):
    weight = pyro.sample("weight", dist.StudentT(x.new_tensor(4.0)).expand([x.shape[1]]).to_event(1))
    mean = (weight @ x.T).squeeze(-2) if weight.dim() > 1 else x @ weight
    mask = torch.arange(len(x)) % 3 != 0
    with pyro.plate("data", len(x), dim=-1), pyro.poutine.mask(mask=mask):
        pyro.sample("obs", dist.Normal(mean, x.new_tensor(0.3)), obs=y)


def bnn_case(**options):
    torch.manual_seed(1)
    x, y = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    learned = {"scheme": sps.Heavy(), "values": sps.Constant(1.0, learn=True), "likelihood": sps.Gaussian(0.1)}
    options = learned | options
    return sps.BNN(sps.mlp([3, 4, 4, 2], dtype=torch.float64), **options), x, y


@pytest.mark.parametrize("particles", [1, 5])
@pytest.mark.parametrize("case", ["heavy", "light", "laplace", "ordered", "hierarchical", "student"])
@pytest.mark.parametrize("num_data", [None, 21])
def test_loss_and_gradient_equal_stock_with_common_random_numbers(case, particles, num_data):
    model, x, y = bnn_case(
        scheme={"heavy": sps.Heavy(), "ordered": sps.Unmasked()}.get(case, sps.Light()),
        values=sps.Constant(1.5, learn=True),
        prior=dist.Laplace(0.0, 1.0) if case == "laplace" else None,
        ordered_biases=case == "ordered",
    )
    if case in ("hierarchical", "student"):
        model, y = {"hierarchical": hierarchical, "student": student}[case], y[:, 0]
    if case == "student" and num_data:
        pytest.skip("this model takes no minibatches")
    args, kwargs = (x, y), {} if case == "student" else {"num_data": num_data}
    guide = sps.AutoSPSNormal(model, init_scale=0.2)
    guide(*args, **kwargs)
    with torch.no_grad():
        guide.loc.copy_(0.3 * torch.randn_like(guide.loc))
    loss, gradients, noise = stock(model, guide, particles, args, kwargs)
    own_loss, own_gradients = ours(model, guide, noise, args, kwargs)
    torch.testing.assert_close(own_loss, loss, rtol=1e-9, atol=1e-9)
    for own, other in zip(own_gradients, gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-8)


def test_elbo_equals_the_written_out_formula():
    bnn, x, y = bnn_case(scheme=sps.Heavy(), values=sps.Constant(2.0), prior_scale=0.7)
    guide = sps.AutoSPSNormal(bnn, init_scale=0.3)
    problem, _ = prepare(bnn, guide, x, y)
    loc, scale, noise = torch.randn(problem.size).double(), torch.rand(problem.size).double() + 0.1, None
    noise = torch.randn(3, problem.size).double()
    prior_scale = 0.7
    kl = ((scale**2 + loc**2) / (2 * prior_scale**2) - 0.5 - (scale / prior_scale).log()).sum()
    likelihood = 0.0
    for draw in loc + scale * noise:
        sites = {site.name: site.view(draw) for site in problem.sites}
        outputs = bnn.function(bnn.assemble(sites), x)
        likelihood = likelihood - (
            (0.5 * ((y - outputs) / 0.1) ** 2).sum() + y.numel() * math.log(0.1 * math.sqrt(2 * math.pi))
        )
    expected = kl - 3 * likelihood / 3  # 21 data of which 7 are seen: the likelihood counts three times
    torch.testing.assert_close(negative_elbo(problem, loc, scale, noise, (x, y), {"num_data": 21}), expected)
    terms = elbo_terms(problem, loc, scale, noise, (x, y))
    torch.testing.assert_close(terms["KL"], kl)


def test_expectation_equals_stock():
    bnn, x, y = bnn_case(scheme=sps.Heavy(), values=sps.Constant(1.0))
    guide = sps.AutoSPSNormal(bnn, init_scale=0.1)
    guide(x, y)
    torch.manual_seed(3)
    draws = 400
    stock_elbo = TraceMeanField_ELBO(num_particles=draws, vectorize_particles=True, max_plate_nesting=1)
    own = torch.tensor([sps.MeanFieldELBO(1).loss(bnn, guide, x, y) for _ in range(draws)])
    other = torch.tensor([stock_elbo.loss(bnn, guide, x, y) for _ in range(20)])
    error = (own.var() / draws + other.var() / 20).sqrt()
    assert abs(own.mean() - other.mean()) < 4 * error


def test_log_joint_equals_the_traced_one():
    laplace = dist.Laplace(torch.zeros(()).double(), 0.5)
    cases = [
        {},
        {"scheme": sps.Unmasked(), "ordered_biases": True},
        {"prior": {"2.weight": laplace, "4.bias": dist.Normal(torch.tensor([0.1, -0.2]).double(), 0.7)}},
        {"prior": laplace},
        {"prior": sps.Hierarchical(), "likelihood": sps.Gaussian(learn=True, sampled=True)},
    ]
    for options in cases:
        bnn, x, y = bnn_case(**options)
        guide = sps.AutoSPSNormal(bnn)
        problem, _ = prepare(bnn, guide, x, y)
        flat = torch.randn(4, problem.size).double()
        many = negative_log_joint(problem, flat, (x, y))
        for draw, value in zip(flat, many, strict=True):
            data = {site.name: site.constrain(site.view(draw)) for site in problem.sites}
            trace = pyro.poutine.trace(pyro.condition(bnn, data=data)).get_trace(x, y)
            torch.testing.assert_close(value, -trace.log_prob_sum())
            torch.testing.assert_close(negative_log_joint(problem, draw, (x, y)), value)


def test_works_with_stock_svi_and_learns_the_models_parameters():
    pyro.clear_param_store()
    bnn, x, y = bnn_case(scheme=sps.Heavy(), likelihood=sps.Gaussian(0.5, learn=True))
    guide = sps.AutoSPSNormal(bnn)
    svi = SVI(bnn, guide, pyro.optim.Adam({"lr": 0.02}), sps.MeanFieldELBO(8))
    losses = [svi.step(x, y) for _ in range(150)]
    assert sum(losses[-20:]) < sum(losses[:20])
    assert bnn.constant_scale().item() != 1.0
    assert bnn.likelihood.scale.item() != 0.5
    assert set(pyro.get_param_store().keys()) == {
        "fixed_scale",
        "likelihood.scale",
        "AutoSPSNormal.loc",
        "AutoSPSNormal.scale",
    }


def test_other_guides_are_refused():
    bnn, x, y = bnn_case()
    with pytest.raises(TypeError, match="AutoSPSNormal"):
        sps.MeanFieldELBO().loss(bnn, pyro.infer.autoguide.AutoNormal(bnn), x, y)


def test_prepare_keeps_out_of_the_global_parameter_store():
    pyro.clear_param_store()
    pyro.param("mine", torch.tensor(1.0))
    bnn, x, y = bnn_case(likelihood=sps.Gaussian(0.5, learn=True))
    problem, params = prepare(bnn, sps.AutoSPSNormal(bnn), x, y)
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert set(params) == {"fixed_scale", "likelihood.scale"}
    constrained = problem.constrain(params)
    assert constrained["likelihood.scale"].item() == pytest.approx(0.5)
