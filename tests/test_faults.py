"""Files that are damaged, foreign or hostile: a named error or a correct result, in bounded memory and time."""

import csv
import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import time
import zipfile
from pathlib import Path

import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from click.testing import CliRunner
from saved_files import FILE, as_old, make_up, raw, reseal, take_apart, write_old_model

import pyro_sps as sps
from pyro_sps.cli import main
from pyro_sps.data import csv_files, excel, headers
from pyro_sps.data.tables import DataError, read_table

WIDTHS = [2, 3, 1]


def net():
    return sps.mlp(WIDTHS, device="meta")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a tiny fit, made by the command line, and the data it was made of."""
    folder = tmp_path_factory.mktemp("saved")
    x = np.random.default_rng(0).normal(size=(12, 3)).round(3)
    data = folder / "data.csv"
    np.savetxt(data, x, delimiter=",", header="a,b,y", comments="", fmt="%.3f")
    options = ["--hidden", "3", "--steps", "2", "--particles", "1", "--quiet", "--noise", "learned"]
    options += ["--scheme", "heavy", "--values", "learned-constant"]
    result = CliRunner().invoke(main, ["fit", str(data), "--target", "y", *options, "--out", str(folder / "fit")])
    assert result.exit_code == 0, result.output
    return folder / "fit", data


@pytest.fixture(scope="module")
def old(saved, tmp_path_factory):
    """The same in the form of version 0.1, of two files and `model.json`."""
    folder = copy_of(saved[0], tmp_path_factory.mktemp("old") / "fit")
    as_old(folder)
    return folder, saved[1]


def copy_of(folder, to):
    to.mkdir(exist_ok=True)
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def corruptions(content, count, seed=0):
    """Bit flips, truncations, insertions, deletions, swapped and repeated blocks."""
    generator = random.Random(seed)
    for index in range(count):
        damaged = bytearray(content)
        first, second = sorted(generator.randrange(len(damaged)) for _ in range(2))
        kind = index % 6
        if kind == 0:
            for _ in range(generator.randrange(1, 10)):
                damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        elif kind == 1:
            del damaged[first:]
        elif kind == 2:
            damaged[first:first] = generator.randbytes(generator.randrange(1, 50))
        elif kind == 3:
            del damaged[first : first + generator.randrange(1, 50)]
        elif kind == 4:
            size = min(generator.randrange(1, 64), second - first, len(damaged) - second)
            damaged[first : first + size], damaged[second : second + size] = (
                damaged[second : second + size],
                damaged[first : first + size],
            )
        else:
            damaged[first:first] = damaged[first:second]
        yield bytes(damaged)


def check_model(fit):
    """A model that was read from a file that somebody made: everything in it fits together."""
    for weight in fit.bnn.weights:
        assert weight.mask.dtype == torch.bool
        assert set(weight.mask.view(torch.uint8).flatten().tolist()) <= {0, 1}
        assert weight.fixed.isfinite().all()
    assert fit.guide.loc.shape == fit.guide.scale.shape == (fit.bnn.num_stochastic,)
    assert fit.guide.loc.dtype == fit.bnn.like.dtype
    assert fit.guide.loc.isfinite().all()
    assert fit.bnn.likelihood.noise_scale.isfinite().all()
    assert (fit.bnn.likelihood.noise_scale > 0).all()
    assert fit.predict(torch.zeros(2, 2), 3).mean.shape == (2, 1)


# --- saved fits ------------------------------------------------------------------------------------


pytestmark = pytest.mark.filterwarnings("ignore:the fit in .* is of version 0.1")


@pytest.mark.parametrize(
    ("form", "name", "count"),
    [("saved", "fit.safetensors", 240), ("old", "fit.json", 120), ("old", "fit.safetensors", 120)],
)
def test_damage_to_a_saved_fit_is_noticed(request, tmp_path, form, name, count):
    folder = copy_of(request.getfixturevalue(form)[0], tmp_path / "fit")
    content = (folder / name).read_bytes()
    good, refused = sps.load(folder, net()).predict(torch.ones(1, 2), 3).mean, 0
    for damaged in corruptions(content, count):
        (folder / name).write_bytes(damaged)
        try:
            fit = sps.load(folder, net())
        except sps.LoadError:
            refused += 1
        else:  # such as a space that JSON does not care about
            assert torch.equal(fit.predict(torch.ones(1, 2), 3).mean, good)
    assert refused > 0.9 * count


def old_sealed(folder, header, content):
    """Write a fit of version 0.1 with right checksums."""
    header = header | {"sha256": hashlib.sha256(content).hexdigest()}
    text = json.dumps(header, indent=1, sort_keys=True)
    document = {"checksum": hashlib.sha256(text.encode()).hexdigest(), "header": header}
    (folder / "fit.safetensors").write_bytes(content)
    (folder / "fit.json").write_text(json.dumps(document))


def is_refused(folder):
    """Whether a made-up fit is refused; if it is not, it must be a model."""
    try:
        fit = sps.load(folder, net())
    except sps.LoadError:
        return True
    check_model(fit)
    return False


def old_read(folder):
    return json.loads((folder / "fit.json").read_text())["header"], (folder / "fit.safetensors").read_bytes()


def test_damage_under_right_checksums_is_refused_or_a_model(saved, tmp_path):
    folder = copy_of(saved[0], tmp_path / "fit")
    path = folder / FILE
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")

    def refused(damaged):
        path.write_bytes(reseal(damaged))
        return is_refused(folder)

    assert np.mean([refused(damaged) for damaged in corruptions(content, 150, seed=1)]) > 0.5
    numbers = [refused(content[:start] + damaged) for damaged in corruptions(content[start:], 120, seed=2)]
    assert 0.3 < np.mean(numbers) < 1  # a flipped bit of a number gives another model, which nobody can tell


def test_damage_to_old_files_under_right_checksums_is_refused_or_a_model(old, tmp_path):
    folder = copy_of(old[0], tmp_path / "fit")
    header, content = old_read(folder)

    def refused(damaged):
        old_sealed(folder, header, damaged)
        return is_refused(folder)

    assert all(refused(damaged) for damaged in corruptions(content, 60, seed=1))
    start = 8 + int.from_bytes(content[:8], "little")
    assert 0.3 < np.mean([refused(content[:start] + part) for part in corruptions(content[start:], 60, seed=2)]) < 1


HOSTILE = [
    None, True, -1, 0, 1.5, 10**30, 10**400, 1e400, float("nan"), "", "load", "__class__", "../../etc/passwd", "\ud800",
    [], [10**12], [-1, -2], [1] * 1000, {}, {"per_output": 10**13}, {"scale": -1.0}, {"scale": "1"}, {"self": 1},
    "x" * 10_000, [[["deep"]]], {"name": "Gaussian", "arguments": {"scale": 1e-320}},
    {"name": [], "arguments": {}}, {"own": False, "scale": 10**400, "scale_by_fan_in": False},
]  # fmt: skip


@pytest.mark.parametrize("form", ["saved", "old"])
def test_hostile_headers_are_refused_or_a_model(request, tmp_path, form):
    folder = copy_of(request.getfixturevalue(form)[0], tmp_path / "fit")
    header, content = take_apart(folder / FILE) if form == "saved" else old_read(folder)
    generator = random.Random(0)
    refused = []
    for _ in range(200):
        changed = json.loads(json.dumps(header))
        place, key = changed, generator.choice(list(changed))
        while isinstance(place[key], dict | list) and place[key] and generator.random() < 0.7:
            place = place[key]
            key = generator.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if generator.random() < 0.1:
            del place[key]
        else:
            place[key] = generator.choice(HOSTILE)
        if form == "saved":
            make_up(folder / FILE, changed, content)
        else:
            old_sealed(folder, changed, content)
        refused.append(is_refused(folder))
    assert np.mean(refused) > 0.4  # what is for the reader, or for the command line, may be anything


def bad_tensors():
    """Changes to single tensors, each of which makes the file one of no model."""
    ones = torch.ones
    yield from (
        ("mask.0.weight", ones(3, 2)),
        ("mask.0.weight", ones(3, 2, dtype=torch.uint8)),
        ("mask.0.weight", torch.full((3, 2), 7, dtype=torch.uint8).view(torch.bool)),
        ("mask.0.weight", ones(2, 3, dtype=torch.bool)),
        ("mask.0.weight", ones(3, 2, dtype=torch.bool)),  # then the guide has too few entries
        ("0.fixed.0.weight", ones(3, 2, dtype=torch.float64)),
        ("0.fixed.0.weight", torch.full((3, 2), float("nan"))),
        ("0.guide.loc", ones(1)),
        ("0.guide.loc", None),
        ("0.guide.scale", torch.full((11,), float("inf"))),
        ("0.losses", ones(2)),
        ("0.losses", ones(1, 2, dtype=torch.float64)),
        ("0.standardizer.x_mean", ones(5)),
        ("0.standardizer.x_scale", torch.zeros(2)),
        ("0.standardizer.y_scale", -ones(1)),
        ("0.state.fixed_scale_unconstrained", torch.tensor(1e4)),
        ("0.state.fixed_scale_unconstrained", torch.tensor(-1e4)),
        ("0.state.fixed_scale_unconstrained", ones(2)),
        ("0.state.likelihood.scale_unconstrained", torch.tensor(float("nan"))),
        ("0.state.likelihood.scale_unconstrained", None),
        ("0.validation.lpp", ones(2)),
        ("1.guide.loc", ones(11)),  # of a fit that the header does not have
        ("network.outputs", torch.zeros(12, 1, dtype=torch.float64)),
        ("network.outputs", torch.zeros(1, dtype=torch.float64)),
        ("network.outputs", None),
        ("../../escape", ones(2)),
        ("__class__", ones(2)),
    )


@pytest.mark.parametrize(("name", "value"), list(bad_tensors()))
def test_tensors_that_are_no_model_are_refused(saved, tmp_path, name, value):
    folder = copy_of(saved[0], tmp_path / "fit")
    header, tensors = take_apart(folder / FILE)
    assert name in tensors or name.startswith(("0.validation", "1.", "..", "__"))
    tensors[name] = value
    make_up(folder / FILE, header, {key: value for key, value in tensors.items() if value is not None})
    assert is_refused(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit"]


def entry(start, stop, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


RAW = [
    b"",
    b"\0" * 7,
    raw(b"{}", length=2**63),
    raw(b"{}", length=2**64 - 1),
    raw(b"{}", length=50 << 20),
    raw(b"[" * 100_000),
    raw(b'{"a":' * 100_000),
    raw(b'{"a": ' + b"9" * 100_000 + b"}"),
    raw({"a": entry(-4, 0)}, b"\0" * 8),
    raw({"a": entry(4, 0)}, b"\0" * 8),
    raw({"a": entry(0, 2**62, (2**60,))}, b"\0" * 8),
    raw({"a": entry(0, 4, (2**62, 4))}, b"\0" * 4),
    raw({"a": entry(0, 4, (0, 2**63))}, b"\0" * 4),
    raw({"a": entry(0, 4), "b": entry(0, 4)}, b"\0" * 4),
    raw({"a": entry(0, 4), "b": entry(8, 12)}, b"\0" * 12),
    raw({"a": entry(0, 4, (), "PICKLE")}, b"\0" * 4),
    raw({"__metadata__": {"a": [1]}}),
    raw(b'{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "a": {}}', b"\0" * 4),
    b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.",
]


@pytest.mark.parametrize("content", RAW, ids=range(len(RAW)))
def test_hostile_safetensors_are_refused(saved, old, tmp_path, content):
    folder = copy_of(saved[0], tmp_path / "fit")
    (folder / FILE).write_bytes(content)
    assert is_refused(folder)
    folder = copy_of(old[0], tmp_path / "old")
    old_sealed(folder, old_read(folder)[0], content)
    assert is_refused(folder)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 100_000 + "}", "NaN", '{"format": 3, "format": 3}', "[]", ""],
    ids=range(7),
)
def test_hostile_texts_in_a_sealed_file_are_refused(saved, tmp_path, text):
    folder = copy_of(saved[0], tmp_path / "fit")
    make_up(folder / FILE, text, take_apart(folder / FILE)[1])
    assert is_refused(folder)
    predict(folder, saved[1], refused=True)


JSON_TEXTS = [
    b"[" * 100_000,
    b'{"header":' * 100_000,
    b'{"header": ' + b"9" * 100_000 + b', "checksum": ""}',
    b'{"header": NaN, "checksum": ""}',
    b'{"header": {"format": 2}, "checksum": "", "header": {"format": 2}}',
    b'{"header": "\\ud800", "checksum": ""}',
    b"\xff\xfe{\0}\0",
    b"\xef\xbb\xbf{}",
    b"null",
    b"",
]


@pytest.mark.parametrize("text", JSON_TEXTS, ids=range(len(JSON_TEXTS)))
@pytest.mark.parametrize("name", ["fit.json", "model.json"])
def test_hostile_json_is_refused(old, saved, tmp_path, name, text):
    folder = copy_of(old[0], tmp_path / "fit")
    (folder / name).write_bytes(text.replace(b'"header"', b'"model"') if name == "model.json" else text)
    predict(folder, saved[1], refused=True)


def test_a_key_that_comes_twice_is_refused(old, tmp_path):
    folder = copy_of(old[0], tmp_path / "fit")
    text = (folder / "fit.json").read_text()
    (folder / "fit.json").write_text(text.replace('"mode": ', '"mode": "", "mode": ', 1))
    with pytest.raises(sps.LoadError, match="a key comes twice"):
        sps.load(folder, net())


def predict(folder, data, refused):
    """The outcome of `pyro-sps predict`, which must be predictions or one line."""
    result = CliRunner().invoke(main, ["predict", str(folder), str(data), "--num-samples", "3", "--quiet"])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    if result.exit_code:
        assert result.exit_code == 2, result.output
        assert result.output.startswith("Error: ")
        assert result.output.count("\n") == 1
        return True
    assert not refused, "a damaged folder was used"
    table = np.array([row[1:] for row in list(csv.reader(io.StringIO(result.output)))[1:]], dtype=float)
    assert np.isfinite(table).all()
    return False


@pytest.mark.parametrize("kind", ["directory", "pipe", "nothing", "endless", "dangling", "loop", "unreadable"])
@pytest.mark.parametrize(
    ("form", "name"),
    [("saved", "fit.safetensors"), ("old", "fit.json"), ("old", "fit.safetensors"), ("old", "model.json")],
)
def test_what_is_no_file_is_refused_at_once(request, saved, tmp_path, form, name, kind):
    folder = copy_of(request.getfixturevalue(form)[0], tmp_path / "fit")
    path = folder / name
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)  # whose reader would wait for ever
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "unreadable":
        path.write_bytes(b"")
        path.chmod(0)
    started = time.perf_counter()
    predict(folder, saved[1], refused=True)
    assert time.perf_counter() - started < 5


# --- the folder of the command line ----------------------------------------------------------------


def test_damage_to_the_folder_of_the_command_line_is_noticed(old, saved, tmp_path):
    folder = copy_of(old[0], tmp_path / "fit")
    for name, count in (("model.json", 90), ("metrics.json", 12)):
        content = (folder / name).read_bytes()
        outcomes = []
        for damaged in corruptions(content, count, seed=2):
            (folder / name).write_bytes(damaged)
            outcomes.append(predict(folder, saved[1], refused=False))
        (folder / name).write_bytes(content)
        assert np.mean(outcomes) > 0.9 if name == "model.json" else not any(outcomes)  # which is for the reader


MODELS = [
    {"widths": [2, 10**12, 1]},
    {"widths": [2, 0, 1]},
    {"widths": [2, 5000, 5000, 1]},
    {"widths": [2] + [3] * 100_000 + [1]},
    {"widths": [2, 4, 1]},
    {"widths": [True, 3, 1]},
    {"widths": [3]},
    {"activation": "__import__"},
    {"activation": []},
    {"activation": "relu"},
    {"features": ["a"]},
    {"features": ["a", "a"]},
    {"features": ["a", "nowhere"]},
    {"targets": ["y", "z"]},
    {"target_scale": [float("nan")]},
    {"target_scale": [0.0]},
    {"target_scale": []},
    {"options": []},
    {"format": 1},
]


@pytest.mark.parametrize("change", MODELS, ids=lambda change: str(change)[:40])
def test_a_made_up_model_is_refused(saved, tmp_path, change):
    folder = copy_of(saved[0], tmp_path / "fit")
    header, tensors = take_apart(folder / FILE)
    make_up(folder / FILE, header | {"extra": header["extra"] | change}, tensors)
    predict(folder, saved[1], refused=True)


@pytest.mark.parametrize("change", [*MODELS, {"fit": "0" * 64}, {"fit": None}], ids=lambda change: str(change)[:40])
def test_a_made_up_model_file_of_version_0_1_is_refused(old, tmp_path, change):
    folder = copy_of(old[0], tmp_path / "fit")
    write_old_model(folder, json.loads((folder / "model.json").read_text())["model"] | change)
    # Another activation gives another network of the same shape: version 0.1 did not say what its network computed.
    predict(folder, old[1], refused=change != {"activation": "relu"})


def test_a_fit_that_is_not_of_the_command_line_says_so(saved, tmp_path):
    folder = copy_of(saved[0], tmp_path / "fit")
    sps.load(folder, net()).save(folder)
    result = CliRunner().invoke(main, ["predict", str(folder), str(saved[1])])
    assert "holds a fit that pyro-sps fit did not write" in result.output


def test_a_fit_of_version_0_1_is_replaced(old, tmp_path):
    folder = copy_of(old[0], tmp_path / "fit")
    with pytest.warns(UserWarning, match=r"version 0\.1 and does not say what its network computed"):
        fit = sps.load(folder, net())
    fit.save(folder)
    assert not (folder / "fit.json").exists()
    x = torch.ones(1, 2)
    assert torch.equal(sps.load(folder, net()).predict(x, 3).mean, fit.predict(x, 3).mean)
    (folder / "fit.json").write_bytes((old[0] / "fit.json").read_bytes())  # as if killed before it was removed
    assert torch.equal(sps.load(folder, net()).predict(x, 3).mean, fit.predict(x, 3).mean)


# --- tables ----------------------------------------------------------------------------------------


def test_damaged_csv_files_are_refused_or_read_as_python_reads_them(saved, tmp_path):
    content, path = saved[1].read_bytes(), tmp_path / "damaged.csv"
    refused = 0
    for damaged in corruptions(content, 240, seed=3):
        path.write_bytes(damaged)
        try:
            data = read_table(path)
        except DataError:
            refused += 1
            continue
        rows = [row for row in csv.reader(io.StringIO(damaged.decode("utf-8-sig"))) if any(map(str.strip, row))]
        expected = [[float(cell) for cell in row[: len(data.feature_names)]] for row in rows[1:]]
        assert data.x.tolist() == expected
    assert refused > 60


def test_many_columns_take_no_square_of_time(tmp_path, monkeypatch):
    path = tmp_path / "wide.csv"
    names = [f"c{index}" for index in range(50_000)]
    path.write_text(",".join(names) + "\n" + ",".join("1" for _ in names) + "\n")
    started = time.perf_counter()
    assert read_table(path, features=names).x.shape == (1, 50_000)
    assert time.perf_counter() - started < 5
    monkeypatch.setattr(headers, "MAX_COLUMNS", 10)
    monkeypatch.setattr(excel, "MAX_COLUMNS", 10)
    with pytest.raises(DataError, match="more than 10 columns"):
        read_table(path)


SHEET = '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">{}</worksheet>'
HEAD = '<row r="1"><c r="A1" t="inlineStr"><is><t>a</t></is></c></row>'


def workbook(path, sheet=None, parts=None):
    """A workbook whose sheet or other parts are replaced by this XML."""
    book = openpyxl.Workbook()
    book.active.append(["a"])
    book.active.append([1.0])
    buffer = io.BytesIO()
    book.save(buffer)
    changed = {**({"xl/worksheets/sheet1.xml": sheet} if sheet else {}), **(parts or {})}
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for name in old.namelist():
            new.writestr(name, changed.get(name, old.read(name)))
    return path


ENTITIES = '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb">' + "".join(
    f'<!ENTITY {chr(99 + i)} "{f"&{chr(98 + i)};" * 10}">' for i in range(10)
)
BOMBS = {
    "cells": (SHEET.format(f"<sheetData>{HEAD}<row>" + "<c/>" * 5000 + "</row></sheetData>"), "more than 2,000 elem"),
    "junk": (SHEET.format("<a/>" * 5000), "more than 2,000 elements"),
    "rows": (SHEET.format("<sheetData>" + "<row/>" * 5000 + "</sheetData>"), "more than 2,000 elements"),
    "attributes": (SHEET.format("<a " + " ".join(f'a{i}=""' for i in range(3000)) + "/>"), "more than 2,000 elements"),
    "text": (SHEET.format("<a>" + "x" * 200_000 + "</a>"), "more than 2,000 elements"),
    "tag": (SHEET.format('<a b="' + "x" * 500_000 + '"/>'), "a tag of more than"),
    "entities": (ENTITIES + "]>" + SHEET.format("<a>&k;</a>"), "document type"),
    "deep": (SHEET.format("<a>" * 1900 + "</a>" * 1900), "no column names"),
    "far": (
        SHEET.format('<sheetData><row r="1"><c r="ZZZZZZZ1"><v>1</v></c></row></sheetData>'),
        "cannot be read as an Excel workbook",
    ),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_workbooks_that_would_take_memory_are_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(excel, "MAX_ELEMENTS", 2000)
    monkeypatch.setattr(excel, "MAX_TAG", 100_000)
    sheet, words = BOMBS[kind]
    with pytest.raises(DataError, match=words):
        read_table(workbook(tmp_path / "bomb.xlsx", sheet))


def test_a_workbook_of_many_rows_holds_few_elements(tmp_path, monkeypatch):
    monkeypatch.setattr(excel, "MAX_ELEMENTS", 500)
    book = openpyxl.Workbook()
    for row in [["a", "b"], *([index, 2 * index] for index in range(300))]:
        book.active.append(row)
    book.save(tmp_path / "long.xlsx")
    assert read_table(tmp_path / "long.xlsx").x.shape == (300, 2)


def test_parquet_columns_that_are_no_numbers_are_not_unpacked(tmp_path):
    path = tmp_path / "f.parquet"
    columns = {"a": [1.0, 2.0], "text": ["1", "2"], "list": [[1.0], [2.0]], "b": pa.array([1, None], pa.int8())}
    pyarrow.parquet.write_table(pa.table(columns), path)
    assert read_table(path, features=["a"]).x.tolist() == [[1.0], [2.0]]
    for name, kind in (("text", "string"), ("list", "list<element: double>")):
        with pytest.raises(DataError, match=f"column '{name}' holds 'a value of type {kind}'"):
            read_table(path, features=[name])
    with pytest.raises(DataError, match="missing values in column 'b' \\(1\\): row 2"):
        read_table(path, features=["b"])


# --- memory, measured in a process of its own ------------------------------------------------------


def sparse(path, size=1 << 40):
    """A file that says it has a terabyte and takes no room."""
    with open(path, "wb") as file:
        file.truncate(size)


def hostile_files(saved, folder):
    """Everything that would take memory or time, as (name, what to do)."""
    fit, data = Path(saved[0]), Path(saved[1])

    def with_sparse(name):
        own = copy_of(fit, folder / f"sparse-{name}")
        sparse(own / name)
        return own

    yield "sparse numbers", lambda: sps.load(with_sparse("fit.safetensors"), net())
    yield "sparse old header", lambda: sps.load(with_sparse("fit.json"), net())
    new = copy_of(fit, folder / "new")
    (new / "fit.json").unlink()
    sparse(new / "fit.safetensors")
    yield "sparse file", lambda: sps.load(new, net())
    make_up(new / FILE, '{"a": [' + "{}," * 600_000 + "{}]}", {})
    yield "many objects in a header", lambda: sps.load(new, net())
    many = copy_of(fit, folder / "many")
    (many / "fit.json").write_text('{"header": [' + "{}," * 1_300_000 + '{}], "checksum": ""}')
    yield "many objects", lambda: sps.load(many, net())
    sparse(folder / "sparse.csv")
    yield "sparse table", lambda: read_table(folder / "sparse.csv")
    (folder / "quote.csv").write_text('a,b\n1,"' + "x\n" * 20_000_000)
    yield "endless quotation", lambda: read_table(folder / "quote.csv")
    (folder / "wide.csv").write_text("a,b\n" + "," * (csv_files.MAX_LINE - 2) + "\n")
    yield "wide line", lambda: read_table(folder / "wide.csv")
    cells = SHEET.format(f"<sheetData>{HEAD}<row>" + "<c/>" * 6_000_000 + "</row></sheetData>")
    yield "row of cells", lambda: read_table(workbook(folder / "cells.xlsx", cells))
    text = SHEET.format('<a b="' + "x" * 50_000_000 + '"/>')
    yield "long tag", lambda: read_table(workbook(folder / "tag.xlsx", text))
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["x" * 20_000_000]))
    pyarrow.parquet.write_table(pa.table({"a": long, "b": [1.0] * 5000}), folder / "text.parquet", compression="zstd")
    yield "repeated text", lambda: read_table(folder / "text.parquet", features=["a"])
    yield "the data itself", lambda: read_table(data)


def worker(saved, folder, results):
    def peak():
        """Most memory of this process so far, in MB; `ru_maxrss` would count that of the process that started it."""
        return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

    read_table(saved[1])
    sps.load(saved[0], net())  # imports are not what is measured
    for name, call in hostile_files(saved, folder):
        started = time.perf_counter()
        try:
            call()
            outcome = "read"
        except (sps.LoadError, DataError) as error:
            outcome = f"{type(error).__name__}: {str(error)[:80]}"
        results.put((name, outcome, time.perf_counter() - started, peak()))


def test_memory_and_time_are_bounded(old, tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=worker, args=(tuple(map(str, old)), tmp_path, results))
    process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
    rows = []
    while not results.empty():
        rows.append(results.get())
    assert process.exitcode == 0, rows
    for name, outcome, seconds, peak in rows:
        assert (outcome == "read") == (name == "the data itself"), (name, outcome)
        assert seconds < 30, (name, seconds)
        # Python with all imports takes 0.4 GB, what is made here to be read up to 0.2 GB.
        assert peak < 1024, (name, peak)
    assert len(rows) == 12
