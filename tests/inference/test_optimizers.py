"""IVON against its authors' implementation and exact posteriors; schedules, accumulation and averages."""

import numpy as np
import pytest
import torch
from torch import nn

import pyro_sps as sps
from pyro_sps.inference import optimizers
from pyro_sps.inference.loop import decaying_rates

QUICK = {"num_particles": 2, "progress": False}
NOISE, PRIOR = 0.5, 0.7


def data(rows=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    return x, x.prod(1, keepdim=True)


def network():
    return sps.mlp([2, 4, 1], dtype=torch.float64)


def test_ivon_equals_its_authors_implementation(monkeypatch):
    """The same draws, minibatches and settings, with a prior of one scale and nothing fixed, in double precision."""
    reference = pytest.importorskip("ivon")
    steps, particles, batch, rate, beta2, kl_weight = 12, 3, 4, 0.2, optimizers.IVON_BETA2, 0.5
    (x, y), net = data(), network()
    bnn = sps.BNN(net, sps.Unmasked(), sps.Zero(), sps.Gaussian(NOISE), prior_scale=PRIOR)
    options = {"num_particles": particles, "batch_size": batch, "standardize": False, "progress": False}
    options |= {"learning_rate": rate, "final_learning_rate": rate / 2, "kl_weight": kl_weight, "seed": 3}
    # No step at all shows where the fit starts.
    start = sps.fit(bnn, x, y, num_steps=1, **{**options, "learning_rate": 1e-300})
    scales = {site.name: site.view(start.guide.scale.detach()) for site in start.guide.sites}
    fit = sps.fit(bnn, x, y, num_steps=steps, optimizer="ivon", **options)

    own = {site.name: site.view(start.guide.loc.detach()) for site in start.guide.sites}
    parameters = {name: own[name].reshape(value.shape).clone() for name, value in net.named_parameters()}
    for name, value in net.named_parameters():
        value.data = parameters[name]
    num_data = len(x) / kl_weight
    decay = 1 / (num_data * PRIOR**2)
    by_name = dict(net.named_parameters())
    groups = [{"params": [by_name[tensor.name]]} for tensor in bnn.topology.tensors]
    other = reference.IVON(groups, lr=rate, ess=num_data, weight_decay=decay, beta1=0.9, beta2=beta2, rescale_lr=False)
    for tensor, group in zip(bnn.topology.tensors, other.param_groups, strict=True):
        group["hess"] = 1 / (num_data * scales[tensor.name].flatten().square()) - decay
    rates = decaying_rates(rate, rate / 2, steps)
    noises = sps.data.arrays.noise_stream([3], (particles, len(start.guide.loc)), x)
    batches = sps.data.arrays.minibatches([3], len(x), batch)
    for step, noise, rows in zip(range(steps), noises, batches, strict=False):
        for group in other.param_groups:
            group["lr"] = rates(step)
        for draw in noise[0]:
            monkeypatch.setattr(torch, "randn", taking_from(draw, torch.randn))
            with other.sampled_params(train=True):
                other.zero_grad()
                loss = (net(x[rows[0]]) - y[rows[0]]).square().sum(1).mean() / (2 * NOISE**2)
                loss.backward()
            monkeypatch.undo()
        other.step()
    loc = torch.cat([by_name[t.name].detach().flatten() for t in bnn.topology.tensors])
    scale = torch.cat([(num_data * (g["hess"] + decay)).rsqrt() for g in other.param_groups])
    torch.testing.assert_close(fit.guide.loc.detach(), loc, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(fit.guide.scale.detach(), scale, rtol=1e-9, atol=0)


def taking_from(draw, randn):
    """Torch's randn, which takes its numbers from a vector, in order."""
    place = [0]

    def take(count, **_):
        place[0] += count
        return draw[place[0] - count : place[0]].clone()

    return take


def test_ivon_reaches_the_exact_posterior_of_a_linear_model():
    generator = torch.Generator().manual_seed(1)
    x = torch.linalg.qr(torch.randn(12, 2, generator=generator, dtype=torch.float64))[0] * torch.tensor([2.0, 3.0])
    y = x @ torch.tensor([[1.0], [-0.5]], dtype=torch.float64) + 0.3
    net = nn.Linear(2, 1, bias=False).double()
    bnn = sps.BNN(net, sps.Unmasked(), sps.Zero(), sps.Gaussian(NOISE), prior_scale=PRIOR)
    options = {"num_particles": 8, "standardize": False, "progress": False, "final_learning_rate": 0.01}
    fit = sps.fit(bnn, x, y, num_steps=1000, optimizer="ivon", **options)
    precision = PRIOR**-2 + x.square().sum(0) / NOISE**2
    mean, sd = (x * y).sum(0) / NOISE**2 / precision, precision.rsqrt()
    # Means scatter by √(rate / (2 particles)) standard deviations, of the last some hundred steps' rate.
    assert ((fit.guide.loc - mean).abs() < 4 * (0.02 / 16) ** 0.5 * sd).all()
    torch.testing.assert_close(
        fit.guide.scale.detach(), sd, rtol=0.1, atol=0
    )  # of precisions, √(2 (1 - β₂) / particles) / 2
    assert type(fit.guide) is sps.AutoSPSNormal


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ({"prior": sps.Hierarchical()}, {}, "optimizer='ivon' needs normal priors"),
        ({"ordered_biases": True}, {}, "optimizer='ivon' needs normal priors"),
        ({"prior": torch.distributions.Laplace(0.0, 1.0)}, {}, "optimizer='ivon' needs normal priors"),
        ({}, {"optimizer": "sgd"}, "optimizer must be 'adam' or 'ivon', got 'sgd'"),
        ({}, {"schedule": "linear"}, "schedule must be 'exponential' or 'cosine'"),
        ({}, {"warmup_steps": 5}, "warmup_steps must be an integer from 0 on"),
        ({}, {"average_steps": 6}, "average_steps must be an integer from 0 on"),
        ({}, {"average_steps": 2, "patience": 3}, "average_steps has no effect with patience"),
        ({}, {"accumulate": 2, "batch_size": None}, "accumulate has no effect without batch_size"),
        ({}, {"precision": "16"}, "precision must be None or 'bf16-mixed', got '16'"),
        ({}, {"precision": "bf16-mixed"}, "needs a network of dtype float32"),
        ({"net": sps.mlp([2, 4, 1])}, {"precision": "bf16-mixed"}, "needs an accelerator that .*, got device 'cpu'"),
        ({}, {"accumulate": 4, "batch_size": 5}, "accumulate=4 batches of 5 rows are more than the 12 rows"),
    ],
)
def test_what_cannot_be_is_named_before_the_first_step(monkeypatch, model, options, words):
    from pyro_sps.inference import loop

    monkeypatch.setattr(loop, "make_step", lambda *_: pytest.fail("work was done"))
    x, y = data()
    bnn = sps.BNN(**{"net": network(), "scheme": sps.Unmasked(), "values": sps.Zero(), **model})
    with pytest.raises(ValueError, match=words):
        sps.fit(bnn, x, y, **{"num_steps": 5, "optimizer": "ivon", **QUICK, **options})


def test_schedules():
    rates = decaying_rates(0.1, 0.02, 11, "cosine", 0)
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=10, eta_min=0.02)
    for step in range(11):
        assert scheduler.get_last_lr()[0] == pytest.approx(rates(step))
        sgd.step()
        scheduler.step()
    assert rates(50) == pytest.approx(0.02)
    for schedule, last in (("cosine", 0.001), ("exponential", 0.03)):
        rates = decaying_rates(0.1, None, 14, schedule, 4)
        assert [rates(step) for step in range(5)] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
        assert rates(13) == pytest.approx(last)
        assert all(rates(step) > rates(step + 1) for step in range(4, 13))


@pytest.mark.parametrize("optimizer", ["adam", "ivon"])
def test_accumulated_batches_are_one_of_all_their_rows(optimizer):
    x, y = data(24)
    bnn = sps.BNN(network(), sps.Unmasked(), sps.Constant(1.0))
    options = {**QUICK, "num_steps": 6, "optimizer": optimizer}
    whole = sps.fit(bnn, x, y, batch_size=12, **options)
    parts = sps.fit(bnn, x, y, batch_size=4, accumulate=3, **options)
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-10)
    torch.testing.assert_close(parts.guide.loc, whole.guide.loc, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(parts.guide.scale, whole.guide.scale, rtol=1e-8, atol=0)
    if optimizer == "adam":  # all rows in two batches, replicas with data of their own
        stacked = {**options, "replicas": 2}
        pair = (torch.stack([x, x.flip(0)]), torch.stack([y, y.flip(0)]))
        whole = sps.fit(bnn, *pair, batch_size=None, **stacked)
        parts = sps.fit(bnn, *pair, batch_size=12, accumulate=2, **stacked)
        np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-10)


def test_means_are_averaged_over_the_last_steps(tmp_path):
    x, y = data()
    bnn = sps.BNN(network(), sps.Unmasked(), sps.Zero())
    options = {**QUICK, "learning_rate": 0.1, "final_learning_rate": 0.1, "num_steps": 7}
    single = [sps.fit(bnn, x, y, **{**options, "num_steps": n}).guide for n in (5, 6, 7)]
    fit = sps.fit(bnn, x, y, average_steps=3, **options)
    torch.testing.assert_close(fit.guide.loc, torch.stack([guide.loc for guide in single]).mean(0))
    assert torch.equal(fit.guide.scale, single[-1].scale)
    # A checkpoint in the middle of them, and more steps than there were to be.
    sps.fit(bnn, x, y, average_steps=3, **options, checkpoint=tmp_path, callbacks=[lambda step, _: step == 5])
    more = sps.resume(tmp_path, bnn, x, y, num_steps=8, progress=False)
    last = sps.fit(bnn, x, y, **{**options, "num_steps": 8}).guide
    torch.testing.assert_close(more.guide.loc, (single[2].loc + last.loc) / 2)


def test_ivon_goes_on_resumes_and_fits_replicas(tmp_path):
    x, y = data()
    bnn = sps.BNN(network(), sps.Unmasked(), sps.Constant(1.0))
    options = {**QUICK, "optimizer": "ivon", "final_learning_rate": 0.1}
    whole = sps.fit(bnn, x, y, num_steps=8, **options, replicas=2)
    first = sps.fit(bnn, x, y, num_steps=5, **options, replicas=2, checkpoint=tmp_path)
    for again in (
        sps.fit(bnn, x, y, num_steps=3, start=first, **options, replicas=2),
        sps.resume(tmp_path, bnn, x, y, num_steps=8, progress=False),
    ):
        for one, other in zip(whole, again, strict=True):
            assert torch.equal(one.guide.loc, other.guide.loc)
            assert torch.equal(one.guide.scale, other.guide.scale)
            assert torch.equal(one.bnn.likelihood.noise_scale, other.bnn.likelihood.noise_scale)
    more = sps.fit(bnn, x[:6], y[:6], num_steps=1, start=first, **{**options, "learning_rate": 1e-300}, replicas=2)
    torch.testing.assert_close(more[0].guide.loc, first[0].guide.loc)
    assert ((more[0].guide.scale / first[0].guide.scale).log().abs() < 0.1).all()  # of one step, not of half the rows
    single = sps.fit(bnn, x, y, num_steps=8, **options, seed=1)
    torch.testing.assert_close(whole[1].guide.loc, single.guide.loc)


def test_mixed_precision_is_that_of_products_alone(monkeypatch):
    """On a CPU, where it is refused, the program is the same but for its device."""
    from pyro_sps.inference import effects, program

    programs = []
    record = program._record
    monkeypatch.setattr(program, "_record", lambda *args: programs.append(record(*args)) or programs[-1])
    monkeypatch.setattr(effects, "_require_mixed", lambda *_: None)
    x, y = (value.float() for value in data())
    bnn = sps.BNN(sps.mlp([2, 4, 1]), sps.Unmasked(), sps.Zero())
    full = sps.fit(bnn, x, y, num_steps=5, **QUICK)
    mixed = sps.fit(bnn, x, y, num_steps=5, precision="bf16-mixed", **QUICK)
    assert ["torch.bfloat16" in one.code for one, _ in programs] == [False, True]
    assert mixed.guide.loc.dtype == mixed.guide.scale.dtype == torch.float32
    np.testing.assert_allclose(mixed.losses, full.losses, rtol=0.05)
    assert not np.array_equal(mixed.losses, full.losses)
