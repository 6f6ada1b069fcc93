"""The command line on tables as people have them."""

import json

import click
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from saved_files import FILE, make_up, take_apart

import pyro_sps as sps
from pyro_sps.cli import main
from pyro_sps.cli.method import method_asked

QUICK = ["--method", "fit", "--hidden", "4", "--steps", "60", "--scheme", "none", "--values", "zero"]


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def cars(rows=60, seed=0):
    rng = np.random.default_rng(seed)
    size = rng.uniform(1, 5, rows)
    return pd.DataFrame(
        {
            "id": np.arange(rows) + 100,
            "name": [f"car {i}" for i in range(rows)],
            "make": rng.choice(["audi", "bmw", "?"], rows),
            "size": np.where(rng.random(rows) < 0.2, "?", size.round(2).astype(str)),
            "sold": pd.date_range("2023-01-01", periods=rows, freq="6D").strftime("%Y-%m-%d"),
            "new": np.where(rng.random(rows) < 0.5, "True", "False"),
            "price": (1000 * size + 100 * rng.normal(size=rows)).round(),
            "class": np.where(size > 3, "large", "small"),
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cars")
    cars().to_csv(folder / "cars.csv", index=False)
    said = run("fit", folder / "cars.csv", "--target", "price", "--drop", "class", *QUICK, "--out", folder / "fit")
    return folder, said.output


def test_fit_says_what_it_did_to_each_column_and_how_good_it_is(folder):
    _, said = folder
    for words in (
        "left out: id",
        "left out: name",
        "make  text, 3 levels, gaps one of them",
        "gaps: the median, and a column that marks them",
        "sold  date, 2023-01-01 to",
        "new   number, 0 to 1",
        "on 12 held-out rows",
        "linear model",
        "mean ",
    ):
        assert words in said
    metrics = json.loads((folder[0] / "fit" / "metrics.json").read_text())
    assert set(metrics["baselines"]) == {"linear model", "mean"}


def test_new_rows_may_have_gaps_other_orders_and_new_levels(folder, tmp_path):
    folder, _ = folder
    new = cars(8, seed=1)
    new.loc[0, ["make", "size", "sold", "new"]] = None
    new.loc[1, "make"] = "volvo"
    new.drop(columns=["price", "id", "name"])[::-1].to_csv(tmp_path / "new.csv", index=False)
    run("predict", folder / "fit", tmp_path / "new.csv", "--out", tmp_path / "p.csv", "--keep")
    found = pd.read_csv(tmp_path / "p.csv")
    assert list(found)[-4:] == ["price_mean", "price_std", "price_lower", "price_upper"]
    assert found["class"].tolist() == new["class"][::-1].tolist()
    assert found[["price_mean", "price_std"]].notna().all().all()
    assert (found["price_lower"] < found["price_upper"]).all()
    new.assign(size="big").to_csv(tmp_path / "other.csv", index=False)
    said = run("predict", folder / "fit", tmp_path / "other.csv", code=2).output
    assert "line 2, column 'size' holds 'big', where the fit had a number" in said


def test_text_labels_become_classes_and_come_back(folder, tmp_path):
    folder, _ = folder
    said = run(
        "fit",
        folder / "cars.csv",
        "--target",
        "class",
        "--drop",
        "price",
        *QUICK,
        "--steps",
        "300",
        "--out",
        tmp_path / "c",
    ).output
    assert "classes of class: large, small" in said
    assert "most frequent class" in said
    run("predict", tmp_path / "c", folder / "cars.csv", "--out", tmp_path / "p.csv")
    found, frame = pd.read_csv(tmp_path / "p.csv"), cars()
    assert list(found) == ["row", "class_predicted", "class_probability", "p_large", "p_small"]
    np.testing.assert_allclose(found["p_large"] + found["p_small"], 1, atol=1e-5)
    assert (found["class_predicted"] == frame["class"]).mean() > 0.7
    page = tmp_path / "page.html"
    said = run("diagnose", tmp_path / "c", folder / "cars.csv", "--html", page, "--num-samples", "20").output
    assert "48 rows were trained on, 12 held out" in said
    assert "Confusion" in page.read_text()
    assert "Reliability" in page.read_text()


@pytest.mark.parametrize(
    ("labels", "options", "classes"),
    [
        ([1, 2], [], ["1", "2"]),
        (["True", "False"], [], ["False", "True"]),
        ([1, 2, 10], ["--task", "classification"], ["1", "2", "10"]),
        (["b", "a", "c"], [], ["a", "b", "c"]),
    ],
)
def test_labels_of_any_kind(tmp_path, labels, options, classes):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=40), "y": rng.choice(labels, 40)})
    frame.to_csv(tmp_path / "data.csv", index=False)
    run("fit", tmp_path / "data.csv", "--target", "y", *QUICK, *options, "--out", tmp_path / "fit", "--quiet")
    run("predict", tmp_path / "fit", tmp_path / "data.csv", "--out", tmp_path / "p.csv", "--quiet")
    assert list(pd.read_csv(tmp_path / "p.csv"))[3:] == [f"p_{label}" for label in classes]


def test_two_numbers_can_be_predicted_as_numbers(tmp_path):
    rng = np.random.default_rng(0)
    pd.DataFrame({"x": rng.normal(size=40), "y": rng.integers(1, 3, 40)}).to_csv(tmp_path / "data.csv", index=False)
    for index, options in enumerate((["--task", "regression"], ["--likelihood", "gaussian"])):
        out = tmp_path / str(index)
        run("fit", tmp_path / "data.csv", "--target", "y", *QUICK, *options, "--out", out, "--quiet")
        assert "rmse" in json.loads((out / "metrics.json").read_text())


def test_files_are_read_again_as_they_were_read(tmp_path):
    rng = np.random.default_rng(0)
    lines = [f"{a:.3f} {a + b:.3f} {'u' if a > 0 else 'v'}".replace(".", ",") for a, b in rng.normal(size=(40, 2))]
    (tmp_path / "data.txt").write_text("\n".join(lines), encoding="utf-16")
    options = ["--no-header", "--decimal", ",", "--target", "x3", "--time-limit", "60"]
    said = run("fit", tmp_path / "data.txt", *options, *QUICK, "--out", tmp_path / "fit").output
    assert "2 features, classes of x3: u, v" in said
    said = run("predict", tmp_path / "fit", tmp_path / "data.txt", "--out", tmp_path / "p.csv").output
    assert "accuracy" in said


def test_a_gap_in_a_table_of_numbers_is_no_reason_to_stop(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(40, 3)), columns=["a", "b", "y"])
    frame.to_csv(tmp_path / "data.csv", index=False)
    run(
        "fit",
        tmp_path / "data.csv",
        "--target",
        "y",
        *QUICK,
        "--test-fraction",
        "0",
        "--out",
        tmp_path / "fit",
        "--quiet",
    )
    gappy, filled = frame.copy(), frame.copy()
    gappy.loc[3, "a"], filled.loc[3, "a"] = np.nan, frame["a"].median()
    for name, table in (("gappy", gappy), ("filled", filled)):
        table.drop(columns="y").to_csv(tmp_path / f"{name}.csv", index=False)
        result = run("predict", tmp_path / "fit", tmp_path / f"{name}.csv", "--out", tmp_path / f"{name}.out")
        assert ("1 rows have gaps" in result.output) == (name == "gappy")
    assert (tmp_path / "gappy.out").read_text() == (tmp_path / "filled.out").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "make", "--task", "regression"], "is no number: --task classification predicts labels"),
        (["--target", "make", "class"], "classification is of one target"),
        (["--target", "name"], "too many to learn"),
        (["--target", "make", "--noise", "0.1"], "--noise is for targets that are numbers"),
        (["--target", "price", "--likelihood", "categorical"], "too many to learn"),
        (["--target", "price", "--likelihood", "poisson", "--task", "classification"], "is not for --task"),
        (["--target", "price", "--no-standardize"], "--no-standardize is for tables of numbers"),
        (["--target", "price", "--decimal", ";"], "is not one of"),
        (["--target", "price", "--feature", "name"], "no features but name"),
    ],
)
def test_what_cannot_be_done_says_what_to_do(folder, tmp_path, options, words):
    said = run("fit", folder[0] / "cars.csv", *options, *QUICK, "--out", tmp_path / "fit", code=2).output
    assert words in said


def test_help_has_groups():
    said = run("fit", "--help").output
    groups = ["The table:", "How the file is read:", "The network:"]
    groups += ["How the posterior is found:", "By chains:", "By fits:", "What is fixed, and at what:"]
    places = [said.index(group) for group in groups]
    assert places == sorted(places)
    assert said.index("What the fixed weights are set to") > places[-1]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("classes", ["a"]),
        ("encoder", {"columns": [], "blocks": [], "left_out": []}),
        ("encoder", 5),
        ("fill", ["a"]),
        ("reading", {"path": "/etc/passwd"}),
        ("reading", {"missing": [5]}),
    ],
)
def test_made_up_models_are_refused(folder, tmp_path, place, value):
    header, tensors = take_apart(folder[0] / "fit" / FILE)
    header["extra"][place] = value
    make_up(tmp_path / FILE, header, tensors)
    assert "damaged" in run("predict", tmp_path, folder[0] / "cars.csv", code=2).output


def test_weights_and_error_bars_are_columns(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 80)
    error = rng.uniform(0.05, 0.5, 80)
    table = pd.DataFrame(
        {"x": x, "y": x + error * rng.normal(size=80), "error": error, "times": rng.integers(0, 3, 80)}
    )
    table.to_csv(tmp_path / "table.csv", index=False)
    options = ["--weight", "times", "--noise-column", "error"]
    said = run("fit", tmp_path / "table.csv", "--target", "y", *options, *QUICK, "--out", tmp_path / "fit").output
    assert "1 features" in said
    assert "rows count 0 to 2 times" in said
    assert "error bars of 0.05" in said
    run("predict", tmp_path / "fit", tmp_path / "table.csv", "--out", tmp_path / "with.csv")
    table.drop(columns=["error", "times"]).to_csv(tmp_path / "new.csv", index=False)
    said = run("predict", tmp_path / "fit", tmp_path / "new.csv", "--out", tmp_path / "without.csv").output
    assert "no error bars are added: " in said
    barred, plain = (pd.read_csv(tmp_path / name)["y_std"] for name in ("with.csv", "without.csv"))
    np.testing.assert_allclose(barred**2, plain**2 + error**2, rtol=1e-4)
    assert "64 rows were trained on" in run("diagnose", tmp_path / "fit", tmp_path / "table.csv").output
    for column, value, words in (("times", -1, "holds -1"), ("error", None, "has a gap"), ("times", "a", "'a'")):
        wrong = table.astype({"times": object})
        wrong.loc[3, column] = value
        wrong.to_csv(tmp_path / "wrong.csv", index=False)
        arguments = ["fit", tmp_path / "wrong.csv", "--target", "y", *options, *QUICK, "--out", tmp_path / "none"]
        assert words in run(*arguments, code=2).output


CHAINS = ["--method", "sample", "--chains", "2", "--hidden", "4", "--steps", "120", "--seed", "1"]


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampled")
    cars(90).drop(columns=["id", "name"]).to_csv(folder / "cars.csv", index=False)
    options = ["--target", "class", "--drop", "price", *CHAINS]
    said = run("fit", folder / "cars.csv", *options, "--out", folder / "chains").output
    return folder, said


def test_chains_are_fitted_predicted_and_diagnosed(sampled, tmp_path):
    folder, said = sampled
    assert "2 chains of 2 draws after 40 steps of warm-up" in said
    metrics = json.loads((folder / "chains" / "metrics.json").read_text())
    assert {"chains", "draws", "warmup", "accuracy", "lpp", "baselines"} <= metrics.keys()
    assert metrics["fixed_weights"] == 0
    run("predict", folder / "chains", folder / "cars.csv", "--out", tmp_path / "p.csv")
    found = pd.read_csv(tmp_path / "p.csv")
    np.testing.assert_allclose(found[["p_large", "p_small"]].sum(axis=1), 1, atol=1e-6)
    said = run("diagnose", folder / "chains", folder / "cars.csv", "--html", tmp_path / "d.html").output
    assert "R-hat" in said
    page = (tmp_path / "d.html").read_text()
    assert "Energy" in page
    assert "Confusion" in page
    assert (
        "--level has no effect on labels"
        in run("predict", folder / "chains", folder / "cars.csv", "--level", "0.9", code=2).output
    )
    said = run("diagnose", folder / "chains", folder / "cars.csv", "--baseline", folder / "chains", code=2).output
    assert "--baseline is for fits" in said


def test_chains_that_have_ended_come_back_and_do_not_go_on_as_fits(tmp_path):
    rows = np.random.default_rng(0).normal(size=(40, 3))
    pd.DataFrame(rows, columns=["a", "b", "y"]).to_csv(tmp_path / "data.csv", index=False)
    options = ["--target", "y", "--checkpoint-every", "20", "--noise", "0.5", *CHAINS]
    run("fit", tmp_path / "data.csv", *options, "--out", tmp_path / "whole")
    predicted = [run("predict", tmp_path / "whole", tmp_path / "data.csv", "--quiet").stdout]
    run("fit", tmp_path / "data.csv", *options, "--resume", "--out", tmp_path / "whole")
    predicted.append(run("predict", tmp_path / "whole", tmp_path / "data.csv", "--quiet").stdout)
    assert predicted[0] == predicted[1]
    other = [*options[:-8], "--method", "fit", "--hidden", "4", "--resume", "--out", tmp_path / "whole"]
    assert "was started by chains, not by fits" in run("fit", tmp_path / "data.csv", *other, code=2).output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "sample", "--replicas", "2"], "--replicas is for --method fit, not sample"),
        (["--method", "fit", "--chains", "2"], "--chains is for --method sample, not fit"),
        (["--particles", "2", "--chains", "2"], "--particles is for --method fit and --chains for --method sample"),
        (["--scheme", "none", "--values", "map"], "--values map has no effect with --scheme none"),
    ],
)
def test_options_without_effect_are_refused(folder, tmp_path, options, words):
    data = folder[0] / "cars.csv"
    assert words in run("fit", data, "--target", "price", *options, "--out", tmp_path / "out", code=2).output


def test_an_option_that_only_one_method_has_asks_for_it():
    def asked(*options):
        command = main.commands["fit"]
        context = click.Context(command)
        command.parse_args(context, ["d.csv", "--target", "y", "--out", "o", *options])
        return method_asked(context)

    assert [asked(), asked("--replicas", "3"), asked("--chains", "3")] == ["auto", "fit", "sample"]
    assert asked("--scheme", "heavy", "--values", "learned-constant") == "fit"


def test_large_tables_get_the_recipe_of_the_estimators(tmp_path, monkeypatch):
    """Where the method is left open, the likelihood is tried on held-out rows, and there are more rows in a step."""
    from pyro_sps.estimators import methods

    tried = []

    def choose(recipe, x, y, seconds):
        tried.append((recipe.method, x))
        return sps.HeteroscedasticGaussian()

    monkeypatch.setattr(methods, "AFFORDABLE", 0)
    monkeypatch.setattr(methods, "MANY_ROWS", 50)
    monkeypatch.setattr(methods, "choose_likelihood", choose)
    rows = np.random.default_rng(0).normal(5.0, 3.0, size=(80, 3))
    pd.DataFrame(rows, columns=["a", "b", "y"]).to_csv(tmp_path / "data.csv", index=False)
    few = ["--target", "y", "--hidden", "4", "--steps", "5", "--quiet"]
    run("fit", tmp_path / "data.csv", *few, "--out", tmp_path / "auto")
    run("fit", tmp_path / "data.csv", *few, "--method", "fit", "--batch-size", "7", "--out", tmp_path / "asked")
    ((method, x),) = tried
    assert method == "fit"
    np.testing.assert_allclose(x.std(0), 1.0)
    found = sps.load(tmp_path / "auto", sps.mlp([2, 4, 2]))
    assert found.settings["batch_size"] == 1024
    assert isinstance(found.bnn.likelihood, sps.HeteroscedasticGaussian)
    asked = sps.load(tmp_path / "asked", sps.mlp([2, 4, 1]))
    assert asked.settings["batch_size"] == 7
    assert isinstance(asked.bnn.likelihood, sps.Gaussian)
