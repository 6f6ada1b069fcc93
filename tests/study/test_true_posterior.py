"""The study of true posteriors: evidence, modes, records and a run of next to nothing."""

import csv
import itertools
import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pyro_sps as sps
from pyro_sps.model.target import Target
from pyro_sps.network.trace import trace
from pyro_sps.study import evidence, modes, records, true_posterior
from pyro_sps.symmetry.report import Move


def random_weights(topology, seed, batch=()):
    generator = torch.Generator().manual_seed(seed)
    return {t.name: torch.randn((*batch, *t.shape), generator=generator, dtype=torch.float64) for t in topology.tensors}


# --- evidence --------------------------------------------------------------------------------------


def test_evidence_of_a_linear_gaussian_model():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(15, 4, generator=generator, dtype=torch.float64)
    y = x.sum(1, keepdim=True) + 0.5
    mask, fixed = torch.tensor([[True, True, False, True]]), torch.tensor([[0.0, 0.0, 1.5, 0.0]], dtype=torch.float64)
    bnn = sps.BNN(
        nn.Linear(4, 1).double(),
        scheme={"weight": mask},
        values=sps.Given({"weight": fixed}),
        likelihood=sps.Gaussian(0.4),
        prior_scale=1.3,
    )
    design = torch.cat([x[:, mask[0]], torch.ones(15, 1, dtype=torch.float64)], 1)
    covariance = 1.3**2 * design @ design.T + 0.4**2 * torch.eye(15, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(1.5 * x[:, 2], covariance).log_prob(y[:, 0]).item()
    found = evidence.log_evidence(Target.of(bnn, x, y), num_particles=300, num_runs=8)
    assert abs(found.log_z - exact) < 4 * found.standard_error
    assert found.standard_error < 0.1
    # The particles are draws of the posterior.
    posterior = torch.linalg.inv(design.T @ design / 0.4**2 + torch.eye(4, dtype=torch.float64) / 1.3**2)
    mean = posterior @ design.T @ (y[:, 0] - 1.5 * x[:, 2]) / 0.4**2
    runs = found.particles.reshape(8, 300, 4).mean(1)  # particles of one run are dependent, runs are not
    assert ((runs.mean(0) - mean).abs() < 5 * runs.std(0) / math.sqrt(8)).all()


def test_ordered_biases_do_not_change_the_evidence():
    # The ordered prior is n! times the part of the plain one that is in order, and all n! orders have equal evidence.
    x = torch.linspace(-2, 2, 10, dtype=torch.float64).unsqueeze(1)
    found = []
    for ordered in (False, True):
        net = sps.mlp([1, 3, 1], dtype=torch.float64)
        bnn = sps.BNN(net, scheme=sps.Unmasked(), likelihood=sps.Gaussian(0.4), ordered_biases=ordered)
        found.append(evidence.log_evidence(Target.of(bnn, x, x.sin()), num_particles=150, num_runs=5))
    error = math.hypot(*(one.standard_error for one in found))
    assert abs(found[0].log_z - found[1].log_z) < 4 * error < 1.0


def test_evidence_is_seeded_and_checks_its_arguments():
    bnn = sps.BNN(nn.Linear(1, 1), scheme=sps.Unmasked(), likelihood=sps.Gaussian(1.0))
    target = Target.of(bnn, torch.ones(3, 1), torch.zeros(3, 1))
    state = torch.random.get_rng_state()
    one, two, other = (evidence.log_evidence(target, num_particles=20, num_runs=2, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.runs == two.runs != other.runs
    with pytest.raises(ValueError, match="got 20, 1 and 5"):
        evidence.log_evidence(target, num_particles=20, num_runs=1)


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=30), st.floats(0, 0.999))
def test_resampling_takes_each_particle_about_as_often_as_its_weight_says(logs, offset):
    weights = torch.tensor(logs, dtype=torch.float64)
    chosen = evidence._systematic(weights, torch.tensor(offset, dtype=torch.float64))
    counts = chosen.bincount(minlength=len(logs)).double()
    assert ((counts - len(logs) * weights.softmax(0)).abs() < 1 + 1e-9).all()


def test_temperatures_keep_half_of_the_particles():
    generator = torch.Generator().manual_seed(0)
    likelihood = -100 * torch.rand(500, generator=generator, dtype=torch.float64)
    increase = evidence._increase(likelihood, 1.0)
    share = 1 / ((increase * likelihood).softmax(0).square().sum().item() * 500)
    assert share == pytest.approx(0.5, abs=1e-6)
    assert evidence._increase(likelihood, increase / 2) == increase / 2


# --- modes -----------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([[1, 3, 1], [2, 4, 3, 2], [3, 2, 2, 2, 1]]),
    st.sampled_from(["tanh", "relu"]),
    st.booleans(),
    st.data(),
)
def test_canonical_form_is_that_of_every_relabelling(widths, activation, bias, data):
    topology, function = trace(sps.mlp(widths, activation, bias, dtype=torch.float64))
    weights = random_weights(topology, data.draw(st.integers(0, 10**6)))
    images = []
    for index in topology.hidden:
        group = topology.groups[index]
        order = data.draw(st.permutations(range(group.size)))
        signs = data.draw(st.lists(st.sampled_from([1.0, -1.0] if group.odd else [1.0]), min_size=9, max_size=9))
        images += [(group.name, unit, order[unit], signs[unit]) for unit in range(group.size)]
    moved = Move(tuple(images)).apply(topology, weights)
    form, other = (modes.canonical_form(topology, one) for one in (weights, moved))
    x = torch.linspace(-1, 1, 5 * widths[0], dtype=torch.float64).reshape(5, -1)
    torch.testing.assert_close(function(form, x), function(weights, x))
    for name, value in form.items():
        torch.testing.assert_close(value, other[name])


def test_canonical_form_of_batches_and_of_another_network():
    topology = sps.Topology.of(sps.mlp([2, 4, 3, 1]))
    batch = random_weights(topology, 0, (2, 5))
    form = modes.canonical_form(topology, batch)
    for i, j in itertools.product(range(2), range(5)):
        one = modes.canonical_form(topology, {name: value[i, j] for name, value in batch.items()})
        assert all(torch.equal(value, form[name][i, j]) for name, value in one.items())
    assert not torch.allclose(form["0.weight"][0, 0], form["0.weight"][0, 1])


def sharp_target(**options):
    """A 1-2-1 network and data that its own weights explain, which have no symmetry."""
    net = sps.mlp([1, 2, 1], bias=False, dtype=torch.float64)
    truth = {"0.weight": torch.tensor([[0.5], [2.0]]).double(), "2.weight": torch.tensor([[1.5, -1.0]]).double()}
    topology, function = trace(net)
    x = torch.linspace(-3, 3, 60, dtype=torch.float64).unsqueeze(1)
    bnn = sps.BNN(net, **{"scheme": sps.Unmasked(), "likelihood": sps.Gaussian(0.05)} | options)
    return Target.of(bnn, x, function(truth, x)), topology, truth


def test_modes_of_draws_around_every_copy():
    target, topology, truth = sharp_target()
    generator = torch.Generator().manual_seed(0)
    draws, copies = [], 2**2 * math.factorial(2)
    for order, signs in itertools.product(itertools.permutations(range(2)), itertools.product([1.0, -1.0], repeat=2)):
        move = Move(tuple(("layer 1", unit, order[unit], signs[unit]) for unit in range(2)))
        place = target.flat({name: value.flatten() for name, value in move.apply(topology, truth).items()})
        draws.append(place + 0.05 * torch.randn(4, 4, generator=generator, dtype=torch.float64))
    found = modes.find_modes(target, torch.cat(draws), num_steps=1500)
    assert len(found) == copies == round(math.exp(modes.log_order(target)))
    assert found.num_functions == 1
    assert found.effective == pytest.approx(copies)
    for index in range(copies):  # the draws around one copy are one mode
        assert len(set(found.labels[4 * index : 4 * index + 4].tolist())) == 1
    np.testing.assert_allclose(found.log_density, found.log_density[0], atol=1e-6)
    gradient = torch.func.grad(lambda flat: target.energy(flat).sum())(found.maxima)
    curvature = torch.autograd.functional.hessian(target.energy, found.maxima[0]).diagonal()
    assert (gradient.abs() < 0.05 * curvature.sqrt()).all()  # nearer to a maximum than a twentieth of its width


def test_order_of_what_is_left():
    for options, order in (({}, 8), ({"scheme": sps.Rigid(signs=True), "values": sps.Constant(1.0)}, 1)):
        assert modes.log_order(sharp_target(**options)[0]) == pytest.approx(math.log(order))
    left = {one.name: modes.log_order(Target.of(one.model(), *true_posterior.toy(one.widths[0], 5, 0))) for one in SOME}
    # 3! 2^3 and, with ordered biases, the one map that flips all signs and reverses the order.
    assert left == pytest.approx({"1-3-1 none": math.log(48), "1-3-1 ordered biases": math.log(2)})


def test_clusters_are_counted_with_the_largest_first():
    points = np.array([[0.0], [9.0], [9.01], [9.02], [5.0], [5.01]])
    assert modes._linked(points, 0.1).tolist() == [2, 0, 0, 0, 1, 1]
    assert modes._linked(points[:1], 0.1).tolist() == [0]
    assert modes.effective_number(np.array([4])) == 1.0


# --- records and the run ---------------------------------------------------------------------------

SOME = (true_posterior.EXPERIMENTS[0], true_posterior.EXPERIMENTS[4])


def test_records_survive_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "deep" / "results.jsonl"
    assert records.read(path) == []
    rows = [{"name": "±1", "value": 0.1}, {"name": "b", "value": 2}]
    for row in rows:
        records.append(path, row)
    assert records.read(path) == rows
    with path.open("a") as file:
        file.write('{"name": "c", "val')
    assert records.read(path) == rows
    path.write_text("nonsense\n" + json.dumps(rows[0]))
    with pytest.raises(ValueError, match="line 1, is not JSON: 'nonsense'"):
        records.read(path)


@pytest.mark.slow
def test_a_study_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(true_posterior, "EXPERIMENTS", SOME)
    said = []
    first = true_posterior.run(tmp_path, quick=True, limit=1, say=said.append)
    assert [row["experiment"] for row in first] == ["1-3-1 none"]
    assert said[-1].startswith("1 of 2 experiments")
    rows = true_posterior.run(tmp_path, quick=True, say=said.append)
    assert [row["experiment"] for row in rows] == [one.name for one in SOME]
    assert rows[0] == first[0]
    assert [row["symmetries_left"] for row in rows] == [48, 2]
    for row in rows:
        assert row["gap"] == pytest.approx(row["log_evidence"] - row["elbo_best"])
        assert row["gap_without_copies"] == pytest.approx(row["gap"] - row["log_symmetries_left"])
        assert row["stochastic"] == 10
        assert 1 <= row["functions"] <= row["modes"] <= true_posterior.QUICK.climbs + 5
        assert row["elbo_best"] >= row["elbo_mean"]
    before = (tmp_path / "results.jsonl").read_text()
    assert true_posterior.run(tmp_path, quick=True, say=said.append) == rows
    assert (tmp_path / "results.jsonl").read_text() == before
    assert (
        true_posterior.run(tmp_path, quick=True, seed=1, limit=0, say=said.append) == []
    )  # of that seed there is none
    with (tmp_path / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(line["gap"]) for line in table] == pytest.approx([row["gap"] for row in rows], rel=1e-5)
    assert (tmp_path / "results.md").read_text().count("\n") == 4
    for name in ("gap", "mixing", "twins"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def made_up(name, **values):
    numbers = dict.fromkeys(("gap", "log_symmetries_left", "log_evidence_se", "rhat_weights", "rhat_functions"), 1.0)
    return {"experiment": name, "network": name.split()[0], **numbers, **values}


def test_figures_have_a_line_for_each_experiment():
    rows = [made_up("1-3-1 none", gap=8.0, log_symmetries_left=3.9), made_up("1-5-1 none", rhat_weights=1.5)]
    ax = true_posterior.gap_figure(rows).axes[0]
    assert [bar.get_width() for bar in ax.patches] == [8.0, 1.0, 3.9, 1.0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1-3-1 none", "1-5-1 none"]
    ax = true_posterior.mixing_figure(rows).axes[0]
    weights = next(line for line in ax.lines if line.get_label() == "worst weight")
    assert weights.get_xdata() == pytest.approx([1e-3, 0.5])
    assert ax.get_xscale() == "log"


def test_command_line(tmp_path):
    result = CliRunner().invoke(true_posterior.main, ["--out", str(tmp_path / "new"), "--quick", "--limit", "0"])
    assert result.exit_code == 0
    assert f"0 of {len(true_posterior.EXPERIMENTS)} experiments" in result.output
    assert CliRunner().invoke(true_posterior.main, ["--quick"]).exit_code == 2  # --out is needed
