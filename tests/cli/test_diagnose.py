"""`pyro-sps diagnose` as a user runs it."""

import re

import numpy as np
import pytest
from click.testing import CliRunner

from pyro_sps.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a table, a fit of it, and a fit with nothing fixed."""
    folder = tmp_path_factory.mktemp("diagnose")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 2))
    table = np.column_stack([x, x.sum(1) * 3 + 10 + 0.1 * generator.normal(size=60)])
    np.savetxt(folder / "data.csv", table, delimiter=",", header="a,b,target", comments="")
    np.savetxt(folder / "new.csv", table[:25] + 0.01, delimiter=",", header="a,b,target", comments="")
    np.savetxt(folder / "inputs.csv", x, delimiter=",", header="a,b", comments="")
    for name, scheme in (("run", "heavy"), ("vanilla", "none")):
        arguments = ["--target", "target", "--hidden", "4", "4", "--steps", "60", "--scheme", scheme, "--quiet"]
        arguments += ["--noise", "0.1", "--method", "fit"]
        arguments += ["--values", "learned-constant"] if scheme == "heavy" else []
        result = run("fit", folder / "data.csv", *arguments, "--out", folder / name)
        assert result.exit_code == 0, result.output
    return folder


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_rows_are_divided_as_in_the_fit(folder):
    result = run("diagnose", folder / "run", folder / "data.csv", "--num-samples", 50, "--baseline", folder / "vanilla")
    assert result.exit_code == 0, result.output
    assert "48 rows were trained on, 12 held out" in result.stdout
    assert "Predictions for 12 held-out rows" in result.stdout
    assert "LPP of the baseline" in result.stdout
    assert re.search(r"^0 +-?[\d,.]+ ± [\d.]+ .*of 50$", result.stdout, re.MULTILINE)


def test_other_data_counts_as_held_out(folder):
    result = run("diagnose", folder / "run", folder / "new.csv", "--num-samples", 50)
    assert result.exit_code == 0, result.output
    assert "is not what the network was fitted to: all of its 25 rows count as held out" in result.stdout
    assert "Predictions for 25 held-out rows" in result.stdout
    assert "need the training data" in result.stdout


def test_same_seed_same_report(folder):
    one, same = (run("diagnose", folder / "run", folder / "data.csv", "--num-samples", 20) for _ in range(2))
    assert one.stdout == same.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "data.csv"], "there is no saved fit in"),
        (["run", "missing.csv"], "DATA is neither a file nor one of the data sets"),
        (["run", "inputs.csv"], "has no usable target columns target"),
        (["run", "data.csv", "--html", "no/page.html"], "there is no folder"),
        (["run", "data.csv", "--html", "data.csv"], "exists; --force overwrites it"),
        (["run", "data.csv", "--num-samples", "5"], "5 is not in the range x>=10"),
        (["run", "data.csv", "--baseline", "none"], "there is no saved fit in"),
    ],
)
def test_mistakes_are_one_line(folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    result = run("diagnose", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_page_has_all_figures_and_needs_nothing_else(folder, tmp_path):
    page = tmp_path / "page.html"
    arguments = [folder / "run", folder / "data.csv", "--num-samples", 50, "--html", page]
    result = run("diagnose", *arguments)
    assert result.exit_code == 0, result.output
    assert f"wrote {page}" in result.stdout
    text = page.read_text(encoding="utf-8")
    assert text.count("<img") == text.count('src="data:image/png;base64,') == 5
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text)
    for alt in ("ELBO", "Calibration", "PIT", "Predicted against observed", "Importance weights"):
        assert f'alt="{alt}' in text
    assert "A fit of a 2-4-4-1 network" in text
    again = run("diagnose", *arguments)
    assert again.exit_code == 2
    assert run("diagnose", *arguments, "--force").exit_code == 0
