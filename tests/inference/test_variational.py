"""fit() against exact posteriors, against itself, and at its edges."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.nn import PyroParam
from torch import nn

import pyro_sps as sps
from pyro_sps.inference import loop, maximum
from pyro_sps.inference.members import members_of
from pyro_sps.inference.optimizers import State
from pyro_sps.inference.settings import FitSettings
from pyro_sps.model.likelihoods import Likelihood

QUICK = {"progress": False, "num_particles": 4}


def regression(rows=40, features=3, outputs=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=generator)
    return x, torch.stack([x.sum(1).sin() + 0.1 * index for index in range(outputs)], 1)


def small(**options):
    learned = {"scheme": sps.Heavy(), "values": sps.Constant(1.0, learn=True), "likelihood": sps.Gaussian(0.1)}
    return sps.BNN(sps.mlp([3, 4, 4, 2]), **learned | options)


def test_linear_gaussian_model_reaches_the_exact_mean_field_posterior():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(6, 1, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[True, False, True, True, False, True]])
    given = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    bnn = sps.BNN(
        nn.Linear(6, 1, bias=False).double(),
        scheme={"weight": mask},
        values=sps.Given({"weight": given}),
        likelihood=sps.Gaussian(0.5),
        prior_scale=1.0,
    )
    fit = sps.fit(
        bnn,
        x,
        y,
        num_steps=3000,
        learning_rate=0.05,
        final_learning_rate=1e-4,
        num_particles=16,
        progress=False,
        standardize=False,
    )
    free, fixed = mask[0], ~mask[0]
    residual = y[:, 0] - x[:, fixed] @ given[0, fixed]
    precision = x[:, free].T @ x[:, free] / 0.5**2 + torch.eye(4, dtype=torch.float64)
    mean = torch.linalg.solve(precision, x[:, free].T @ residual / 0.5**2)
    scale = precision.diagonal().rsqrt()
    # At the end Adam's noise is of the order of its step, 1e-4, times the √(1 / (1 - β₁)) steps it remembers.
    assert ((fit.guide.loc - mean).abs() < 0.05 * scale).all()
    assert ((fit.guide.scale / scale - 1).abs() < 0.05).all()


def test_same_seed_same_result_and_the_model_is_left_alone():
    x, y = regression()
    bnn = small()
    before = {name: value.clone() for name, value in bnn.state_dict().items()}
    state = torch.random.get_rng_state()
    pyro.param("mine", torch.tensor(1.0))
    one, two, other = (sps.fit(bnn, x, y, num_steps=20, batch_size=16, seed=s, **QUICK) for s in (3, 3, 4))
    assert np.array_equal(one.losses, two.losses)
    assert torch.equal(one.guide.loc, two.guide.loc)
    assert not np.array_equal(one.losses, other.losses)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert list(pyro.get_param_store().keys()) == ["mine"]
    for name, value in bnn.state_dict().items():
        assert torch.equal(value, before[name])
    assert one.bnn.constant_scale().item() != 1.0


@pytest.mark.parametrize("batch_size", [None, 16])
@pytest.mark.parametrize(("init", "per_layer"), [("random", False), ("random", True), ("map", False)])
def test_replicas_equal_single_fits(batch_size, init, per_layer):
    x, y = regression()
    net = sps.mlp([3, 4, 4, 2], dtype=torch.float64)
    values = sps.Constant(1.0, learn=True, per_layer=per_layer)
    bnn = sps.BNN(net, sps.Heavy(), values, sps.Gaussian(0.3, learn=True))
    options = {"num_steps": 25, "batch_size": batch_size, "init": init, "map_steps": 20, **QUICK}
    fits = sps.fit(bnn, x, y, replicas=3, seed=5, **options)
    for index, replica in enumerate(fits):
        single = sps.fit(bnn, x, y, seed=5 + index, **options)
        np.testing.assert_allclose(replica.losses, single.losses, rtol=1e-9)
        torch.testing.assert_close(replica.guide.loc, single.guide.loc, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(replica.bnn.constant_scale(), single.bnn.constant_scale())
        assert replica.settings["seed"] == single.settings["seed"]


def test_replicas_may_have_data_of_their_own():
    sets = [regression(seed=s) for s in range(2)]
    x, y = (torch.stack([one[k] for one in sets]) for k in (0, 1))
    options = {"num_steps": 10, "batch_size": 16, "standardize": True, **QUICK}
    fits = sps.fit(small(), x, y, replicas=2, **options)
    for index, replica in enumerate(fits):
        single = sps.fit(small(), x[index], y[index], seed=index, **options)
        np.testing.assert_allclose(replica.losses, single.losses, rtol=1e-4)
    mixture = fits.predict(x[0], num_samples=10)
    assert mixture.draws.shape == (10, 40, 2)


@pytest.mark.parametrize(
    ("likelihood", "outputs", "targets"),
    [
        (sps.Gaussian(0.3, learn=True, per_output=2), 2, lambda y: y),
        (sps.HeteroscedasticGaussian(), 4, lambda y: y),
        (sps.HeteroscedasticStudentT(), 4, lambda y: y),
        (sps.Gaussian(0.3, learn=True, sampled=True), 2, lambda y: y),
        (sps.StudentT(None, 0.3, learn=True), 2, lambda y: y),
        (sps.StudentT(None, 0.3, learn=True, sampled=True), 2, lambda y: y),
        (sps.Ordinal(3), 2, lambda y: (y > 0).float() + (y > 0.7)),
        (sps.Ordinal(3, sampled=True), 2, lambda y: (y > 0).float() + (y > 0.7)),
        (sps.Categorical(), 3, lambda y: (y[:, 0] > 0).long() + (y[:, 0] > 0.7).long()),
        (sps.Bernoulli(), 2, lambda y: (y > 0).float()),
        (sps.Poisson(), 2, lambda y: (3 * y.exp()).round()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_every_likelihood_learns(likelihood, outputs, targets):
    x, y = regression()
    y = targets(y)
    fit = sps.fit(
        sps.BNN(sps.mlp([3, 8, 8, outputs]), sps.Heavy(), sps.Constant(1.0, learn=True), likelihood),
        x,
        y,
        num_steps=300,
        learning_rate=0.02,
        **QUICK,
    )
    assert fit.mode == "recorded"
    assert fit.losses[-30:].mean() < 0.9 * fit.losses[:5].mean()
    prediction = fit.predict(x, num_samples=50)
    assert np.isfinite(prediction.lpp(y))


def test_standardised_fit_predicts_in_original_units():
    x, y = regression()
    x_far, y_far = 1e3 + 50 * x, 2e4 + 700 * y
    bnn = sps.BNN(sps.mlp([3, 10, 10, 2], dtype=torch.float64), sps.Heavy(), sps.Constant(1.0, learn=True))
    options = {"num_steps": 400, "learning_rate": 0.02, "standardize": True, **QUICK}
    near = sps.fit(bnn, x.double(), y.double(), **options)
    far = sps.fit(bnn, x_far.double(), y_far.double(), **options)
    p, q = near.predict(x.double(), 100), far.predict(x_far.double(), 100)
    torch.testing.assert_close(q.mean, 2e4 + 700 * p.mean, rtol=1e-4, atol=1.0)
    torch.testing.assert_close(q.std, 700 * p.std, rtol=1e-3, atol=0.5)
    assert q.rmse(y_far) == pytest.approx(700 * p.rmse(y), rel=1e-2)
    assert q.lpp(y_far) == pytest.approx(p.lpp(y) - np.log(700), abs=1e-2)
    assert q.coverage(y_far) == pytest.approx(p.coverage(y), abs=0.05)


def test_map_values_are_set_and_shared():
    x, y = regression()
    net = sps.mlp([3, 4, 4, 2])
    weights = sps.map_estimate(sps.BNN(net), x, y, num_steps=200, standardize=False, progress=False)
    own = sps.fit(sps.BNN(net, values=sps.MAP(num_steps=200)), x, y, num_steps=2, standardize=False, **QUICK)
    for name, mask in own.bnn.masks.items():
        assert torch.equal(own.bnn.fixed[name][~mask], weights[name][~mask])
    shared = sps.BNN(net, scheme=sps.Light(), values=sps.Given(weights))
    assert torch.equal(
        shared.fixed["2.weight"][~shared.masks["2.weight"]], weights["2.weight"][~shared.masks["2.weight"]]
    )
    # It is a maximum: no random direction goes up by more than rounding.
    data = sps.map_estimate(sps.BNN(net), x, y, num_steps=3000, standardize=False, progress=False)
    log_joint = _log_joint(net, x, y)
    best = log_joint(data)
    assert best > log_joint(weights)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        moved = {name: value + 0.02 * torch.randn(value.shape, generator=generator) for name, value in data.items()}
        assert log_joint(moved) < best


def test_constants_that_are_known_stay(tmp_path):
    """Wherever they come from: `set_fixed`, an earlier fit, a file; who wants others says so."""
    x, y = regression()
    scheme, values = sps.Random(like=0.5), sps.MAP(num_steps=30)
    trained = {name: torch.randn(t.shape) for name, t in sps.mlp([3, 4, 4, 2]).named_parameters()}
    bnn = small(scheme=scheme, values=values)
    assert bnn.awaits_map
    bnn.set_fixed(sps.Given(trained))
    assert not bnn.awaits_map
    fit = sps.fit(bnn, x, y, num_steps=2, **QUICK)
    for name, mask in bnn.masks.items():
        assert torch.equal(fit.bnn.fixed[name], torch.where(mask, 0.0, trained[name]))

    first = sps.fit(small(scheme=scheme, values=values), x, y, num_steps=2, **QUICK)
    first.save(tmp_path)
    loaded = sps.load(tmp_path, sps.mlp([3, 4, 4, 2]))
    again = [sps.fit(one.bnn, x, y + 1, num_steps=2, map_steps=5, seed=7, **QUICK) for one in (first, loaded)]
    for name, value in first.bnn.fixed.items():
        assert all(torch.equal(one.bnn.fixed[name], value) for one in again)
    assert torch.equal(again[0].guide.loc, again[1].guide.loc)  # a file changes nothing
    many = sps.fit(first.bnn, x, y, num_steps=2, map_steps=5, replicas=2, **QUICK)
    assert all(torch.equal(one.bnn.fixed["2.weight"], first.bnn.fixed["2.weight"]) for one in many)

    renewed = first.bnn.copy()
    renewed.set_fixed(values)
    assert renewed.awaits_map
    assert not first.bnn.awaits_map
    other = sps.fit(renewed, x, y + 1, num_steps=2, **QUICK)
    assert not torch.equal(other.bnn.fixed["2.weight"], first.bnn.fixed["2.weight"])


def test_constants_that_are_known_stay_when_a_fit_is_resumed(tmp_path):
    x, y = regression()
    first = sps.fit(small(values=sps.MAP(num_steps=10)), x, y, num_steps=2, **QUICK)
    options = {"num_steps": 6, "map_steps": 5, "checkpoint": tmp_path, **QUICK}
    whole = sps.fit(first.bnn, x, y, **options, callbacks=[lambda step, _: step == 2])
    assert torch.equal(sps.resume(tmp_path, first.bnn, x, y).bnn.fixed["0.weight"], first.bnn.fixed["0.weight"])
    assert torch.equal(whole.bnn.fixed["0.weight"], first.bnn.fixed["0.weight"])


def _log_joint(net, x, y):
    def value(weights):
        out = torch.func.functional_call(net, weights, (x,))
        return -((y - out) ** 2).sum() / (2 * 0.1**2) - sum((w**2).sum() for w in weights.values()) / 2

    return value


@pytest.mark.parametrize(
    "rule",
    [{}, pytest.param({"held_out": 0.4}, marks=pytest.mark.slow), {"held_out": 0.4, "noise_share": 0.1}],
)
def test_map_values_and_map_start_are_one_estimate(rule):
    x, y = regression()
    options = {"num_steps": 1, "learning_rate": 1e-9, "batch_size": 16, **QUICK}  # MAP values: start there
    model = sps.BNN(
        sps.mlp([3, 4, 4, 2]),
        sps.Heavy(),
        sps.MAP(num_steps=100, **{"held_out": 0.0, **rule}),
        likelihood=sps.Gaussian(0.3, learn=True),
    )
    fits = sps.fit(model, x, y, replicas=2, **options)
    weights = sps.map_estimate(model, x, y, num_steps=100, batch_size=16, seed=1, progress=False, **rule)
    whole = fits[1].bnn.assemble(fits[1].guide.median())
    for name, value in weights.items():  # replica 1 has seed 1
        torch.testing.assert_close(whole[name], value)
    assert abs(fits[0].bnn.likelihood.noise_scale - 0.3) > 0.01  # the noise too starts from the estimate's
    assert not torch.equal(fits[0].guide.loc, fits[1].guide.loc)


def test_start_at_the_map_and_at_given_values():
    x, y = regression()
    bnn = small()
    mapped = sps.fit(bnn, x, y, num_steps=1, init="map", map_steps=500, init_scale=1e-4, **QUICK)
    random = sps.fit(bnn, x, y, num_steps=1, init_scale=1e-4, **QUICK)
    assert mapped.losses[0] < random.losses[0]
    assert "map" in mapped.seconds
    again = sps.fit(bnn, x, y, num_steps=1, init=mapped.guide.median(), learning_rate=1e-9, **QUICK)
    torch.testing.assert_close(again.guide.loc, mapped.guide.loc)
    with pytest.raises(ValueError, match=r"init\['0.weight'\] must hold"):
        sps.fit(bnn, x, y, num_steps=1, init={"0.weight": torch.zeros(3)}, **QUICK)


def test_validation_is_tracked_and_stops_early():
    x, y = regression()
    options = {"num_steps": 400, "validation": (x[:10], y[:10]), "validate_every": 20, **QUICK}
    fit = sps.fit(small(), x[10:], y[10:], **options)
    assert [check["step"] for check in fit.validation] == list(range(20, 401, 20))
    assert {"rmse", "lpp"} <= set(fit.validation[0])
    # A learning rate this large makes scores worse at once, so that patience runs out.
    early = sps.fit(small(), x[10:], y[10:], patience=2, **options | {"learning_rate": 0.9})
    assert early.stopped.startswith("no better validation LPP in 2 checks")
    assert len(early.losses) < 400
    best = max(check["lpp"] for check in early.validation)
    assert early.predict(x[:10], 200).lpp(y[:10]) == pytest.approx(best, abs=1e-5)


def test_callbacks_see_every_step_and_may_stop():
    x, y = regression()
    seen = []

    def callback(step, losses):
        seen.append((step, losses.item()))
        return step == 4

    fit = sps.fit(small(), x, y, num_steps=100, callbacks=[callback], **QUICK)
    assert [step for step, _ in seen] == list(range(5))
    np.testing.assert_allclose([loss for _, loss in seen], fit.losses, rtol=1e-6)
    assert fit.stopped == "a callback stopped it after step 5"


def test_interrupting_returns_what_there_is():
    x, y = regression()

    def callback(step, losses):
        if step == 3:
            raise KeyboardInterrupt

    fit = sps.fit(small(), x, y, num_steps=100, callbacks=[callback], **QUICK)
    assert fit.stopped == "interrupted after step 4"
    assert len(fit.losses) == 4


def test_a_loss_that_is_not_finite_is_explained_and_the_last_state_kept():
    x, y = regression()
    bnn = sps.BNN(sps.mlp([3, 4, 4, 2], activation="identity"), sps.Unmasked(), sps.Zero(), likelihood=sps.Poisson())
    with pytest.raises(sps.NonFiniteLossError, match=r"step \d+, in the term of site 'obs'.*learning_rate") as caught:
        sps.fit(bnn, 100 * x, y.abs().round(), num_steps=50, learning_rate=10.0, **QUICK)
    fit = caught.value.fit
    assert fit.guide.loc.isfinite().all()
    assert np.isfinite(fit.losses[: caught.value.step]).all()
    assert not np.isfinite(fit.losses[caught.value.step])
    assert len(fit.losses) == caught.value.step + 1
    with pytest.warns(RuntimeWarning, match="replicas 0"):
        fits = sps.fit(bnn, 100 * x, y.abs().round(), num_steps=50, learning_rate=10.0, replicas=2, **QUICK)
    assert fits[0].guide.loc.isfinite().all()


def test_elbo_is_the_mean_loss_at_the_final_state():
    x, y = regression()
    fit = sps.fit(small(), x, y, num_steps=200, learning_rate=0.02, final_learning_rate=1e-12, **QUICK)
    draws = fit.elbo_draws(400, seed=1)
    recent = fit.losses[-40:]
    error = (draws.var() / len(draws) + recent.var() / len(recent)).sqrt().item()
    # The learning rate has decayed: the last steps are at one state, up to their drift.
    assert abs(draws.mean().item() + recent.mean()) < 4 * error + 0.02 * abs(recent.mean())
    assert fit.elbo == pytest.approx(draws.mean().item(), abs=4 * (draws.var() / 256 + draws.var() / 400).sqrt().item())


def test_elbo_with_a_term_for_each_site():
    # Ordered biases have no KL divergence in closed form, so that every site has a term of its own.
    x, y = regression()
    bnn = sps.BNN(sps.mlp([3, 4, 2]), sps.Unmasked(), sps.Zero(), sps.Gaussian(0.3), ordered_biases=True)
    fit = sps.fit(bnn, x, y, num_steps=150, learning_rate=0.02, final_learning_rate=1e-12, **QUICK)
    draws = fit.elbo_draws(400, seed=1)
    recent = fit.losses[-40:]
    error = (draws.var() / len(draws) + recent.var() / len(recent)).sqrt().item()
    assert abs(draws.mean().item() + recent.mean()) < 4 * error + 0.02 * abs(recent.mean())


def test_minibatches_see_all_data_and_scale_the_likelihood():
    x, y = regression()
    options = {"num_steps": 1000, "learning_rate": 0.02, "final_learning_rate": 1e-3, "standardize": False, **QUICK}
    full = sps.fit(small(), x, y, **options)
    mini = sps.fit(small(), x, y, batch_size=10, **options)
    assert mini.elbo == pytest.approx(full.elbo, rel=0.3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "num_steps must be a positive integer, got 0"),
        ({"num_particles": 1.5}, ValueError, "num_particles must be a positive integer, got 1.5"),
        ({"batch_size": True}, ValueError, "batch_size"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be a positive finite number, got nan"),
        ({"init": "best"}, ValueError, "init must be 'random', 'map'"),
        ({"seed": -1}, ValueError, "seed must be a non-negative integer"),
        ({"replicas": 0}, ValueError, "replicas"),
        ({"x": torch.zeros(40, 2)}, ValueError, "x must have 3 features a row, as the network has, got 2"),
        ({"x": torch.zeros(40)}, ValueError, r"x must have shape \(rows, features\)"),
        ({"y": torch.zeros(39, 2)}, ValueError, "y must have as many rows as x, 40, got 39"),
        ({"y": torch.zeros(40, 3)}, ValueError, r"y must have shape \(rows, 2\)"),
        ({"validation": torch.zeros(3)}, ValueError, "validation must be a pair"),
        ({"validation": (torch.zeros(3, 1), torch.zeros(3, 2))}, ValueError, "validation x must have 3 features"),
        ({"bnn": nn.Linear(3, 2)}, TypeError, "bnn must be a pyro_sps.BNN"),
    ],
)
def test_bad_arguments_are_named_before_any_work(change, error, message):
    x, y = regression()
    arguments = {"bnn": small(), "x": x, "y": y, "num_steps": 10, **QUICK, **change}
    with pytest.raises(error, match=message):
        sps.fit(**arguments)


def test_nothing_stochastic_is_an_error():
    bnn = sps.BNN(
        nn.Linear(3, 2, bias=False), scheme={"weight": torch.zeros(2, 3, dtype=torch.bool)}, values=sps.Zero()
    )
    with pytest.raises(ValueError, match="every weight is fixed"):
        sps.fit(bnn, *regression(), num_steps=3, **QUICK)


def test_progress_bar_is_silent_when_asked(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sps.fit(small(), *regression(), num_steps=3, **QUICK)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    ("replicas", "activations", "device", "expected"),
    [
        (10, 1, "cpu", 10),
        (10, 1 << 19, "cpu", 1),
        (10, 10**9, "cpu", 1),
        (10, 1 << 19, "cuda", 10),  # the device need not be there
        (10, 1 << 25, "cuda:1", 2),
        (10, 10**9, "cuda", 1),
    ],
)
def test_replicas_at_once(replicas, activations, device, expected):
    assert loop.replicas_at_once(replicas, activations, device) == expected


def test_replicas_at_once_divide_the_replicas():
    for replicas in range(1, 20):
        for most in range(1, 20):
            size = loop.replicas_at_once(replicas, loop.ACTIVATIONS_AT_ONCE // most)
            assert replicas % size == 0
            assert size <= most
            assert not any(replicas % other == 0 for other in range(size + 1, min(most, replicas) + 1))


def test_long_fits_are_compiled_and_short_ones_are_not():
    toy, energy = (sps.BNN(sps.mlp(widths)) for widths in ([1, 50, 50, 1], [8, 50, 50, 2]))
    assert loop.pays_to_compile(10_000, 16 * 30, toy)
    assert not loop.pays_to_compile(3_000, 16 * 30, toy)
    assert loop.pays_to_compile(5_000, 16 * 512, energy)
    assert not loop.pays_to_compile(1_000, 16 * 512, energy)


@pytest.mark.parametrize("init", ["random", "map"])
def test_map_values_are_each_replicas_own(init):
    x, y = regression()
    bnn = small(values=sps.MAP(num_steps=30))
    options = {"num_steps": 30, "map_steps": 20, "init": init, **QUICK}
    fits = sps.fit(bnn, x, y, replicas=3, **options)
    constants = [fit.bnn.fixed["0.weight"] for fit in fits]
    assert not torch.equal(constants[0], constants[1])
    for replica, fit in enumerate(fits):
        alone = sps.fit(bnn, x, y, seed=replica, **options)
        assert torch.equal(alone.bnn.fixed["0.weight"], constants[replica])
        np.testing.assert_allclose(fit.losses, alone.losses, rtol=1e-4)


# --- MAP values by early stopping ------------------------------------------------------------------


def target_sets(rows=80):
    """Inputs, and targets that are noise in the first set and a function with less noise in the second."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, rows, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, rows, 1, generator=generator, dtype=torch.float64)
    return x, torch.stack([noise[0], x[1].sum(1, keepdim=True) + 0.1 * noise[1]])


def estimates(x, y, held_out=0.25, num_steps=200, batch=32, likelihood=None, seed=0, replicas=1, share=0.5):
    """MAP estimates of the weights and of the likelihood's parameters, one a replica."""
    net = sps.mlp([3, 20, 20, 1], dtype=torch.float64)
    likelihood = sps.Gaussian(0.3, learn=True) if likelihood is None else likelihood
    bnn = sps.BNN(net, likelihood=likelihood, prior_scale=10.0)  # a prior that lets it fit noise
    members = members_of(bnn, x, y, FitSettings(replicas=replicas if replicas > 1 else None))
    return maximum.map_weights(members, sps.MAP(num_steps, held_out=held_out, noise_share=share), batch, seed, False)


@pytest.fixture
def stops(monkeypatch):
    """The steps of the replicas at which estimates are taken, a list an optimisation."""
    steps, make = [], maximum._StopAt.__init__

    def noting(self, last, own):
        steps.append(list(own))
        make(self, last, own)

    monkeypatch.setattr(maximum._StopAt, "__init__", noting)
    return steps


def test_early_stopping_predicts_new_rows_better_where_all_is_noise(stops):
    x, y = (one[0] for one in target_sets())
    (early,), (late,) = (estimates(x, y, held_out, num_steps=1000, batch=80) for held_out in (0.25, 0.0))
    assert stops == [[stops[0][0]], [1000]]
    assert stops[0][0] < 1000 / 4
    generator = torch.Generator().manual_seed(2)
    x_new, y_new = (torch.randn(2000, width, generator=generator, dtype=torch.float64) for width in (3, 1))

    def rmse(estimate):
        weights = {name: value for name, value in estimate.items() if name[0].isdigit()}
        return (torch.func.functional_call(sps.mlp([3, 20, 20, 1]), weights, (x_new,)) - y_new).square().mean().sqrt()

    assert rmse(early) < 1.2  # 1 is the best, of the prediction 0
    assert rmse(late) > rmse(early) + 0.1
    # The noise is that of the 20 held-out rows, of whose variance half is ascribed to it, not of those that are fitted.
    noise = {id(one): one["likelihood.scale"].exp().item() for one in (early, late)}
    assert noise[id(early)] == pytest.approx(0.5**0.5, rel=3 / (2 * 20) ** 0.5)
    assert noise[id(late)] < 0.5


class LearnedLaplace(Likelihood):
    """A likelihood of the user's, with a parameter that the library does not know."""

    real_valued = True

    def __init__(self):
        super().__init__()
        self.width = PyroParam(torch.tensor(0.7, dtype=torch.float64), constraint=constraints.positive)

    def elementwise(self, outputs):
        return dist.Laplace(outputs, self.width)


@pytest.mark.parametrize("likelihood", [None, LearnedLaplace()], ids=["Gaussian", "own"])
def test_each_replica_stops_at_a_step_of_its_own_as_alone(stops, likelihood):
    x, y = target_sets()
    pyro.clear_param_store()
    together = estimates(x, y, replicas=2, likelihood=likelihood)
    assert not list(pyro.get_param_store().keys())
    (alone,) = estimates(x[1], y[1], seed=1, likelihood=likelihood)
    assert stops == [[stops[0][0], stops[1][0]], stops[1]]
    assert stops[0][0] < stops[0][1]  # noise needs fewer steps than a function
    same = [alone]
    if likelihood is None:  # the same rows are held out whether or not replicas share them
        same.append(estimates(x[1], y[1], replicas=2)[1])
        assert stops[2][1] == stops[1][0]
    for one in same:
        assert one.keys() == together[1].keys()
        for name, value in together[1].items():
            torch.testing.assert_close(one[name], value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_noise_of_map_values_is_a_share_of_the_held_out_error(stops, share):
    """The first optimisation holds it there, the second at what it was at the best step."""
    x, y = (one[1] for one in target_sets())
    held, make = [], maximum._EarlyStop.look

    def noting(self, step, state):
        make(self, step, state)
        weights = {site.name: self.mean[0][: self.problem.size][site.start : site.stop] for site in self.problem.sites}
        outputs = self.members[0].bnn.function(self.members[0].bnn.assemble(weights), self.data[0][0])
        error = (outputs - self.data[0][1]).square().mean()
        (name,) = self.held
        now = self.layout.unpack(state.params)[name].exp().item()
        assert now == pytest.approx((share * error).sqrt().item(), rel=1e-9)
        held.append(now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maximum._EarlyStop, "look", noting)
        (estimate,) = estimates(x, y, num_steps=300, share=share)
    (best,) = stops[0]
    assert len(held) == 6
    assert estimate["likelihood.scale"].exp().item() == pytest.approx(held[best // 50 - 1], rel=1e-9)


def test_map_values_are_means_over_the_last_steps():
    """With the weights that the document gives: each tenth step's, the newest ones most."""
    averaging = maximum._StopAt(1000, [1000])
    states = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step in range(10, 1001, 10):
        averaging(step, State.start(states[step - 1 :][:1].clone()))
    expected, decays = torch.zeros(3, dtype=torch.float64), [min(0.95, n / (n + 6)) for n in range(100)]
    for n, decay in enumerate(decays):
        expected = decay * expected + (1 - decay) * states[10 * n + 9]
    torch.testing.assert_close(averaging.best[0], expected)
    # No start weighs anything, and none of all steps weighs more than a sixth after the first.
    assert decays[0] == 0
    assert np.prod(decays[1:]) < 1e-3


def test_fewer_than_ten_rows_are_not_held_out(stops):
    x, y = (one[1] for one in target_sets())
    for rows, held in ((39, False), (40, True)):
        (estimate,) = estimates(x[:rows], y[:rows], held_out=0.25, num_steps=5)
        assert stops.pop() == [5]
        # Five steps of 0.01 cannot move a learned log scale by more than 0.05.
        assert (abs(estimate["likelihood.scale"].item() - math.log(0.3)) > 0.1) == held
    with pytest.raises(ValueError, match=r"held_out must be in \[0, 1\), got 1.0"):
        sps.map_estimate(sps.BNN(sps.mlp([3, 1])), x, y, held_out=1.0)


@pytest.mark.parametrize("rows", [8, 60])
def test_noise_does_not_depend_on_inputs_while_map_values_are_looked_for(rows):
    """With early stopping and without: a network would explain by noise what its means have not learned yet."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    y = x.sum(1, keepdim=True).sin() + 0.1 * torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    likelihood = sps.HeteroscedasticGaussian()
    bnn = sps.BNN(sps.mlp([3, 4, 2], dtype=torch.float64), sps.Random(like=0.5), sps.MAP(num_steps=60), likelihood)
    fit = sps.fit(bnn, x, y, num_steps=1, learning_rate=1e-9, **QUICK)
    weights = fit.bnn.assemble(fit.guide.median())
    assert torch.equal(weights["2.weight"][1].abs() < 1e-7, torch.ones(4, dtype=torch.bool))  # of the noise's output
    assert (weights["2.weight"][0].abs() > 1e-3).all()
    assert weights["2.bias"][1].abs() > 1e-3  # the noise's scale is learned
    free = sps.map_estimate(bnn, x, y, num_steps=60, progress=False)  # that of the model as it is
    assert (free["2.weight"].abs() > 1e-3).all()
