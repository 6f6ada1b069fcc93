"""The study harness: problems, scores, jobs that are kept and gone on with, tables."""

import csv
import inspect
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import pyro_sps as sps
from pyro_sps.cli import main
from pyro_sps.network.build import mlp
from pyro_sps.network.topology import Topology
from pyro_sps.study import figures, harness, methods, problems, records, summary, table
from pyro_sps.study.harness import Run, Study, run_study
from pyro_sps.study.lowrank import low_rank
from pyro_sps.study.scores import Mixture, score

needs_data = pytest.mark.skipif("PYRO_SPS_DATA" not in os.environ, reason="PYRO_SPS_DATA names no folder of data sets")

#: Two runs of next to nothing, one of which chooses a setting.
TINY = Study(
    "tiny",
    "A study of next to nothing",
    ("toy",),
    (
        Run("none", options={"scheme": "none"}),
        Run("heavy", options={"scheme": "heavy"}, grid=({"prior_scale": 1.0}, {"prior_scale": 0.5})),
    ),
    "none",
)


# --- problems and scores ---------------------------------------------------------------------------


@needs_data
def test_splits_are_standardised_and_validation_parts_leave_the_test_rows_alone():
    from pyro_sps.data.datasets import load_uci

    dataset = load_uci("energy")
    test, validation = (problems.load("energy", range(2), part) for part in ("test", "validation"))
    assert test.widths == (8, 50, 50, 2)
    assert test.x.shape == (2, 614, 8)
    assert validation.x.shape == (2, 491, 8)
    assert validation.x_test.shape == (2, 123, 8)
    for problem in (test, validation):
        torch.testing.assert_close(problem.x.mean(1), torch.zeros(2, 8), atol=1e-4, rtol=0)
        torch.testing.assert_close(problem.y.std(1), torch.ones(2, 2), atol=1e-4, rtol=0)
    # In original units, each validation problem consists of the rows of the training part, each of them once.
    split = dataset.split(seed=1, test_fraction=0.2)
    y = torch.cat([validation.y[1], validation.y_test[1]]).double()
    train = torch.as_tensor(split.y_train)
    centred = (y - y.mean(0)) / y.std(0)
    expected = (train - train.mean(0)) / train.std(0)
    torch.testing.assert_close(centred.sort(0).values, expected.sort(0).values, atol=1e-4, rtol=0)


def test_names_of_data_and_parts_are_checked():
    with pytest.raises(ValueError, match="name must be 'toy' or one of"):
        problems.load("boston", range(1))
    with pytest.raises(ValueError, match="part must be 'test' or 'validation'"):
        problems.load("toy", range(1), "train")


def test_scores_of_a_standard_normal():
    # One component N(0, 1), targets drawn from it: closed forms of all scores.
    y = torch.randn(4_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = score(Mixture(torch.zeros(1, 4_000, 1), torch.ones(1, 1, 1)), y)
    n = len(y)
    assert found["lpp"] == pytest.approx(-0.5 * math.log(2 * math.pi) - 0.5, abs=4 * math.sqrt(0.5 / n))
    assert found["rmse"] == pytest.approx(1.0, abs=4 / math.sqrt(2 * n))
    assert found["crps"] == pytest.approx(1 / math.sqrt(math.pi), abs=4 * 0.5 / math.sqrt(n))
    # The ends of an interval are quantiles of 1,000 draws, so that its coverage scatters by that of 2 of 1,000 ranks.
    assert found["coverage"] == pytest.approx(0.95, abs=4 * math.sqrt(0.05 * 0.95 / n) + 0.002)
    assert found["interval"] == pytest.approx(2 * 1.96, abs=0.03)


def test_scores_of_a_mixture_are_those_of_its_density_and_mean():
    means = torch.tensor([[[0.0], [1.0]], [[2.0], [1.0]]])
    scales = torch.tensor([[[0.5]], [[1.5]]])
    y = torch.tensor([[1.0], [4.0]])
    component = torch.distributions.Categorical(torch.ones(2, 2))
    mixture = torch.distributions.MixtureSameFamily(
        component, torch.distributions.Normal(means[..., 0].T, scales.expand(2, 2, 1)[..., 0].T)
    )
    found = score(Mixture(means, scales), y)
    assert found["lpp"] == pytest.approx(mixture.log_prob(y[:, 0]).mean().item(), rel=1e-5)
    assert found["rmse"] == pytest.approx(math.sqrt(9 / 2))


# --- masks of the tables ---------------------------------------------------------------------------


def test_a_wedge_fixes_its_share_and_its_half_is_about_heavy():
    topology = Topology.of(mlp([8, 50, 50, 2]))
    for fraction in (0.05, 0.5, 0.95):
        masks = methods.Wedge(fraction)(topology)
        for tensor in topology.matrices:
            assert int((~masks[tensor.name]).sum()) == round(fraction * tensor.numel)
    heavy, half = methods.make_scheme("heavy")(topology), methods.Wedge(0.5)(topology)
    assert (heavy["2.weight"] == half["2.weight"]).double().mean() > 0.97
    assert (heavy["2.weight"] != half["2.weight"].flip(0, 1)).double().mean() > 0.9


def test_names_of_tables_are_checked():
    with pytest.raises(ValueError, match=r"scheme must be one of .*, got 'hevy'"):
        methods.make_scheme("hevy")
    with pytest.raises(ValueError, match=r"values must be one of .*, got 'one'"):
        methods.make_values("one")
    with pytest.raises(ValueError, match="must have different names"):
        Study("x", "", ("toy",), (Run("a"), Run("a")), "a")
    with pytest.raises(ValueError, match="reference must be one of"):
        Study("x", "", ("toy",), (Run("a"),), "b")


def test_all_tables_name_what_exists():
    from pyro_sps.cli.study import NAMES

    assert set(NAMES) == set(table.STUDIES)
    for study in table.STUDIES.values():
        for run in study.runs:
            assert run.method in methods.METHODS
            json.dumps(run.options)
            if run.method == "partial":
                options = run.options or {}
                methods.make_scheme(options.get("scheme", "none"), **options.get("scheme_options", {}))
                methods.make_values(options.get("values", "zero"), **options.get("value_options", {}))


@pytest.mark.slow
def test_a_low_rank_posterior_of_a_linear_model_is_the_true_one():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 20, 2, generator=generator, dtype=torch.float64)
    x[..., 1] = x[..., 0] + 0.3 * x[..., 1]  # which makes the posterior correlated
    y = x.sum(2, keepdim=True) + 0.3 * torch.randn(1, 20, 1, generator=generator, dtype=torch.float64)
    net = sps.mlp([2, 1], dtype=torch.float64)
    bnn = sps.BNN(net, sps.Unmasked(), likelihood=sps.Gaussian(0.3), prior_scale=1.0)
    budget = {"num_steps": 1500, "num_particles": 8, "batch_size": None, "learning_rate": 0.03}
    (one,) = low_rank(bnn, x, y, 2, seed=0, progress=False, **budget)
    design = torch.cat([x[0], torch.ones(20, 1, dtype=torch.float64)], 1)
    precision = design.T @ design / 0.09 + torch.eye(3, dtype=torch.float64)
    covariance = design @ design.T + 0.09 * torch.eye(20, dtype=torch.float64)
    zeros = torch.zeros(20, dtype=torch.float64)
    evidence = torch.distributions.MultivariateNormal(zeros, covariance).log_prob(y[0, :, 0]).item()
    elbo = one.elbo_draws(2000)
    error = elbo.std().item() / 2000**0.5
    # What the best mean-field posterior misses: its precisions are those of the diagonal.
    missed = 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()
    assert missed > 0.5
    assert -4 * error < evidence - elbo.mean().item() < 0.1 * missed
    draws = one.draws(20_000, torch.Generator().manual_seed(1))
    weights = torch.cat([draws["0.weight"], draws["0.bias"]], 1)
    expected = one.posterior.covariance_matrix.detach()
    spread = (expected.diagonal().outer(expected.diagonal()) + expected.square()).sqrt() / 20_000**0.5
    assert ((weights.T.cov() - expected).abs() < 5 * spread).all()


# --- running ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with results of the tiny study, and its rows. Nobody writes to it."""
    folder = tmp_path_factory.mktemp("done")
    return folder, run_study(TINY, folder, quick=True, progress=False)


def test_the_default_of_the_tables_is_that_of_the_library():
    default = sps.BNN(mlp((8, 5, 5, 2)))
    options = table.DEFAULT
    assert default.scheme == methods.make_scheme(options["scheme"], **options["scheme_options"])
    assert default.values == methods.make_values(options["values"], **options.get("value_options", {}))
    assert (default.prior_scale, default.scale_by_fan_in) == (options["prior_scale"], options["scale_by_fan_in"])
    assert default.likelihood.learn == options["learn_noise"]
    settings = {"num_steps": options["num_steps"]}
    for name, value in ({**methods.BUDGET, **settings}).items():
        assert inspect.signature(sps.fit).parameters[name].default == value
    assert options["init"] == "map"  # as `fit` starts where values are MAP()


def test_results_are_kept_and_not_computed_again(done, tmp_path, monkeypatch):
    rows = done[1]
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    assert [row["run"] for row in rows] == ["heavy", "heavy", "none", "heavy"]
    assert [row["part"] for row in rows] == ["validation", "validation", "test", "test"]
    # The setting with the better LPP on validation parts is the one that is tested.
    tried = {row["options"]["prior_scale"]: np.mean([one["lpp"] for one in row["scores"]]) for row in rows[:2]}
    assert rows[3]["options"]["prior_scale"] == max(tried, key=tried.get)
    assert rows[2]["scores"][0]["fixed"] == 0
    assert rows[3]["scores"][0]["log10_permutations"] == 0
    assert len(rows[2]["bands"]["mean"]) == 126

    def never(*_, **__):
        raise AssertionError("it was computed again")

    monkeypatch.setattr(harness, "execute", never)
    again = run_study(TINY, tmp_path, quick=True, progress=False)
    assert again == rows


def test_the_same_job_gives_the_same_numbers(done, tmp_path):
    again = run_study(TINY, tmp_path, quick=True, progress=False)
    assert [row["scores"] for row in again] == [row["scores"] for row in done[1]]


def test_quick_looks_at_one_data_set(tmp_path):
    study = replace(TINY, data=("toy", "energy"))
    rows = run_study(study, tmp_path, quick=True, progress=False)
    assert {row["data"] for row in rows} == {"toy"}
    assert [row["data"] for row in summary.summarise(study, rows)] == ["toy", "toy"]


def test_a_failure_is_recorded_and_the_rest_goes_on(tmp_path, monkeypatch):
    runs = (Run("none"), Run("bad", options={"prior_scale": -1.0}), Run("heavy", options={"scheme": "heavy"}))
    study = Study("tiny", "Failures", ("toy",), runs, "none")
    said = []
    rows = run_study(study, tmp_path, quick=True, progress=False, say=said.append)
    assert ["error" in row for row in rows] == [False, True, False]
    assert "prior_scale must be a positive finite number, got -1.0" in rows[1]["error"]
    assert said == [f"failed: bad on toy: {rows[1]['error']}"]
    assert "failed: ValueError" in summary.report(study, rows, summary.summarise(study, rows))
    # What failed is tried again, and only that.
    tried = []

    def note(job, **_):
        tried.append(job.run)
        return {**rows[0], "run": job.run, "key": job.key}

    monkeypatch.setattr(harness, "execute", note)
    assert not any("error" in row for row in run_study(study, tmp_path, quick=True, progress=False))
    assert tried == ["bad"]


def test_a_line_that_was_cut_off_costs_one_result(done, tmp_path):
    rows = done[1]
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    path = tmp_path / harness.RESULTS
    content = path.read_bytes()
    path.write_bytes(content[:-50])
    assert len(records.read(path)) == 3
    again = run_study(TINY, tmp_path, quick=True, progress=False)
    assert [row["scores"] for row in again] == [row["scores"] for row in rows]
    assert len(records.read(path)) == 4  # every line of it whole


def test_kill_9_loses_nothing_that_was_there(tmp_path):
    # A process that appends results without end is killed at some moment.
    code = "import sys; from pathlib import Path; from pyro_sps.study import records\n"
    code += "for n in range(10**9): records.append(Path(sys.argv[1]), {'n': n, 'text': 'x' * 3000})"
    path = tmp_path / "results.jsonl"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    while not path.exists() or path.stat().st_size < 50_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows = records.read(path)
    assert [row["n"] for row in rows] == list(range(len(rows)))
    assert len(rows) >= 16
    records.append(path, {"n": -1})
    assert records.read(path) == [*rows, {"n": -1}]


@pytest.mark.slow
def test_dask_gives_the_same_rows(done, tmp_path):
    pytest.importorskip("distributed", reason="dask is in the extra `study`")
    there = run_study(TINY, tmp_path, quick=True, progress=False, jobs=2)
    assert [row["key"] for row in there] == [row["key"] for row in done[1]]
    for a, b in zip(done[1], there, strict=True):
        assert [one["lpp"] for one in b["scores"]] == pytest.approx([one["lpp"] for one in a["scores"]], rel=1e-3)


def test_a_scheduler_that_is_not_there_and_no_dask(tmp_path, monkeypatch):
    pytest.importorskip("distributed", reason="dask is in the extra `study`")
    options = ["study", "toy", "--out", str(tmp_path), "--quick", "--quiet"]
    run = CliRunner().invoke(main, [*options, "--scheduler", "nonsense"])
    assert run.exit_code
    assert "missing port number in address 'nonsense'" in run.output
    monkeypatch.setitem(sys.modules, "distributed", None)
    run = CliRunner().invoke(main, [*options, "--jobs", "2"])
    assert run.exit_code == 1
    assert "need dask (pip install 'pyro-sps[cluster]')" in run.output


def test_arguments_are_checked(tmp_path):
    for name in ("splits", "jobs"):
        with pytest.raises(ValueError, match=f"{name} must be a positive integer, got 0"):
            run_study(TINY, tmp_path, **{name: 0})


def test_every_method_has_a_quick_form(tmp_path):
    methods_left = set(methods.METHODS) - {"laplace"}  # which needs laplace-torch
    per_layer = {"scheme": "heavy", "values": "constant", "value_options": {"learn": True, "per_layer": True}}
    runs = (
        *(Run(name, name, {"members": 3} if name == "partial" else None) for name in sorted(methods_left)),
        Run("low rank, c per layer", "partial", {**per_layer, "rank": 2}),
    )
    study = Study("all", "All methods", ("toy",), runs, "map")
    rows = run_study(study, tmp_path, quick=True, splits=1, progress=False)
    assert [row.get("error") for row in rows] == [None] * len(runs)


# --- tables ----------------------------------------------------------------------------------------


def test_paired_interval_is_the_t_interval_without_overlap_and_wider_with_it():
    from scipy import stats

    values = np.random.default_rng(0).normal(0.3, 1.0, 10)
    mean, half = summary.paired_interval(values, overlap=0.0)
    low, high = stats.t.interval(0.95, 9, values.mean(), stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    wider = summary.paired_interval(values, overlap=0.25)[1]
    assert wider / half == pytest.approx(math.sqrt((0.1 + 0.25) / 0.1))
    assert math.isnan(summary.paired_interval([1.0], overlap=0.25)[1])


def rows_of(differences):
    base = [{"rmse": 0.1, "lpp": 1.0, "crps": 0.1, "coverage": 0.95, "interval": 0.4}] * len(differences)
    other = [{**one, "lpp": one["lpp"] + d} for one, d in zip(base, differences, strict=True)]
    common = {"data": "toy", "part": "test", "splits": len(base), "options": {}, "seconds": 1.0}
    return [{**common, "run": name, "scores": scores} for name, scores in (("none", base), ("heavy", other))]


def test_differences_are_bold_only_where_the_interval_excludes_zero():
    for differences, bold in (([0.1, 0.11, 0.12, 0.1], True), ([0.1, -0.1, 0.2, 0.0], False), ([-0.1, -0.11], False)):
        rows = rows_of(differences)
        found = summary.summarise(TINY, rows)
        assert found[1]["lpp_difference"] == pytest.approx(np.mean(differences))
        assert found[1]["lpp_se"] == pytest.approx(np.std(differences, ddof=1) / math.sqrt(len(differences)))
        assert ("**" in summary.report(TINY, rows, found)) is bold


@pytest.mark.parametrize(
    ("facts", "cell"), [({}, None), ({"c": 1.25}, "| 1.25 |"), ({"c 1": 2.0, "c 2": 0.5}, "| 2.00 / 0.50 |")]
)
def test_learned_constants_are_shown(facts, cell):
    rows = rows_of([0.1, 0.2])
    for score_of_split in rows[1]["scores"]:
        score_of_split |= facts
    page = summary.report(TINY, rows, summary.summarise(TINY, rows))
    assert (cell in page) if cell else ("| c |" not in page)


def test_shares_of_fixed_weights_are_lines_of_a_figure(tmp_path):
    shares, whats = (0.05, 0.5, 0.95), ("zero", "c learned")
    runs = tuple(
        Run(f"{scheme} {share:.0%}, {what}", options={"scheme": scheme, "scheme_options": {"fraction": share}})
        for scheme in ("wedge", "random")
        for what in whats
        for share in shares
    )
    study = Study("shares", "", ("toy",), (Run("none"), *runs), "none")
    base = rows_of([0.1, 0.2])[0]
    rows = [base]
    for place, run in enumerate(runs):
        moved = [{**one, "lpp": one["lpp"] + 0.1 * place + 0.01 * k} for k, one in enumerate(base["scores"])]
        rows.append({**base, "run": run.name, "scores": moved})
    files = summary.write(study, rows, tmp_path)
    assert tmp_path / "shares-fractions.png" in files
    axes = figures.fractions(study, summary.summarise(study, rows)).axes
    assert len(axes) == 2
    for panel, ax in enumerate(axes):
        lines = [container.lines[0] for container in ax.containers]
        assert [container.get_label() for container in ax.containers] == list(whats)
        for own, line in enumerate(lines):
            expected = [0.1 * (6 * panel + 3 * own + k) + 0.005 for k in range(3)]
            np.testing.assert_allclose(line.get_ydata(), expected)
            np.testing.assert_allclose(line.get_xdata(), [5, 50, 95], atol=2)
    assert not any("fractions" in file.name for file in summary.write(TINY, rows_of([0.1, 0.2]), tmp_path))
    assert [name for name, study in table.STUDIES.items() if figures.shares(study)] == ["sweep"]


def test_one_huge_difference_does_not_hide_the_others():
    runs = tuple(Run(name) for name in ("none", "a", "b", "c", "d"))
    results = [
        {"data": "energy", "run": run.name, "lpp_difference": value, "lpp_half": 0.1}
        for run, value in zip(runs[1:], (0.2, -0.3, 0.1, -27.3), strict=True)
    ]
    (ax,) = figures.differences(Study("some", "Some", ("energy",), runs, "none"), results).axes
    low, high = ax.get_xlim()
    assert -1 < low < -0.4
    assert 0.3 < high < 1
    assert [text.get_text() for text in ax.texts] == ["-27"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("name", table.STUDIES)
def test_every_row_of_a_study_was_run(name):
    study = table.STUDIES[name]
    with (Path(__file__).parents[2] / "study" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        rows = {(row["data"], row["run"]) for row in csv.DictReader(file)}
    assert rows == {(data, run.name) for run in study.runs for data in study.data_of(run)}


def test_the_page_has_the_table_of_the_committed_results():
    root = Path(__file__).parents[2]
    text = (root / "study" / "README.md").read_text(encoding="utf-8")
    assert summary.with_headline(text, summary.headline(root / "study" / "headline.csv")) == text


def test_headline(tmp_path):
    rows = rows_of([0.1, 0.11, 0.12, 0.11])
    summary.write(TINY, rows, tmp_path)
    table = summary.headline(tmp_path / "tiny.csv")
    assert table.splitlines() == [
        "| RMSE, LPP | toy |",
        "| --- | ---: |",
        "| none | 0.100, 1.000 |",
        "| heavy | **0.100, 1.110** |",
    ]
    with pytest.raises(ValueError, match="must have the lines"):
        summary.with_headline("no marks", table)


def test_command_line(tmp_path):
    run = CliRunner().invoke(main, ["study", "toy", "--out", str(tmp_path), "--quick", "--jobs", "1", "--quiet"])
    assert run.exit_code == 0, run.output
    for name in ("toy.csv", "toy.md", "toy.png", "toy-bands.png", "results.jsonl"):
        assert (tmp_path / name).stat().st_size > 0
    page = (tmp_path / "toy.md").read_text()
    assert "| heavy, ±5 | 1,225 | 1 |" in page
    assert "95 % interval" in page
    for wrong, text in ((["nothing"], "'nothing' is not one of"), (["toy", "--seeds", "0"], "--seeds")):
        run = CliRunner().invoke(main, ["study", *wrong, "--out", str(tmp_path)])
        assert run.exit_code == 2
        assert text in run.output
