"""State of the process and of the thread that must not change the numbers of a fit."""

from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import pytest
import torch
from grids import few_of
from pyro import poutine
from torch import nn

import pyro_sps as sps

X = torch.linspace(-1, 1, 24).reshape(-1, 2)
Y = X.sum(1, keepdim=True).sin()
NET = sps.mlp([2, 4, 3, 1])


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


STATES = {
    "default dtype": lambda: default_dtype(torch.float64),
    "default device": lambda: default_device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "mask": lambda: poutine.mask(mask=False),
    "scale": lambda: poutine.scale(scale=0.1),
    "condition": lambda: poutine.condition(data={"0.bias": torch.ones(4), "obs": Y + 1}),
    "substitute": lambda: poutine.substitute(data={"likelihood.scale": torch.tensor(9.0)}),
    "trace": poutine.trace,
    "seed": lambda: poutine.seed(rng_seed=3),
    "plate": lambda: pyro.plate("outer", 3, dim=-2),
    "module-local parameters": lambda: pyro.settings.context(module_local_params=True),
}
MODELS = {
    "MAP values": {"scheme": sps.Random(like=0.5), "values": sps.MAP(num_steps=20)},
    "constants": {"scheme": sps.Heavy(), "values": sps.Constant(1.0, learn=True)},
    "draws": {"scheme": sps.Heavy(), "values": sps.RandomConstant(), "prior": dist.Laplace(0.0, 1.0)},
    "ordered": {"scheme": sps.Unmasked(), "values": sps.Zero(), "ordered_biases": True},
    "ladder": {"scheme": sps.Heavy(), "values": sps.Ladder()},
}


def numbers(options, tmp_path, compile=False):
    """All that is worked out of data, in whatever state this is called."""
    bnn = sps.BNN(NET, **options, seed=4)
    fit = sps.fit(
        bnn, X, Y, num_steps=8, num_particles=2, batch_size=6, validation=(X, Y), validate_every=4, init="map",
        map_steps=10, checkpoint=tmp_path / "run", progress=False, compile=compile,
    )  # fmt: skip
    yield fit.guide.loc
    yield fit.guide.scale
    yield fit.bnn.likelihood.noise_scale
    yield torch.from_numpy(fit.losses)
    yield from fit.bnn.fixed.values()
    yield torch.tensor([check["lpp"] for check in fit.validation], dtype=torch.float64, device="cpu")
    resumed = sps.resume(tmp_path / "run", bnn, X, Y, validation=(X, Y), progress=False)
    fit.save(tmp_path)
    for one in (fit, resumed, sps.load(tmp_path, NET, prior=options.get("prior"))):
        prediction = one.predict(X, 20)
        yield from (prediction.mean, prediction.std, prediction.draws, prediction.log_prob(Y), *prediction.interval())
    yield fit.elbo_draws(5)
    yield resumed.elbo_draws(5)
    yield from sps.map_estimate(bnn, X, Y, num_steps=5, progress=False).values()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    known = {}

    def of(name):
        if name not in known:
            known[name] = list(numbers(MODELS[name], tmp_path_factory.mktemp("plain")))
        return known[name]

    return of


CASES = [
    (state, model)
    for state in STATES
    for model in MODELS
    if state == "default dtype" or model in ("constants", "MAP values")
]
QUICK = [(state, "constants") for state in ("default device", "inference mode", "mask", "condition", "seed", "plate")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", few_of(CASES, ("default dtype", "MAP values"), *QUICK), ids=" with ".join)
def test_a_fit_is_the_same_in_every_state(plain, tmp_path, case):
    state, model = case
    expected = plain(model)
    with STATES[state]():
        found = list(numbers(MODELS[model], tmp_path))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
        assert one.device == other.device


@pytest.mark.filterwarnings("ignore")
def test_what_was_made_in_a_state_works_out_of_it():
    with torch.inference_mode():
        x, y, net = X.clone(), Y.clone(), sps.mlp([2, 4, 3, 1])
        bnn = sps.BNN(net, **MODELS["constants"], seed=4)
        own = sps.BNN(net, {"0.bias": torch.zeros(4, dtype=torch.bool)}, {"0.bias": torch.ones(4)})
        fit = sps.fit(own, x, y, num_steps=2, progress=False)
    assert sps.fit(bnn, x, y, num_steps=2, progress=False).elbo == sps.fit(bnn, X, Y, num_steps=2, progress=False).elbo
    assert fit.elbo == sps.fit(own, x, y, num_steps=2, progress=False).elbo
    assert isinstance(sps.fit(fit.bnn, X, Y, num_steps=2, progress=False), sps.Fit)


def test_the_state_is_left_as_it_was():
    before = torch.get_default_dtype()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), poutine.trace() as tracer:
        sps.fit(sps.BNN(NET, sps.Unmasked(), sps.Zero()), X, Y, num_steps=2, progress=False).predict(X).mean.sum()
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_grad_enabled()
        pyro.sample("mine", dist.Normal(0.0, 1.0))
    assert [name for name in tracer.trace.nodes if not name.startswith("_")] == ["mine"]
    assert torch.get_default_dtype() == before


def test_chunks_of_predictions_leave_gradients_on():
    fit = sps.fit(sps.BNN(NET, sps.Unmasked(), sps.Zero()), X, Y, num_steps=2, progress=False)
    prediction = fit.predict(X, 5)
    for chunks in (
        prediction.draws_by_rows(),
        prediction.function_draws_by_rows(),
        prediction.log_likelihoods_by_rows(Y),
    ):
        for _ in chunks:
            assert torch.is_grad_enabled()


def test_the_dtype_of_values_by_site_is_kept():
    x = X.double()
    bnn = sps.BNN(nn.Linear(2, 1, bias=False).double(), sps.Unmasked(), sps.Zero())
    given = torch.tensor([[1 / 3, 2 / 3]], dtype=torch.float64)
    options = {"num_steps": 1, "learning_rate": 1e-30, "progress": False}
    fit = sps.fit(bnn, x, x[:, :1], init={"weight": given}, **options)
    assert torch.equal(fit.guide.loc, given.flatten())
