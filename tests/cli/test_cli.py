"""The command line as a user meets it: what it prints, writes and refuses."""

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_files import FILE, make_up, take_apart

import pyro_sps as sps
from pyro_sps.cli import main, toy
from pyro_sps.cli.options import Command
from pyro_sps.data.tables import read_table

# Without the default values, which a long optimisation finds first.
TINY = ["--hidden", "4", "4", "--steps", "5", "--particles", "2", "--scheme", "heavy", "--values", "learned-constant"]
TINY += ["--quiet"]


def run(*arguments, code=0):
    """Run the command line; a failure must be one line and no traceback."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    if code:
        assert "Traceback" not in result.output
        assert re.search(r"^Error: .+\n\Z", result.output, re.MULTILINE)
    return result


def table(path, rows=40, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 2))
    y = 100 + 20 * np.stack([x[:, 0] + 0.1 * generator.normal(size=rows), x.sum(1)], axis=1)
    pd.DataFrame(np.hstack([x, y]), columns=["a", "b", "y", "z"]).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder with data, and a fit of it."""
    folder = tmp_path_factory.mktemp("cli")
    data = table(folder / "data.csv")
    result = run(
        "fit", data, "--target", "y", "z", *TINY[:-1], "--noise", "0.1", "--out", folder / "fit", "--seed", "3"
    )
    return folder, data, result.output


# --- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["fit", "predict", "masks", "symmetry", "demo"])
def test_every_command_has_help_with_an_example_a_seed_and_quiet(command):
    output = run(command, "--help").output
    assert f"pyro-sps {command} " in output.split("Example")[1]
    assert "--seed" in output
    assert "--quiet" in output


@settings(max_examples=100, deadline=None)
@given(widths=st.lists(st.integers(1, 99), min_size=1, max_size=5), how=st.sampled_from(["spaces", "commas", "repeat"]))
def test_hidden_widths_can_be_written_in_three_ways(widths, how):
    texts = [str(width) for width in widths]
    written = {
        "spaces": ["--hidden", *texts],
        "commas": ["--hidden", ",".join(texts)],
        "repeat": [part for text in texts for part in ("--hidden", text)],
    }[how]
    context = main.commands["fit"].make_context("fit", [*written, "data.csv", "--target", "y", "--out", "o"])
    assert context.params["hidden"] == widths
    assert context.params["data"] == "data.csv"


def test_names_are_taken_up_to_the_next_option():
    arguments = ["d.csv", "--target", "y 1", "z", "--feature", "a", "--feature=-b", "--out", "o"]
    context = main.commands["fit"].make_context("fit", arguments)
    assert context.params["targets"] == ("y 1", "z")
    assert context.params["features"] == ("a", "-b")
    assert context.params["hidden"] == [50, 50]
    context = main.commands["fit"].make_context("fit", ["--target", "y", "--out", "o", "--", "d.csv"])
    assert context.params["data"] == "d.csv"


def test_all_commands_turn_errors_into_lines():
    assert all(isinstance(command, Command) for command in main.commands.values())


def test_the_command_line_starts_without_torch():
    code = (
        "import sys, pyro_sps.cli; print([name for name in ('torch', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- fit -------------------------------------------------------------------------------------------


def test_what_fit_prints_and_writes(fitted):
    folder, _, output = fitted
    for words in ("40 rows", "targets y, z", "32 rows to train on, 8 held out", "2-4-4-2 network", "RMSE", "average"):
        assert words in output
    assert {path.name for path in (folder / "fit").iterdir()} == {"fit.safetensors", "metrics.json"}
    metrics = json.loads((folder / "fit" / "metrics.json").read_text())
    assert metrics["train_rows"] == 32
    assert metrics["fixed_weights"] == sps.fixed_count(sps.Heavy()(sps.Topology.of(sps.mlp([2, 4, 4, 2]))))


def test_the_default_recipe_is_that_of_the_library(tmp_path):
    data = table(tmp_path / "data.csv")
    run(
        "fit",
        data,
        "--target",
        "y",
        "z",
        "--hidden",
        "4",
        "--steps",
        "5",
        "--method",
        "fit",
        "--quiet",
        "--out",
        tmp_path / "fit",
    )
    found = sps.load(tmp_path / "fit", sps.mlp([2, 4, 2]))
    split = read_table(data, ["y", "z"]).split(seed=0)
    bnn = sps.BNN(sps.mlp([2, 4, 2]))
    fit = sps.fit(bnn, split.x_train, split.y_train, num_steps=5, standardize=True, progress=False)
    assert found.settings == fit.settings
    assert fit.bnn.num_fixed == 2 * round(0.9 * 8)
    for name, value in fit.bnn.fixed.items():
        torch.testing.assert_close(found.bnn.fixed[name], value)
        assert value[~fit.bnn.masks[name]].all()  # MAP values
    torch.testing.assert_close(found.guide.loc, fit.guide.loc)
    torch.testing.assert_close(found.bnn.likelihood.noise_scale, fit.bnn.likelihood.noise_scale)
    assert fit.bnn.likelihood.learn


@pytest.mark.filterwarnings("ignore::pyro_sps.SymmetryWarning")
def test_fit_is_what_the_library_gives(fitted):
    folder, data, _ = fitted
    split = read_table(data, ["y", "z"]).split(seed=3)
    bnn = sps.BNN(sps.mlp([2, 4, 4, 2]), sps.Heavy(), sps.Constant(1.0, learn=True), sps.Gaussian(0.1), seed=3)
    fit = sps.fit(
        bnn, split.x_train, split.y_train, num_steps=5, num_particles=2, standardize=True, seed=3, progress=False
    )
    prediction = fit.predict(split.x_test, seed=3)
    metrics = json.loads((folder / "fit" / "metrics.json").read_text())
    assert metrics["rmse"] == pytest.approx(prediction.rmse(split.y_test), rel=1e-4)
    assert metrics["lpp"] == pytest.approx(prediction.lpp(split.y_test), rel=1e-4)
    assert metrics["coverage"] == pytest.approx(prediction.coverage(split.y_test, 0.95), abs=1e-6)
    assert metrics["elbo"] == pytest.approx(fit.elbo, rel=1e-4)
    # Standardised scores: of targets divided by their standard deviation in the training part.
    scale = split.y_train.std(0)
    for index, name in enumerate(["y", "z"]):
        scores = metrics["targets"][name]
        assert scores["rmse_standardized"] == pytest.approx(scores["rmse"] / scale[index])
        assert scores["lpp_standardized"] == pytest.approx(scores["lpp"] + math.log(scale[index]))


def test_standardised_scores_do_not_depend_on_the_units(fitted, tmp_path):
    folder, data, _ = fitted
    frame = pd.read_csv(data)
    frame[["y", "z"]] = frame[["y", "z"]] * 1024 + 2**14  # exact in binary, so that the same network is fitted
    frame.to_csv(tmp_path / "scaled.csv", index=False)
    options = ["--noise", "0.1", "--seed", "3"]
    run("fit", tmp_path / "scaled.csv", "--target", "y", "z", *TINY, *options, "--out", tmp_path / "fit")
    first, second = (json.loads((p / "fit" / "metrics.json").read_text()) for p in (folder, tmp_path))
    for score in ("rmse_standardized", "lpp_standardized", "coverage"):
        assert second[score] == pytest.approx(first[score], rel=1e-3)
    assert second["rmse"] == pytest.approx(1024 * first["rmse"], rel=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        ["--scheme", "none", "--values", "zero"],
        ["--scheme", "light", "--values", "constant", "--c", "4"],
        ["--scheme", "random", "--values", "zero", "--activation", "relu"],
        ["--scheme", "random", "--fraction", "0.5"],
        ["--values", "normal", "--noise", "learned", "--no-standardize"],
        ["--values", "learned-normal", "--likelihood", "heteroscedastic", "--batch-size", "8"],
        ["--likelihood", "student-t", "--scheme", "none", "--values", "zero"],
        ["--test-fraction", "0", "--prior-scale", "2", "--scheme", "rigid-signs", "--values", "ladder"],
    ],
)
@pytest.mark.filterwarnings("ignore::pyro_sps.SymmetryWarning")
def test_options_reach_the_model(tmp_path, options):
    data = table(tmp_path / "data.csv")
    run("fit", data, "--target", "y", *TINY, *options, "--out", tmp_path / "fit")
    run("predict", tmp_path / "fit", data, "--out", tmp_path / "p.csv", "--num-samples", "5")
    model = take_apart(tmp_path / "fit" / FILE)[0]["extra"]
    asked = dict(zip(options[::2], options[1::2], strict=False))
    net = sps.mlp(model["widths"], asked.get("--activation", "tanh"))
    bnn = sps.load(tmp_path / "fit", net).bnn
    schemes = {"none": sps.Unmasked(), "light": sps.Light(), "rigid-signs": sps.Rigid(signs=True)}
    schemes["random"] = sps.Random(like=float(asked.get("--fraction", 0.85)))
    scheme = schemes.get(asked.get("--scheme"), sps.Heavy())
    assert bnn.num_fixed == sps.fixed_count(scheme(bnn.topology))
    assert bnn.prior_scale == float(asked.get("--prior-scale", 2.0))
    assert bnn.scale_by_fan_in == ("--prior-scale" not in asked)
    if "--c" in asked:
        assert {value.abs().item() for value in bnn.fixed["2.weight"].flatten()} == {0.0, 4.0}
    if "--noise" in asked:
        assert bnn.likelihood.learn
    metrics = json.loads((tmp_path / "fit" / "metrics.json").read_text())
    assert metrics["train_rows"] == (40 if "--test-fraction" in asked else 32)
    assert ("rmse" in metrics) == ("--test-fraction" not in asked)
    learns = "learned" in asked.get("--values", "learned") and asked.get("--scheme") != "none"
    assert (metrics["learned_c"] is not None) == learns


@pytest.mark.parametrize(("likelihood", "top"), [("bernoulli", 2), ("poisson", 6)])
def test_counts_and_yes_or_no(tmp_path, likelihood, top):
    generator = np.random.default_rng(0)
    frame = pd.DataFrame({"x": generator.normal(size=30), "y": generator.integers(0, top, 30)})
    frame.to_csv(tmp_path / "data.csv", index=False)
    data, out = tmp_path / "data.csv", tmp_path / "fit"
    run("fit", data, "--target", "y", *TINY, "--likelihood", likelihood, "--out", out)
    assert "rmse_standardized" not in json.loads((out / "metrics.json").read_text())
    run("predict", out, data, "--out", tmp_path / "p.csv", "--num-samples", "20", "--quiet")
    assert (pd.read_csv(tmp_path / "p.csv")["y_mean"] >= 0).all()


def test_quiet_prints_nothing_and_the_seed_decides_everything(tmp_path):
    data = table(tmp_path / "data.csv")
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        assert run("fit", data, "--target", "y", *TINY, "--seed", seed, "--out", tmp_path / name).output == ""
    one, same, other = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", "same", "other"))
    assert {**one, "seconds": 0} == {**same, "seconds": 0}
    assert one["rmse"] != other["rmse"]


def test_a_folder_with_something_in_it_is_kept(tmp_path):
    data = table(tmp_path / "data.csv")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    output = run("fit", data, "--target", "y", *TINY, "--out", tmp_path / "full", code=2).output
    assert "not empty" in output
    assert "--force" in output
    run("fit", data, "--target", "y", *TINY, "--out", tmp_path / "full", "--force")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "precious"
    assert "is a file" in run("fit", data, "--target", "y", *TINY, "--out", data, code=2).output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "w"], ["'w'", "'a'"]),
        ([], ["--target"]),
        (["--target", "y", "--feature", "y"], ["'y'", "feature and a target"]),
        (["--target", "y", "--activation", "step"], ["activation", "'step'", "tanh"]),
        (["--target", "y", "--scheme", "heavier"], ["--scheme", "heavier", "light"]),
        (["--target", "y", "--values", "zero", "--c", "2"], ["--c", "zero"]),
        (["--target", "y", "--values", "constant", "--c", "-2"], ["--c", "-2"]),
        (["--target", "y", "--values", "map", "--c", "2"], ["--c", "map"]),
        (["--target", "y", "--scheme", "heavy", "--fraction", "0.5"], ["--fraction", "random", "heavy"]),
        (["--target", "y", "--fraction", "1.5"], ["--fraction", "1.5"]),
        (["--target", "y", "--noise", "0"], ["--noise", "'0'"]),
        (["--target", "y", "--noise", "loud"], ["--noise", "'loud'"]),
        (["--target", "y", "--noise", "0.1", "--likelihood", "poisson"], ["--noise", "poisson"]),
        (["--target", "y", "--likelihood", "poisson"], ["counts", "row 0"]),
        (["--target", "y", "--hidden", "0"], ["positive integers", "0"]),
        (["--target", "y", "--hidden", "wide"], ["--hidden"]),
        (["--target", "y", "--steps", "0"], ["--steps"]),
        (["--target", "y", "--learning-rate", "-1"], ["learning_rate", "-1"]),
        (["--target", "y", "--learning-rate", "0"], ["learning_rate", "0"]),
        (["--target", "y", "--optimizer", "sgd"], ["--optimizer", "sgd", "ivon"]),
        (["--target", "y", "--optimizer", "ivon", "--method", "sample"], ["--optimizer", "fit"]),
        (["--target", "y", "--prior-scale", "inf"], ["prior_scale", "inf"]),
        (["--target", "y", "--test-fraction", "1"], ["--test-fraction"]),
        (["--target", "y", "--test-fraction", "0.999"], ["test_fraction"]),
    ],
)
def test_wrong_options_are_named(tmp_path, options, words):
    data = table(tmp_path / "data.csv")
    output = run("fit", data, *options, "--out", tmp_path / "fit", "--quiet", code=2).output
    for word in words:
        assert word in output.replace("\n", " ")
    assert not (tmp_path / "fit" / FILE).exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,y\n" + "".join(f"{i},{i}\n" for i in range(30)) + "x,3\n", ["'a'", "line 32", "'x'", "--missing"]),
        ("a,y\n" + "".join(f"{i},\n" for i in range(30)), ["0 rows"]),
        ("a,y\n1,2\ninf,3\n", ["infinite", "'a'", "line 3"]),
        ("a,a,y\n1,2,3\n", ["'a'"]),
        ("a,y\n1,2\n2,3\n", ["2 rows", "at least 5"]),
        ("a,b,y\n" + "".join(f"{i},7,{i}\n" for i in range(9)), ["constant", "'b' (always 7)"]),
    ],
)
def test_bad_data_is_named(tmp_path, content, words):
    (tmp_path / "data.csv").write_text(content)
    output = run("fit", tmp_path / "data.csv", "--target", "y", *TINY, "--out", tmp_path / "fit", code=2).output
    assert "data.csv" in output
    for word in words:
        assert word in output


def test_data_that_is_not_there(tmp_path):
    output = run("fit", tmp_path / "absent.csv", "--target", "y", *TINY, "--out", tmp_path / "fit", code=2).output
    assert "absent.csv" in output
    assert "energy" in output


def test_a_loss_that_is_not_finite_is_an_error_of_the_work(tmp_path):
    data = table(tmp_path / "data.csv")
    options = ["--noise", "1e-30", "--learning-rate", "1e30"]
    output = run("fit", data, "--target", "y", *TINY, *options, "--out", tmp_path / "fit", code=1).output
    assert "step" in output


@pytest.mark.skipif(not os.environ.get("PYRO_SPS_DATA"), reason="PYRO_SPS_DATA names no folder with the UCI files")
def test_named_data_sets(tmp_path):
    run("fit", "energy", *TINY, "--out", tmp_path / "fit")
    output = run("predict", tmp_path / "fit", "energy", "--out", tmp_path / "p.csv", "--num-samples", "3").output
    assert "768 rows" in output
    raw = Path(os.environ["PYRO_SPS_DATA"], "ENB2012_data.xlsx")
    run("predict", tmp_path / "fit", raw, "--out", tmp_path / "q.csv", "--num-samples", "3")
    assert (tmp_path / "p.csv").read_text() == (tmp_path / "q.csv").read_text()
    output = run("fit", "energy", "--target", "Y1", *TINY, "--out", tmp_path / "other", code=2).output
    assert "energy" in output
    assert "features" in run("predict", tmp_path / "fit", "concrete", code=2).output


def test_replicas_are_fitted_saved_and_predicted_as_one(fitted, tmp_path):
    _, data, _ = fitted
    options = ["--target", "y", "z", *TINY, "--noise", "0.1", "--optimizer", "ivon"]
    options += ["--replicas", "2", "--checkpoint-every", "2"]
    run("fit", data, *options, "--out", tmp_path / "fits")
    fits = sps.load(tmp_path / "fits", sps.mlp([2, 4, 4, 2]))
    assert isinstance(fits, sps.Fits)
    assert (fits[0].settings["optimizer"], fits[0].settings["learning_rate"]) == ("ivon", 0.1)
    metrics = json.loads((tmp_path / "fits" / "metrics.json").read_text())
    assert metrics["replicas"] == len(metrics["elbo"]) == len(fits) == 2
    written = pd.read_csv(io.StringIO(run("predict", tmp_path / "fits", data, "--quiet", "--num-samples", "6").stdout))
    mean = fits.predict(read_table(data, features=["a", "b"]).x, 6).mean
    np.testing.assert_allclose(written[["y_mean", "z_mean"]], mean, rtol=1e-5)
    run("fit", data, *options, "--resume", "--out", tmp_path / "fits")
    again = sps.load(tmp_path / "fits", sps.mlp([2, 4, 4, 2]))
    assert all(torch.equal(one.guide.loc, two.guide.loc) for one, two in zip(fits, again, strict=True))
    assert (
        "replicas 2, not None" in run("fit", data, *options[:-4], "--resume", "--out", tmp_path / "fits", code=2).output
    )
    options.remove("--optimizer")
    options.remove("ivon")
    output = run("fit", data, *options, "--resume", "--out", tmp_path / "fits", code=2).output
    assert "optimizer ivon, not adam; learning_rate 0.1, not 0.01" in output


@pytest.mark.parametrize("method", ["fit", "sample"])
def test_a_device_is_chosen(fitted, tmp_path, method):
    """On a CPU by the lines that choose another one."""
    _, data, _ = fitted
    options = ["--target", "y", "--hidden", "3", "--steps", "6", "--method", method, "--checkpoint-every", "2"]
    told = {}
    for name, device in {"default": [], "chosen": ["--device", "cpu"]}.items():
        run("fit", data, *options, *device, "--out", tmp_path / name)
        told[name] = run("predict", tmp_path / name, data, "--num-samples", "6").stdout
    assert told["chosen"] == told["default"]
    assert json.loads((tmp_path / "chosen" / "metrics.json").read_text())
    run("fit", data, *options, "--device", "cpu", "--resume", "--out", tmp_path / "chosen")
    refused = run("fit", data, *options, "--device", "nowhere", "--out", tmp_path / "other", code=2).output
    assert "device='nowhere' cannot be used here" in refused


# --- predict ---------------------------------------------------------------------------------------


def test_predictions_are_those_of_the_library(fitted, tmp_path):
    folder, data, _ = fitted
    shuffled = tmp_path / "shuffled.csv"
    pd.read_csv(data)[["b", "a"]].assign(note="text").to_csv(shuffled, index=False, sep=";")
    options = ["--num-samples", "50", "--seed", "7", "--level", "0.8"]
    output = run("predict", folder / "fit", shuffled, "--out", tmp_path / "p.csv", *options).output
    assert "40 rows" in output
    assert "RMSE" not in output
    written = pd.read_csv(tmp_path / "p.csv")
    model = sps.load(folder / "fit", sps.mlp([2, 4, 4, 2]))
    prediction = model.predict(read_table(data, features=["a", "b"]).x, num_samples=50, seed=7)
    lower, upper = prediction.interval(0.8)
    for index, name in enumerate(["y", "z"]):
        parts = {"mean": prediction.mean, "std": prediction.std, "lower": lower, "upper": upper}
        for part, values in parts.items():
            torch.testing.assert_close(
                torch.tensor(written[f"{name}_{part}"].to_numpy(), dtype=torch.float32),
                values[:, index],
                rtol=1e-5,
                atol=0,
            )
    assert written["row"].tolist() == list(range(1, 41))


def test_without_a_file_predictions_go_to_standard_output(fitted):
    folder, data, _ = fitted
    result = run("predict", folder / "fit", data, "--num-samples", "5")
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert len(rows) == 40
    assert "RMSE" in result.stderr
    quiet = run("predict", folder / "fit", data, "--num-samples", "5", "--quiet")
    assert quiet.stdout == result.stdout
    assert quiet.stderr == ""


def test_targets_that_cannot_be_scored_do_not_stop_predictions(fitted, tmp_path):
    folder, data, _ = fitted
    frame = pd.read_csv(data)
    frame.loc[3, "z"] = None
    frame.to_csv(tmp_path / "partly.csv", index=False)
    result = run("predict", folder / "fit", tmp_path / "partly.csv", "--num-samples", "5")
    assert "not scored" in result.stderr
    assert "rows without y or z" in result.stderr
    assert len(result.stdout.splitlines()) == 41


def test_predict_refuses_what_does_not_fit(fitted, tmp_path):
    folder, data, _ = fitted
    pd.read_csv(data)[["a", "y"]].to_csv(tmp_path / "lacks.csv", index=False)
    assert "'b'" in run("predict", folder / "fit", tmp_path / "lacks.csv", code=2).output
    assert "absent.csv" in run("predict", folder / "fit", tmp_path / "absent.csv", code=2).output
    assert "there is no saved fit" in run("predict", tmp_path, data, code=2).output
    (tmp_path / "p.csv").write_text("mine")
    assert "--force" in run("predict", folder / "fit", data, "--out", tmp_path / "p.csv", code=2).output
    assert (tmp_path / "p.csv").read_text() == "mine"
    assert "no folder" in run("predict", folder / "fit", data, "--out", tmp_path / "no" / "p.csv", code=2).output
    run("predict", folder / "fit", data, "--out", tmp_path / "p.csv", "--force", "--num-samples", "2", "--quiet")


def test_one_row_is_enough_to_predict_and_constant_columns_are_fine(fitted, tmp_path):
    folder, _, _ = fitted
    (tmp_path / "one.csv").write_text("a,b\n1,2\n")
    assert len(run("predict", folder / "fit", tmp_path / "one.csv", "--quiet").stdout.splitlines()) == 2
    (tmp_path / "none.csv").write_text("a,b\n")
    assert "0 rows" in run("predict", folder / "fit", tmp_path / "none.csv", "--quiet", code=2).output


@pytest.mark.parametrize("change", [{"widths": [2, 10**12, 2]}, {"widths": "2"}, {"targets": [1]}, {"format": 99}])
def test_a_hostile_file_is_refused(fitted, tmp_path, change):
    folder, data, _ = fitted
    header, tensors = take_apart(folder / "fit" / FILE)
    make_up(tmp_path / FILE, header | {"extra": {**header["extra"], **change}}, tensors)
    assert "fit.safetensors is" in run("predict", tmp_path, data, code=2).output


# --- masks and symmetry ----------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["none", "light", "heavy", "random", "rigid"])
def test_masks_prints_the_counts_of_the_masks(scheme):
    output = run("masks", "8", "50,50", "2", "--scheme", scheme).output
    topology = sps.Topology.of(sps.mlp([8, 50, 50, 2]))
    rules = {"none": sps.Unmasked(), "light": sps.Light(), "heavy": sps.Heavy(), "rigid": sps.Rigid()}
    masks = rules.get(scheme, sps.Random(like=0.85))(topology)
    assert f"{sps.fixed_count(masks):,} of 3,102 weights fixed" in output
    for tensor in topology.matrices:
        fixed = int((~masks[tensor.name]).sum())
        assert re.search(rf"^{re.escape(tensor.name)} .* {fixed:,} +{tensor.numel:,}$", output, re.MULTILINE)
    if scheme != "random":
        for layer, count in topology.fully_connected(masks).items():
            assert re.search(rf"^{layer} +50 +{count}$", output, re.MULTILINE)


@pytest.mark.parametrize("command", ["masks", "symmetry"])
def test_a_fraction_is_for_random_places_only(command):
    assert (
        "--fraction is for --scheme random, not heavy"
        in run(command, "3", "5", "2", "--fraction", "0.5", code=2).output
    )
    run(command, "3", "5", "2", "--scheme", "random", "--fraction", "0.5")


def test_masks_warns_in_a_line_and_quiet_does_not():
    result = run("masks", "2", "20", "1")
    assert re.search(r"^warning: .*layer 1", result.stderr, re.MULTILINE)
    assert run("masks", "2", "20", "1", "--quiet").output == ""


@pytest.mark.parametrize("widths", [["8"], ["8", "-5"], ["8", "0", "1"], ["8", "x"], []])
def test_widths_that_are_no_network(widths):
    run("masks", "--", *widths, code=2)


@pytest.mark.parametrize("command", ["masks", "symmetry"])
def test_masks_are_drawn(tmp_path, command):
    output = run(command, "3", "5", "5", "2", "--scheme", "light", "--plot", tmp_path / "masks.png").output
    assert (tmp_path / "masks.png").read_bytes().startswith(b"\x89PNG")
    assert "masks.png" in output
    assert "'docx'" in run(command, "3", "5", "2", "--plot", tmp_path / "m.docx", code=2).output


@pytest.mark.parametrize(
    ("scheme", "values", "left"),
    [("light", "zero", "43! = 10^52.78"), ("heavy", "zero", "2^100"), ("heavy", "constant", "4")],
)
def test_symmetry_prints_the_report(scheme, values, left):
    output = run("symmetry", "8", "50", "50", "2", "--scheme", scheme, "--values", values).output
    assert left in output
    assert "signed permutations" in output


def test_symmetry_table_has_the_rows_of_the_design():
    lines = run("symmetry", "8-50-50-2", "1-50-50-1", "--table").output.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    rows = {(row[0], row[1]): [row[2], *(cell.split("10^")[-1] for cell in row[3:])] for row in cells}
    # DESIGN 2.2. With ±c the order of heavy masks depends on the signs drawn for 1-50-50-1.
    assert rows["8-50-50-2", "none"] == ["0", "128.97", "159.07", ""]
    assert rows["8-50-50-2", "light"] == ["57", "52.78", "82.88", "65.73"]
    assert rows["8-50-50-2", "heavy"] == ["1,254", "1", "30.10", "4"]
    assert rows["1-50-50-1", "light"][:3] == ["49", "62.78", "92.89"]
    assert rows["1-50-50-1", "heavy"][:3] == ["1,225", "1", "30.10"]
    assert "--table" in run("symmetry", "8-50-50-2", "1-50-50-1", code=2).output
    output = run("symmetry", "2-3-1", "--table", "--scheme", "light", "--c", "2", code=2).output
    assert "--scheme and --c have no effect with --table" in output
    output = run("symmetry", "--network", "lenet5", "--activation", "relu", code=2).output
    assert "--activation has no effect with --network" in output


def test_symmetry_table_of_a_known_network():
    lines = run("symmetry", "--network", "lstm", "--table").output.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    orders = {row[3]: row[4:7] for row in cells}
    # 32! twice, and a sign for each of the 64 units; DESIGN 2.1 for the schemes.
    assert orders["none"] == ["0", f"{2 * math.lgamma(33) / math.log(10):.1f}", "90.1"]
    assert orders["heavy"][1:] == orders["rigid"][1:] == ["0", f"{64 * math.log10(2):.1f}"]
    assert "--table" in run("symmetry", "--network", "all", code=2).output


def test_symmetry_of_map_values_needs_data():
    assert "data" in run("symmetry", "3", "5", "2", "--values", "map", code=2).output


# --- demo ------------------------------------------------------------------------------------------


def test_demo_has_the_configurations_of_the_paper():
    topology = sps.Topology.of(sps.mlp(toy.WIDTHS, device="meta"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fixed = [sps.fixed_count(scheme(topology)) for scheme, _ in toy.CONFIGURATIONS.values()]
    # 1-50-50-1: light fixes 0 + 49 + 0 entries, heavy 0 + 1225 + 0 (DESIGN 2.2).
    assert fixed == [0, 49, 49, 1225, 1225]
    assert [values.c for _, values in toy.CONFIGURATIONS.values() if isinstance(values, sps.Constant)] == [15.0, 5.0]


def test_demo_writes_its_table_and_figure(tmp_path, monkeypatch):
    chosen = {name: toy.CONFIGURATIONS[name] for name in ("light, ±15", "heavy, zero")}
    monkeypatch.setattr(toy, "CONFIGURATIONS", chosen)
    monkeypatch.setattr(toy, "WIDTHS", (1, 5, 5, 1))
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "old.txt").touch()  # a second run replaces the first
    output = run("demo", "--out", tmp_path / "demo", "--steps", "3").output
    rows = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert [row["name"] for row in rows] == [*chosen, "heavy, zero, sampled"]
    assert [row["fixed_weights"] for row in rows] == [4, 10, 10]
    assert rows[2]["elbo"] is None
    for row in rows:
        elbo = "" if row["elbo"] is None else f"{row['elbo']:.1f} +"
        scores = rf"{elbo}{row['rmse']:.3f} +{row['lpp']:.3f} +{row['rmse_data']:.3f} +"
        assert re.search(rf"^{re.escape(row['name'])} .* {scores}", output, re.MULTILINE)
        assert all(math.isfinite(row[score]) for score in ("rmse", "lpp", "rmse_data", "lpp_data"))
    assert all(math.isfinite(row["elbo"]) for row in rows[:2])
    assert (tmp_path / "demo" / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert "demo.png" in output
    assert (tmp_path / "demo" / "table.png").read_bytes().startswith(b"\x89PNG")
    assert "on 88 held-out rows" in output
