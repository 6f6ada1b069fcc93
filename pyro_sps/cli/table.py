"""A table as the command line learns from it: which rows, which columns, and what becomes of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import numpy as np

    from ..data.encoding import Encoder
    from ..data.mixed import Column, MixedTable

#: With fewer rows there is nothing to hold out.
MIN_ROWS = 5
#: More classes than this are a mistake.
MAX_CLASSES = 1000

_ID = re.compile(r"(.*[_ ])?(id|index|row|nr)|unnamed: \d+", re.IGNORECASE)


@dataclass(frozen=True)
class Training:
    """What a network is fitted to, and what is held out.

    Attributes:
        name: Name of the data.
        features: Names of the columns that are read.
        targets: Names of the target columns.
        x: Inputs to train on, numbers, shape (rows, inputs).
        y: Targets, shape (rows, targets), or numbers of classes, shape (rows,).
        x_test: Inputs that are held out, which may be none.
        y_test: Their targets.
        classes: Labels of the classes; None for numbers.
        encoder: What makes inputs of columns; None if they are taken as they are.
        fill: What stands in for gaps of new rows, a number a column; nothing with an encoder.
        words: What is done to each column: (name, what).
        notes: What else a reader should know.
        weights: How often each row that is trained on counts; None for once.
        noise: Error bars of these rows, shape (rows, 1 or targets); None for none.
        noise_test: The same of rows that are held out.
    """

    name: str
    features: tuple[str, ...]
    targets: tuple[str, ...]
    x: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    x_test: np.ndarray = field(repr=False)
    y_test: np.ndarray = field(repr=False)
    classes: tuple[str, ...] | None = None
    encoder: Encoder | None = None
    fill: tuple[float, ...] = ()
    words: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    weights: np.ndarray | None = field(default=None, repr=False)
    noise: np.ndarray | None = field(default=None, repr=False)
    noise_test: np.ndarray | None = field(default=None, repr=False)

    @property
    def rows(self) -> int:
        """Rows in all."""
        return len(self.x) + len(self.x_test)


def from_file(
    path: str,
    targets: Sequence[str],
    features: Sequence[str],
    drop: Sequence[str],
    task: str,
    test_fraction: float,
    seed: int,
    reading: Mapping[str, Any],
    weight: str | None = None,
    noise: Sequence[str] = (),
) -> Training:
    """A file as training data.

    Args:
        path: The file.
        targets: Names of target columns.
        features: Names of feature columns; none for all others.
        drop: Columns that are no features.
        task: `"auto"`, `"regression"` or `"classification"`.
        test_fraction: Share of rows that are held out.
        seed: Decides which.
        reading: How the file is read: options of `read_mixed`.
        weight: Name of the column that says how often a row counts.
        noise: Names of columns of error bars: one for all targets, or one for each.

    Raises:
        DataError: If it cannot be learned from.
    """
    import numpy as np

    from ..data.mixed import read_mixed
    from ..data.rows import DataError
    from ..data.variation import check_variation

    beside = [*([] if weight is None else [weight]), *noise]
    if twice := [name for name in beside if name in (*targets, *features, *drop)]:
        raise DataError(f"{path}, column {twice[0]!r} cannot be a weight or an error bar and something else too")
    table = read_mixed(path, [*targets, *beside], features or None, drop, **reading)
    notes = list(table.notes)
    names = [name for name in table.columns if name not in targets and name not in beside]
    ids = [] if features else [name for name in names if _is_id(table.columns[name], len(table))]
    if 0 < len(ids) < len(names):
        notes.append(f"left out: {', '.join(ids)}, a number of its own in each row; with --feature it is taken")
        names = [name for name in names if name not in ids]
    kept = np.ones(len(table), dtype=bool)
    for target in targets:
        kept &= table.columns[target].codes >= 0
    if not kept.all():
        notes.append(f"{int((~kept).sum()):,} of {len(table):,} rows have no {' or '.join(targets)} and are left out")
    if kept.sum() < MIN_ROWS:
        raise DataError(f"{path} has {int(kept.sum())} rows of data, too few: at least {MIN_ROWS} are needed")
    classes, y = _targets(path, table, targets, task, kept)
    weights = None if weight is None else numbers_beside(path, table, [weight], kept)[:, 0]
    bars = numbers_beside(path, table, noise, kept) if noise else None
    train, test = divide(int(kept.sum()), test_fraction, seed)
    frame = table.frame(names)[kept].reset_index(drop=True)
    kinds = [table.columns[name].kind for name in names]
    if all(kind in ("number", "truth") for kind in kinds) and not frame.isna().to_numpy().any():
        x = frame.to_numpy(np.float64)
        if classes is None:
            check_variation(path, [*names, *targets], np.hstack([x, y]))
        else:
            check_variation(path, names, x)
        fill = tuple(np.median(x[train], 0).tolist())
        ranges = zip(names, x.min(0), x.max(0), strict=True)
        words = [(name, f"number, {low:g} to {high:g}") for name, low, high in ranges]
        encoder = None
    else:
        encoder = _learned(frame.iloc[train].reset_index(drop=True), table, names)
        fill, words = (), encoder.describe(frame)
        notes += [f"left out: {name}, text that differs in nearly every row" for name in encoder.left_out]
        # New rows need not have what is left out.
        names = [name for name in names if name not in encoder.left_out]
        encoder = replace(encoder, columns={name: encoder.columns[name] for name in names}, left_out=[])
        x = encoder.transform(frame)
        if classes is None:
            check_variation(path, targets, y)
    return Training(
        name=table.name,
        features=tuple(names),
        targets=tuple(targets),
        x=x[train],
        y=y[train],
        x_test=x[test],
        y_test=y[test],
        classes=classes,
        encoder=encoder,
        fill=fill,
        words=words,
        notes=notes,
        weights=None if weights is None else weights[train],
        noise=None if bars is None else bars[train],
        noise_test=None if bars is None else bars[test],
    )


def numbers_beside(path: str, table: MixedTable, names: Sequence[str], kept: np.ndarray) -> np.ndarray:
    """Columns of weights or error bars, shape (kept rows, columns).

    Args:
        path: The file.
        table: Its cells.
        names: Names of the columns.
        kept: Which rows are wanted.

    Raises:
        DataError: If a cell of these is no number that is at least zero.
    """
    import numpy as np

    from ..data.rows import DataError

    for name in names:
        column = table.columns[name]
        if column.kind != "number":
            line, cell = _first_other(column, table, "number")
            raise DataError(f"{path}, {table.unit} {line}, column {name!r} holds {cell!r}, where a number is needed")
        if not (bad := ~(column.values()[kept] >= 0)).any():
            continue
        row = int(np.flatnonzero(bad)[0])
        what = column.values()[kept][row]
        raise DataError(
            f"{path}, {table.unit} {int(table.lines[kept][row])}, column {name!r} "
            + ("has a gap" if np.isnan(what) else f"holds {what:g}")
            + ": weights and error bars are numbers of at least zero in each row"
        )
    return np.stack([table.columns[name].values()[kept] for name in names], axis=1)


def from_data_set(name: str, test_fraction: float, seed: int) -> Training:
    """A data set by its name as training data."""
    import numpy as np

    from ..data.datasets import load_uci

    data = load_uci(name)
    train, test = divide(len(data), test_fraction, seed)
    return Training(
        name=data.name,
        features=data.feature_names,
        targets=data.target_names,
        x=data.x[train],
        y=data.y[train],
        x_test=data.x[test],
        y_test=data.y[test],
        fill=tuple(np.median(data.x[train], 0).tolist()),
    )


def new_rows(
    path: str, model: Mapping[str, Any], say: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray | None, MixedTable]:
    """Inputs of a file's rows for a network that was fitted, their targets if all are there, and the table.

    Args:
        path: The file.
        model: What `fit` wrote of the network.
        say: Where to say what was done to gaps.

    Raises:
        DataError: If a column is missing or holds something else than in the fit.
    """
    import numpy as np

    from ..data.encoding import Encoder
    from ..data.mixed import read_mixed
    from ..data.rows import DataError

    table = read_mixed(path, **model.get("reading", {}))
    features, targets = list(model["features"]), list(model["targets"])
    if missing := [name for name in features if name not in table.columns]:
        raise DataError(f"{path} has no column {', '.join(map(repr, missing))}; it has {', '.join(table.columns)}")
    if not len(table):
        raise DataError(f"{path} has 0 rows of data, too few: at least 1 are needed")
    if model.get("encoder") is not None:
        encoder = Encoder.from_json(model["encoder"])
        x = encoder.transform(_of_kinds(path, table, encoder.columns))
    else:
        fill = np.array(model.get("fill") or [np.nan] * len(features))
        x = _of_kinds(path, table, dict.fromkeys(features, "number")).to_numpy(np.float64)
        if (gaps := np.isnan(x)).any():
            if not model.get("fill"):
                raise DataError(f"{path} has missing values, which this fit, of an older version, has no values for")
            say(f"warning: {int(gaps.any(1).sum()):,} rows have gaps, which the median of training stands in for")
            x = np.where(gaps, fill, x)
    return x, _known_targets(table, targets, model.get("classes"), say), table


def _known_targets(
    table: MixedTable, targets: Sequence[str], classes: Sequence[str] | None, say: Callable[[str], None]
) -> np.ndarray | None:
    """The targets of new rows, if they are there and can be scored."""
    import numpy as np

    if not set(targets) <= set(table.columns):
        return None
    columns = [table.columns[name] for name in targets]
    if any(column.gaps for column in columns):
        say(f"not scored: there are rows without {' or '.join(targets)}")
        return None
    if classes is None:
        if any(column.kind != "number" for column in columns):
            say(f"not scored: {' or '.join(targets)} holds cells that are not numbers")
            return None
        return np.stack([column.values() for column in columns], axis=1)
    labels, number = columns[0].labels(), {label: index for index, label in enumerate(classes)}
    if unknown := sorted({label for label in labels if label not in number}):
        say(f"not scored: {targets[0]} holds labels that the fit did not have: {', '.join(unknown[:5])}")
        return None
    return np.array([number[label] for label in labels], dtype=np.int64)


def _of_kinds(path: str, table: MixedTable, kinds: Mapping[str, str]) -> Any:
    """Columns as they were in the fit: a column of the same kind, or text, which everything can be read as."""
    import numpy as np
    import pandas as pd

    from ..data.rows import DataError

    found = {}
    for name, kind in kinds.items():
        column = table.columns[name]
        own = "number" if column.kind == "truth" else column.kind
        if own == kind:
            found[name] = column.values()
        elif kind == "text":
            labels = column.labels()
            found[name] = np.where(column.codes >= 0, labels, np.nan)
        elif (column.codes < 0).all():
            found[name] = np.full(len(table), np.nan if kind == "number" else np.datetime64("NaT", "ns"))
        else:
            line, cell = _first_other(column, table, kind)
            raise DataError(f"{path}, {table.unit} {line}, column {name!r} holds {cell!r}, where the fit had a {kind}")
    types = {name: object if kind == "text" else None for name, kind in kinds.items()}
    series = {name: pd.Series(values, dtype=types[name]) for name, values in found.items()}
    return pd.DataFrame(series, index=range(len(table)))


def _first_other(column: Column, table: MixedTable, kind: str) -> tuple[int, Any]:
    """The first cell that is not of a kind: its line and what it holds."""
    from ..data.rows import number

    for code, line in zip(column.codes.tolist(), table.lines.tolist(), strict=True):
        if code >= 0 and (kind != "number" or number(column.cells[code])[1]):
            return line, column.cells[code]
    return int(table.lines[0]), column.cells[column.codes[0]]


def _targets(
    path: str, table: MixedTable, targets: Sequence[str], task: str, kept: np.ndarray
) -> tuple[tuple[str, ...] | None, np.ndarray]:
    """Classes, if it is classification, and targets."""
    import numpy as np

    from ..data.rows import DataError

    columns = [table.columns[name] for name in targets]
    texts = [column for column in columns if column.kind in ("text", "truth")]
    if task == "auto":
        two = len(columns) == 1 and len(np.unique(columns[0].codes[kept])) == 2
        task = "classification" if texts or (two and columns[0].kind == "number") else "regression"
    if task == "regression":
        for column in columns:
            if column.kind != "number":
                line, cell = _first_other(column, table, "number")
                raise DataError(
                    f"{path}, {table.unit} {line}, column {column.name!r} holds {cell!r}, which is no number: "
                    "--task classification predicts labels"
                )
        return None, np.stack([column.values()[kept] for column in columns], axis=1)
    if len(columns) > 1:
        raise DataError(f"classification is of one target, not of {', '.join(targets)}")
    labels = columns[0].labels()[kept]
    classes = _in_order(set(labels.tolist()))
    if len(classes) < 2:
        raise DataError(f"{path}, column {targets[0]!r} has one label only, {classes[0]!r}: nothing can be learned")
    if len(classes) > min(MAX_CLASSES, len(labels) / 2):
        raise DataError(
            f"{path}, column {targets[0]!r} has {len(classes):,} labels in {len(labels):,} rows, too many to learn; "
            "if they are numbers, --task regression predicts them"
        )
    number = {label: index for index, label in enumerate(classes)}
    return tuple(classes), np.array([number[label] for label in labels], dtype=np.int64)


def _in_order(labels: set[str]) -> list[str]:
    """Labels in ascending order, that of numbers where all are numbers."""
    from ..data.rows import number

    if all(not number(label)[1] for label in labels):
        return sorted(labels, key=float)
    return sorted(labels)


def divide(rows: int, test_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to train on and to hold out."""
    import numpy as np

    from ..data.tables import Dataset

    numbers = np.arange(rows)
    if test_fraction == 0:
        return numbers, numbers[:0]
    none = np.empty((rows, 0))
    split = Dataset("the table", none, none, (), (), "").split(seed, test_fraction)
    return split.train_rows, split.test_rows


def _learned(frame: Any, table: MixedTable, names: Sequence[str]) -> Encoder:
    """What is to be done to the columns, by the rows that are trained on."""
    try:
        from ..estimators.preprocessing import default_preprocessing, encoder_of
    except ImportError as error:
        raise click.ClickException(f"this table has text, gaps or dates; {error}") from error
    from ..data.rows import DataError

    kinds = {name: "number" if table.columns[name].kind == "truth" else table.columns[name].kind for name in names}
    transformer, left_out = default_preprocessing(frame, kinds)
    if len(left_out) == len(names):
        what = ", ".join(left_out)
        raise DataError(f"{table.name} has no features but {what}, texts that differ in nearly every row")
    return encoder_of(transformer.fit(frame), kinds, left_out)


def _is_id(column: Column, rows: int) -> bool:
    """Whether a column is a name for its row: a number by the name of one that is different in each."""
    return bool(_ID.fullmatch(column.name)) and column.kind == "number" and rows > 20 and len(column.cells) == rows
