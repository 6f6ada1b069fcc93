"""Reading tables: the same numbers from every format, and an error with names for everything else."""

import csv
import io
import random
import struct
import zipfile

import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pyro_sps.data import csv_files, excel, tables
from pyro_sps.data.tables import DataError, Dataset, column_names, read_table

NAMES = ["a", "b c", "y"]
VALUES = np.array([[1.5, -2.0, 3.25], [4.0, 1e-7, 6.0], [7.0, 8e12, 0.1]])


def write(path, values=VALUES, names=NAMES, delimiter=","):
    frame = pd.DataFrame(values, columns=names)
    if path.suffix == ".xlsx":
        frame.to_excel(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep=delimiter)
    return path


def text(tmp_path, content, name="data.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(content.encode(encoding))
    return path


def error_of(path, *args, **kwargs):
    with pytest.raises(DataError) as caught:
        read_table(path, *args, **kwargs)
    return str(caught.value)


# --- formats ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".xlsx", ".parquet"])
def test_every_format_gives_the_numbers_bit_for_bit(tmp_path, suffix):
    data = read_table(write(tmp_path / f"file{suffix}"), targets=["y"])
    assert data.feature_names == ("a", "b c")
    assert data.target_names == ("y",)
    assert data.name == "file"
    assert data.x.dtype == data.y.dtype == np.float64
    np.testing.assert_array_equal(np.hstack([data.x, data.y]), VALUES)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_delimiters_encodings_and_line_ends(tmp_path, delimiter, encoding, newline):
    lines = [delimiter.join(["°C", '"x, m; or"', "y"]), *(delimiter.join(map(repr, map(float, row))) for row in VALUES)]
    data = read_table(text(tmp_path, newline.join(lines), encoding=encoding), targets=["y"])
    assert data.feature_names == ("°C", "x, m; or")
    np.testing.assert_array_equal(np.hstack([data.x, data.y]), VALUES)


@settings(max_examples=40, deadline=None)
@given(
    values=hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 5), st.just(3)),
        elements=st.floats(allow_nan=False, allow_infinity=False),
    ),
    delimiter=st.sampled_from(",;\t"),
)
def test_any_finite_number_survives_a_csv_file(tmp_path_factory, values, delimiter):
    path = write(tmp_path_factory.mktemp("csv") / "f.csv", values, delimiter=delimiter)
    data = read_table(path, targets=["y"])
    np.testing.assert_array_equal(np.hstack([data.x, data.y]), values)


def test_the_name_of_a_file_does_not_matter(tmp_path):
    path = write(tmp_path / "file.xlsx").rename(tmp_path / "file.csv")
    np.testing.assert_array_equal(read_table(path).x, VALUES)


def test_old_excel_files(uci):
    import xlrd

    sheet = xlrd.open_workbook(uci / "Concrete_Data.xls").sheet_by_index(0)
    expected = [sheet.row_values(row) for row in range(1, sheet.nrows)]
    np.testing.assert_array_equal(read_table(uci / "Concrete_Data.xls").x, expected)


def test_excel_with_wrong_dimensions_notes_and_empty_rows(tmp_path):
    book = openpyxl.Workbook()
    for row in [["x", "y"], [1, 2], [3, 4], [None, None], [" ", None]]:
        book.active.append(row)
    book.active["F2"] = "a note beside the table"
    book.save(tmp_path / "f.xlsx")
    assert read_table(tmp_path / "f.xlsx", ["y"]).x.tolist() == [[1.0], [3.0]]


def test_parquet_index_and_null(tmp_path):
    path = tmp_path / "f.parquet"
    pd.DataFrame({"x": [1, 2], "y": [0, 1]}, index=["p", "q"]).to_parquet(path)
    assert read_table(path, ["y"]).feature_names == ("x",)
    pa.parquet.write_table(pa.table({"x": [1, None, 3], "y": [0, 1, 2]}), path)
    assert "missing values in column 'x' (1): row 2" in error_of(path, ["y"])


# --- columns ---------------------------------------------------------------------------------------


def test_chosen_features_come_back_in_the_order_asked_for(tmp_path):
    path = write(tmp_path / "f.csv")
    data = read_table(path, targets=[], features=["y", "a"])
    np.testing.assert_array_equal(data.x, VALUES[:, [2, 0]])
    assert data.y.shape == (3, 0)
    assert read_table(path, targets=["y"], drop=["b c"]).feature_names == ("a",)
    assert column_names(path) == ("a", "b c", "y")


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        ("a,b\n1,2\n", {"targets": ["Y"]}, ["'Y'", "'a'", "'b'"]),
        ("a,b\n1,2\n", {"targets": ["b"], "features": ["a", "b"]}, ["'b'", "both a feature and a target"]),
        ("a,b\n1,2\n", {"targets": ["b", "b"]}, ["'b'", "twice"]),
        ("a,b\n1,2\n", {"targets": ["b"], "drop": ["z"]}, ["'z'"]),
        ("a,b\n1,2\n", {"targets": ["a", "b"]}, ["no feature columns"]),
        ("a,b\n1,2\n", {"targets": ["b"], "features": ["a"], "drop": ["a"]}, ["not both"]),
        ("a,a,b\n1,2,3\n", {"targets": ["b"]}, ["'a'", "name of its own"]),
        ("1,2\n3,4\n", {"targets": ["y"]}, ["header"]),
        (",a,b\n0,1,2\n", {"targets": ["b"]}, ["column 1", "name"]),
        ("\n1,2\n", {"targets": ["b"]}, ["first line is empty"]),
        ("", {}, ["first line is empty"]),
        ("a,b\n1,2,3\n", {"targets": ["b"]}, ["line 2", "3 cells", "2 columns"]),
        ("a,b\n1,\n,4\n5\n", {"targets": ["b"]}, ["missing values", "'b' (2)", "'a' (1)", "line 2", "line 3"]),
        ("a,b\n1,2\n\n5,6\n", {"targets": ["b"]}, ["missing values", "line 3"]),
        ("a,b\n1,x\n2,3\n", {"targets": ["b"]}, ["not numbers", "line 2", "'b'", "'x'"]),
        ("a,b\n1_000,2\n", {"targets": ["b"]}, ["not numbers", "'1_000'"]),
        ("a;b\n1,5;2\n", {"targets": ["b"]}, ["not numbers", "'1,5'"]),
        ("a,b\n1,2\ninf,3\n1,-Infinity\n", {"targets": ["b"]}, ["infinite", "line 3", "'a'", "line 4", "'b'"]),
        (f"a,b\n1e999,2\n{'9' * 500},3\n", {"targets": ["b"]}, ["infinite values in column 'a' (2)", "..."]),
        ("a,b\n1,NaN\n2,n/a\n", {"targets": ["b"]}, ["missing values in column 'b' (2)"]),
        ("a,b\n1,2\n", {"targets": ["b"], "min_rows": 2}, ["1 rows", "at least 2"]),
        ("a,b\n", {"targets": ["b"], "min_rows": 1}, ["0 rows"]),
        ("a,b,c\n1,2,3\n1,3,3\n", {"targets": ["b"], "varying": True}, ["constant", "'a' (always 1)", "'c'"]),
        ("a,b\n1700000000.1,1\n1700000000.2,2\n", {"targets": ["b"], "varying": True}, ["single precision", "'a'"]),
        (
            "a,b\n1e200,1\n2e200,2\n",
            {"targets": ["b"], "varying": True},
            ["single precision", "'a' (1e+200 to 2e+200)"],
        ),
        ('a,b\n"1,2\n3,4\n', {"targets": ["b"]}, ["line"]),
    ],
)
def test_errors_name_the_file_the_columns_and_the_rows(tmp_path, content, arguments, words):
    path = text(tmp_path, content)
    message = error_of(path, **arguments)
    for word in words:
        assert word in message
    assert len(message) < 1000


def test_unused_columns_may_hold_anything(tmp_path):
    data = read_table(text(tmp_path, "a,note,b\n1,first,2\n3,,4\n"), targets=["b"], features=["a"], varying=True)
    assert data.x.tolist() == [[1.0], [3.0]]


def test_only_the_first_faults_are_shown(tmp_path):
    message = error_of(text(tmp_path, "a,b\n" + "1,x\n" * 5000), ["b"])
    assert "'b' (5000)" in message
    assert message.count("line") == 3


def test_a_string_is_not_a_list_of_names(tmp_path):
    with pytest.raises(TypeError, match="list of column names"):
        read_table(write(tmp_path / "f.csv"), targets="y")


# --- hostile files ---------------------------------------------------------------------------------


def test_files_that_are_no_tables(tmp_path):
    assert "there is no file" in error_of(tmp_path / "absent.csv")
    assert "is not a file" in error_of(tmp_path)
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    assert "neither text" in error_of(tmp_path / "image.csv")
    with zipfile.ZipFile(tmp_path / "z.xlsx", "w") as archive:
        archive.writestr("a.csv", "a,b\n1,2\n")
    assert "Excel workbook" in error_of(tmp_path / "z.xlsx")
    (tmp_path / "w.xls").write_bytes(b"\xd0\xcf\x11\xe0" + b"\0" * 600)
    assert "old Excel workbook" in error_of(tmp_path / "w.xls")
    (tmp_path / "p.parquet").write_bytes(b"PAR1" + struct.pack("<i", 1 << 30) + b"PAR1")
    assert "Parquet" in error_of(tmp_path / "p.parquet")


def test_limits_bound_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_files, "MAX_LINE", 1000)
    assert "a line of more than" in error_of(text(tmp_path, "a,b\n" + "1" * 5000))
    monkeypatch.setattr(tables, "MAX_CELLS", 10)
    assert "more than 10 numbers" in error_of(text(tmp_path, "a,b\n" + "1,2\n" * 20))
    for limit in ("MAX_UNPACKED", "MAX_PART"):
        with monkeypatch.context() as patch:
            patch.setattr(excel, limit, 100)
            assert "unpacks to" in error_of(write(tmp_path / "f.xlsx"))


def test_a_workbook_with_a_cell_far_down_ends(tmp_path, monkeypatch):
    source, hostile = write(tmp_path / "f.xlsx"), tmp_path / "hostile.xlsx"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(hostile, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "xl/worksheets/sheet1.xml":
                content = content.replace(b'<row r="4"', b'<row r="900000000"').replace(b'"A4"', b'"XFD900000000"')
            new.writestr(name, content)
    monkeypatch.setattr(tables, "MAX_BLANK", 10_000)
    assert "empty rows" in error_of(hostile, ["y"])


def corruptions(content: bytes, count: int):
    generator = random.Random(0)
    for _ in range(count):
        damaged = bytearray(content)
        kind = generator.randrange(3)
        if kind == 0:
            del damaged[generator.randrange(len(damaged)) :]
        elif kind == 1:
            for _ in range(generator.randrange(1, 20)):
                damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        else:
            start = generator.randrange(len(damaged))
            damaged[start : start + generator.randrange(1, 50)] = generator.randbytes(generator.randrange(50))
        yield bytes(damaged)


def read_damaged(path, content, count, targets):
    """Read a file damaged in many ways; the share of them that was refused."""
    refused = 0
    for damaged in corruptions(content, count):
        path.write_bytes(damaged)
        try:
            data = read_table(path, targets)
        except DataError:
            refused += 1
        else:
            assert np.isfinite(data.x).all()
            assert data.x.shape == (len(data.y), len(data.feature_names))
            assert data.y.shape[1] == len(targets)
    return refused / count


@pytest.mark.parametrize(("suffix", "count"), [(".csv", 600), (".xlsx", 150), (".parquet", 250)])
def test_damaged_files_give_an_error_or_finite_numbers(tmp_path, suffix, count):
    content = write(tmp_path / f"f{suffix}", np.random.default_rng(0).normal(size=(40, 3))).read_bytes()
    assert read_damaged(tmp_path / "damaged", content, count, ["y"]) > 0.25  # the damage is real


def test_damaged_old_excel_files(tmp_path, uci):
    content = (uci / "Concrete_Data.xls").read_bytes()
    assert read_damaged(tmp_path / "damaged", content, 60, []) > 0.25


def test_csv_quoting_agrees_with_the_standard_library(tmp_path):
    buffer = io.StringIO()
    csv.writer(buffer).writerows([['a "quoted", name', "multi\nline", "y"], [1, 2, 3]])
    data = read_table(text(tmp_path, buffer.getvalue()), ["y"])
    assert data.feature_names == ('a "quoted", name', "multi\nline")


# --- splits ----------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(2, 60), fraction=st.floats(0.05, 0.9), seed=st.integers(0, 2**32))
def test_a_split_is_a_partition(rows, fraction, seed):
    x = np.arange(float(rows))[:, None]
    data = Dataset("d", x, -x, ("x",), ("y",), "here")
    expected = max(1, round(fraction * rows))
    if expected >= rows:
        with pytest.raises(ValueError, match="test_fraction"):
            data.split(seed, fraction)
        return
    split = data.split(seed, fraction)
    assert len(split.x_test) == expected
    np.testing.assert_array_equal(np.sort(np.concatenate([split.x_train, split.x_test]), axis=0), x)
    np.testing.assert_array_equal(split.y_train, -split.x_train)
    np.testing.assert_array_equal(split.x_test, data.x[split.test_rows])
    np.testing.assert_array_equal(data.split(seed, fraction).x_test, split.x_test)


def test_splits_of_different_seeds_hold_out_every_row_equally_often():
    x = np.arange(20.0)[:, None]
    data = Dataset("d", x, x, ("x",), ("y",), "here")
    repeats = 400
    counts = np.bincount(np.concatenate([data.split(seed).test_rows for seed in range(repeats)]), minlength=20)
    # Each row is held out with probability 0.2; the largest of 20 deviations stays below 4 standard errors.
    assert np.abs(counts / repeats - 0.2).max() < 4 * np.sqrt(0.2 * 0.8 / repeats)


@pytest.mark.parametrize(("seed", "fraction"), [(-1, 0.2), (0.5, 0.2), (True, 0.2), (0, 0.0), (0, 1.0)])
def test_bad_split_arguments(seed, fraction):
    x = np.arange(10.0)[:, None]
    with pytest.raises(ValueError, match=r"seed|test_fraction"):
        Dataset("d", x, x, ("x",), ("y",), "here").split(seed, fraction)


@pytest.fixture
def uci():
    import os
    from pathlib import Path

    if not os.environ.get("PYRO_SPS_DATA"):
        pytest.skip("PYRO_SPS_DATA names no folder with the UCI files")
    return Path(os.environ["PYRO_SPS_DATA"])
