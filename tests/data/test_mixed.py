"""Tables as people have them."""

import datetime

import numpy as np
import openpyxl
import pandas as pd
import pytest

from pyro_sps.data import mixed
from pyro_sps.data.mixed import read_mixed
from pyro_sps.data.rows import DataError
from pyro_sps.data.tables import read_table


def read(tmp_path, text, written="utf-8", **options):
    file = tmp_path / "table.csv"
    file.write_bytes(text.encode(written))
    return read_mixed(file, **options)


def kinds(table):
    return {name: column.kind for name, column in table.columns.items()}


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("a,b,c\n1.5,u,2024-01-31\n?,v,2024-02-01\n", {}),
        ("a;b;c\n1.5;u;2024-01-31\nNA;v;2024-02-01\n", {}),
        ("a\tb\tc\n1.5\tu\t2024-01-31\n\tv\t2024-02-01\n", {}),
        ("a|b|c\n1.5|u|31.1.2024\n|v|1.2.2024\n", {}),
        ("a  b c\n1.5 u   2024-01-31\n? v 2024-02-01\n", {}),
        ("  a  b c\n  1.5 u   2024/01/31\n  ? 'v' 2024/02/01\n".replace("'", '"'), {}),
        ("a;b;c\n1,5;u;31.01.2024\nnull;v;01.02.2024\n", {"decimal": ","}),
        ("a,b,c\n1.5,u,1/31/2024\n-999,v,2/1/2024\n", {"missing": ["-999"]}),
        ("a,b,c\nm,-,d\n1.5,u,2024-01-31\nNaN,v,2024-02-01\n", {}),
    ],
)
def test_one_table_in_many_hands(tmp_path, text, options):
    table = read(tmp_path, text, **options)
    if "m,-,d" in text:  # a row of units; its column of dates is text to nobody
        assert table.notes
    frame = table.frame()
    np.testing.assert_array_equal(frame["a"], [1.5, np.nan])
    assert frame["b"].tolist() == ["u", "v"]
    assert frame["c"].tolist() == [pd.Timestamp("2024-01-31"), pd.Timestamp("2024-02-01")]
    assert kinds(table) == {"a": "number", "b": "text", "c": "date"}


def test_no_header_other_encodings_and_groups_of_digits(tmp_path):
    table = read(
        tmp_path, "café;1.234,5\nthé;2\n", "latin-1", header=False, decimal=",", thousands=".", encoding="latin-1"
    )
    assert table.frame().to_numpy().tolist() == [["café", 1234.5], ["thé", 2.0]]
    assert table.lines.tolist() == [1, 2]


def test_truth_and_labels(tmp_path):
    table = read(tmp_path, "a,b\nTrue,01\nfalse,2\n,3\n")
    assert kinds(table) == {"a": "truth", "b": "number"}
    np.testing.assert_array_equal(table.columns["a"].values(), [1, 0, np.nan])
    assert table.columns["a"].labels().tolist() == ["True", "false", None]
    assert table.columns["b"].labels().tolist() == ["01", "2", "3"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('a,b\n"1,5",u\n"2,5",v\n', "--decimal ,"),
        ('a,b\n"1,500",u\n"2,500,000.5",v\n', "--thousands ,"),
        ("a,b\n1/2/2024,u\n3/4/2024,v\n", "--drop a"),
        ("a,b\n1,u\ninf,v\n", "infinite values: line 3, column 'a' holds 'inf'"),
        ("a,b\n1,u,7\n", "line 2 has 3 cells"),
        ("a,a\n1,u\n", "several columns named 'a'"),
    ],
)
def test_errors_say_where_and_what_to_do(tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        read(tmp_path, text)


def test_an_encoding_is_for_text_files(tmp_path):
    pd.DataFrame({"a": [1.0, 2.0], "y": [3.0, 4.0]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet is no text file: encoding \(latin-1\) is of no use"):
        read_mixed(tmp_path / "a.parquet", encoding="latin-1")


def test_another_encoding_is_suggested_and_unknown_ones_are_refused(tmp_path):
    with pytest.raises(DataError, match="--encoding latin-1"):
        read(tmp_path, "a,b\né,1\n", "latin-1")
    with pytest.raises(DataError, match="no encoding 'wavy'"):
        read(tmp_path, "a,b\n1,1\n", encoding="wavy")
    with pytest.raises(ValueError, match="decimal must be"):
        read(tmp_path, "a,b\n1,1\n", decimal=";")
    with pytest.raises(ValueError, match="thousands must be"):
        read(tmp_path, "a,b\n1,1\n", thousands=".")


def test_units_are_left_out_only_where_they_are_units(tmp_path):
    units = read(tmp_path, "time,mass,name\ns,kg,text\n1,2,u\n3,4,v\n")
    assert len(units) == 2
    assert "line 2 has units" in units.notes[0]
    assert kinds(units) == {"time": "number", "mass": "number", "name": "text"}
    assert units.lines.tolist() == [3, 4]
    data = read(tmp_path, "time,name\nnever,u\n1,v\n3,w\n5,x\n")  # one text in a column with text beside it
    assert len(data) == 3
    mixed = read(tmp_path, "time,mass\nnever,2\n1,2\n3,4\n5,6\n")  # its other cells are numbers: a row of data
    assert len(mixed) == 4
    assert kinds(mixed)["time"] == "text"


def test_excel_and_parquet_hold_the_same(tmp_path):
    frame = pd.DataFrame(
        {
            "a": [1.5, np.nan, 3.0],
            "b": ["u", None, "w"],
            "c": pd.to_datetime(["2024-01-31 00:00", "2024-02-01 12:00", None]),
            "d": [True, False, True],
            "e": pd.Categorical(["x", "y", "x"]),
        }
    )
    frame.to_parquet(tmp_path / "table.parquet")
    book = openpyxl.Workbook()
    book.active.append(list(frame))
    for row in frame.astype(object).where(frame.notna(), None).itertuples(index=False):
        book.active.append([cell.to_pydatetime() if isinstance(cell, pd.Timestamp) else cell for cell in row])
    book.save(tmp_path / "table.xlsx")
    for name in ("table.parquet", "table.xlsx"):
        table = read_mixed(tmp_path / name)
        assert kinds(table) == {"a": "number", "b": "text", "c": "date", "d": "truth", "e": "text"}
        found = table.frame()
        np.testing.assert_array_equal(found["a"], frame["a"])
        assert found["b"].tolist()[::2] == ["u", "w"]
        assert pd.isna(found["b"][1])
        assert found["c"].tolist()[:2] == frame["c"].tolist()[:2]
        assert pd.isna(found["c"][2])
        assert found["d"].tolist() == [1.0, 0.0, 1.0]


def test_dates_with_times_and_zones(tmp_path):
    table = read(tmp_path, "a,b\n2024-01-31T12:00:00+02:00,1\n2024-01-31 10:30,2\n")
    assert table.columns["a"].meaning == [datetime.datetime(2024, 1, 31, 10), datetime.datetime(2024, 1, 31, 10, 30)]
    assert kinds(read(tmp_path, "a,b\n2024-13-31,1\n2024-01-31,2\n")) == {"a": "text", "b": "number"}


def test_where_there_are_numbers_alone_both_readers_agree(tmp_path):
    rng = np.random.default_rng(0)
    file = tmp_path / "numbers.csv"
    pd.DataFrame(rng.normal(size=(50, 4)), columns=list("abcd")).to_csv(file, index=False)
    numbers = read_table(file, targets=["d"])
    np.testing.assert_array_equal(read_mixed(file, targets=["d"]).frame(), np.hstack([numbers.x, numbers.y]))


def test_a_few_texts_among_numbers_are_named(tmp_path):
    rows = "".join(f"{i}.5,1\n" for i in range(30))
    words = "column 'a' holds numbers, but in 2 cells: line 3 'broken', line 34 'broken'; --missing 'broken'"
    with pytest.raises(DataError, match=words):
        read(tmp_path, f"a,b\n7.5,1\nbroken,1\n{rows}broken,2\n")
    table = read(tmp_path, f"a,b\n7.5,1\nbroken,1\n{rows}broken,2\n", missing=["broken"])
    assert table.columns["a"].gaps == 2
    assert kinds(read(tmp_path, "doors,b\n1,1\n2,1\n3,1\nmany,2\n"))["doors"] == "text"


def test_groups_are_of_three_digits(tmp_path):
    """Dates with points are no numbers with points between groups."""
    table = read(tmp_path, "a;b\n31.01.2024;1.234\n01.02.2024;12\n", decimal=",", thousands=".")
    assert kinds(table) == {"a": "date", "b": "number"}
    assert table.columns["b"].values().tolist() == [1234, 12]


def test_memory_is_bounded(tmp_path, monkeypatch):
    for name in ("MAX_CELLS", "MAX_DIFFERENT", "MAX_CHARACTERS"):
        with monkeypatch.context() as patch:
            patch.setattr(mixed, name, 100)
            with pytest.raises(DataError, match="use the Python interface"):
                read(tmp_path, "a,b\n" + "".join(f"{i},{i}\n" for i in range(200)))
