"""Data that need not fit in memory: fits and predictions from it equal those from arrays."""

import itertools
import math
import os
import pickle
from dataclasses import replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

import pyro_sps as sps
from pyro_sps.data import opening, row_groups, sources
from pyro_sps.data.arrays import Standardizer, minibatches
from pyro_sps.data.observed import NO_EXTRAS, Extras, Observed
from pyro_sps.model.streams import Moments

ROWS, FEATURES = 50, 3


@pytest.fixture(scope="module")
def arrays():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(ROWS, FEATURES)) * [1, 10, 0.1] + [0, 100, 0]
    return x, (x[:, :1] + 0.01 * x[:, 1:2]) * 7 + 3 + 0.1 * generator.normal(size=(ROWS, 1))


def network(**options):
    net = sps.mlp([FEATURES, 4, 1])
    return sps.BNN(net.double(), sps.Unmasked(), sps.Zero(), **{"likelihood": sps.Gaussian(0.2, learn=True)} | options)


def quick(x, y=None, bnn=None, **options):
    options = {"num_steps": 15, "batch_size": 8, "progress": False, "seed": 3} | options
    return sps.fit(network() if bnn is None else bnn, x, y, **options)


def write(path, x, y, row_group_size=9, **others):
    columns = {f"x{i}": x[:, i] for i in range(x.shape[1])} | {"y": y[:, 0]} | others
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size)
    return path


class Numbered(Dataset):
    """Rows one by one, with what a worker process may do wrong."""

    def __init__(self, x, y, fault=None):
        self.x, self.y, self.fault = x, y, fault

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        if self.fault == "dies" and row == 7:
            os._exit(1)
        if self.fault == "shape" and row == 7:
            return self.x[row][:2], self.y[row]
        if self.fault == "noise":
            return self.x[row] + np.random.normal() + torch.randn(()).item(), self.y[row]  # noqa: NPY002
        return self.x[row], self.y[row]


class Endless(IterableDataset):
    """Rows one after another."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __iter__(self):
        return iter(zip(torch.as_tensor(self.x), torch.as_tensor(self.y), strict=True))


def same(one, other, exactly=False):
    if exactly:
        assert torch.equal(one.guide.loc, other.guide.loc)
        return
    torch.testing.assert_close(one.guide.loc, other.guide.loc, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-8)


def mapped(folder, array, name):
    result = np.memmap(folder / name, dtype=array.dtype, mode="w+", shape=array.shape)
    result[:] = array
    return result


@pytest.fixture(scope="module")
def expected(arrays):
    """A fit to the arrays."""
    return quick(*arrays)


def as_is(piece, where):
    return torch.as_tensor(piece.x), torch.as_tensor(piece.y)


@pytest.mark.parametrize("kind", ["dataset", "loader", "workers", "memmap", "tensors", "hugging face"])
def test_rows_with_numbers_come_in_the_order_of_arrays(arrays, tmp_path, kind):
    x, y = arrays
    data, targets = Numbered(x, y), None
    if kind == "loader":
        data = DataLoader(data, batch_size=8, shuffle=True)
    if kind == "workers":
        data = DataLoader(data, batch_size=8, num_workers=2)
    if kind == "tensors":
        data = TensorDataset(torch.as_tensor(x), torch.as_tensor(y))
    if kind == "memmap":
        data, targets = mapped(tmp_path, x, "x"), mapped(tmp_path, y, "y")
    if kind == "hugging face":
        datasets = pytest.importorskip("datasets")
        columns = {f"x{i}": x[:, i] for i in range(FEATURES)} | {"y": y[:, 0]}
        data, targets = datasets.Dataset.from_dict(columns), "y"
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    source = opening.source_of(data, targets, NO_EXTRAS, None)
    batches = source.batches(3, 8, as_is, 2)
    for rows in itertools.islice(minibatches([3], ROWS, 8, 2), 8):
        found = next(batches)
        np.testing.assert_array_equal(found[0], x[rows[0]])
        np.testing.assert_array_equal(found[1], y[rows[0]])
    np.testing.assert_array_equal(torch.cat([x for x, _ in source.in_order(as_is, 11)]), x[11:])
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002


def test_the_same_rows_make_the_same_fit_and_predictions(arrays, expected):
    x, y = arrays
    data = DataLoader(Numbered(x, y), batch_size=8, num_workers=1)
    found = quick(data, batch_size=128)
    same(found, expected)
    prediction, other = found.predict(data, 20), expected.predict(x, 20)
    torch.testing.assert_close(prediction.mean, other.mean)
    assert prediction.lpp() == pytest.approx(other.lpp(y))


def test_replicas_map_values_and_weights_of_numbered_rows(arrays):
    x, y = arrays
    bnn = sps.BNN(sps.mlp([FEATURES, 4, 1]).double(), sps.Heavy(), sps.MAP(num_steps=5, held_out=0.0))
    extras = {"weights": np.random.default_rng(1).random(ROWS), "y_scale": np.full(ROWS, 0.3)}
    found, expected = (quick(*data, bnn=bnn, replicas=2, **extras) for data in ((Numbered(x, y),), (x, y)))
    for one, other in zip(found, expected, strict=True):
        same(one, other)
        assert torch.allclose(one.bnn.fixed["0.weight"], other.bnn.fixed["0.weight"])


@pytest.mark.slow
def test_chains_see_minibatches_of_a_source(arrays, tmp_path):
    x, y = arrays
    options = {"chains": 2, "num_samples": 3, "thinning": 2, "warmup": 20, "starts": "prior", "progress": False}
    found = [sps.sample(network(), Numbered(x, y), batch_size=8, **options) for _ in range(2)]
    assert torch.equal(found[0].samples["0.weight"], found[1].samples["0.weight"])
    # In the warm-up all rows are seen, in another order; after it minibatches, of the same order.
    expected = sps.sample(network(), x, y, batch_size=8, **options)
    for site, value in found[0].samples.items():
        torch.testing.assert_close(value, expected.samples[site], rtol=1e-5, atol=1e-7)
    assert found[0].predict(Numbered(x, y)).mean.shape == (ROWS, 1)
    checked, whole = found[0].diagnose(draws=6), expected.diagnose(draws=6)
    assert checked.predictive.lpp == pytest.approx(whole.predictive.lpp, rel=1e-4)
    assert found[0].approximate.endswith("heats the chains")
    with pytest.raises(ValueError, match="batch_size must be a number"):
        sps.sample(network(), Numbered(x, y), **options)
    with pytest.raises(ValueError, match="batch_size is of no use"):
        sps.sample(network(), Numbered(x, y), kernel="mams", batch_size=8, **options)
    with pytest.raises(ZeroDivisionError):
        sps.sample(
            network(),
            Numbered(x, y),
            batch_size=8,
            checkpoint=tmp_path,
            checkpoint_every=11,
            callbacks=[lambda step, _: 1 / (step - 23)],
            **options,
        )
    rest = sps.resume(tmp_path, network(), Numbered(x, y), progress=False)
    assert torch.equal(rest.samples["0.weight"], found[0].samples["0.weight"])


def test_gaps_of_single_batches_are_those_of_the_whole(arrays):
    """Batches without a gap, with gaps only and with weights of zero only are steps of one program."""
    x, y = arrays
    gaps = y.copy()
    gaps[::3] = np.nan
    weights = (np.arange(ROWS) < 10).astype(float)
    options = {"missing": "ignore", "weights": weights, "batch_size": 2, "num_steps": 40}
    same(quick(Numbered(x, gaps), **options), quick(x, gaps, **options))


# --- validation, and what is told of a fit afterwards ----------------------------------------------


def sources_of(x, y, folder):
    """The same rows as a data set that has numbers, a stream, a file and a memory map."""
    yield Numbered(x, y), None
    yield Endless(x, y), None
    yield write(folder / "rows.parquet", x, y), "y"
    yield mapped(folder, x, "x"), mapped(folder, y, "y")


def test_validation_scores_are_those_of_arrays(arrays, tmp_path):
    x, y = arrays
    gaps = y.copy()
    gaps[::4] = math.nan
    options = {"num_steps": 10, "validate_every": 5, "missing": "ignore"}
    expected = quick(x, y, validation=(x, gaps), **options)
    assert [sorted(check) for check in expected.validation] == [["lpp", "rmse", "step"]] * 2
    for data, targets in sources_of(x, gaps, tmp_path):
        validation = data if targets is None else (data, targets)
        found = quick(x, y, validation=validation, **options)
        for one, other in zip(found.validation, expected.validation, strict=True):
            assert one == pytest.approx(other, rel=1e-10)
    held_out = tmp_path / "rows.parquet", "y"
    found = quick(Numbered(x, y), validation=held_out, **options, checkpoint=tmp_path / "run")
    again = sps.resume(tmp_path / "run", network(), Numbered(x, y), validation=held_out)
    assert again.validation == found.validation
    with pytest.raises(sps.LoadError, match="validation"):
        sps.resume(tmp_path / "run", network(), Numbered(x, y), validation=Numbered(x + 1, gaps))
    with pytest.raises(ValueError, match="validation must be a pair"):
        quick(x, y, validation=x)
    weighted = sps.ParquetData(tmp_path / "rows.parquet", targets="y", features=["x0", "x1"], weights="x2")
    with pytest.raises(sps.tables.DataError, match="3 features"):
        quick(x, y, validation=weighted)


def test_labels_are_validated_on_streams():
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(40, FEATURES, generator=generator), torch.arange(40) % 3
    bnn = sps.BNN(sps.mlp([FEATURES, 4, 3]), sps.Unmasked(), sps.Zero(), sps.Categorical())
    data, options = TensorDataset(x, labels), {"bnn": bnn, "num_steps": 4, "validate_every": 4}
    found, expected = (quick(data, validation=held_out, **options) for held_out in (data, (x, labels)))
    assert dict(found.validation[0]) == pytest.approx(dict(expected.validation[0]), rel=1e-5)


def test_the_elbo_of_a_stream_is_that_of_arrays(arrays, expected, tmp_path, monkeypatch):
    from pyro_sps.posterior import fit as module

    x, y = arrays
    monkeypatch.setattr(row_groups, "WINDOW_BYTES", 4 * 4 * 15)
    monkeypatch.setattr(opening, "WINDOW_BYTES", 8 * 3 * 15)
    monkeypatch.setattr(sources, "PASS_ROWS", 13)
    for data, targets in sources_of(x, y, tmp_path):
        told = {"num_data": ROWS} if isinstance(data, Endless) else {}
        fit = quick(data, targets, num_steps=1, **told)
        held = replace(expected, source=fit.source, x=None, y=None)
        assert held.num_data == ROWS
        whole = held.elbo
        assert whole == pytest.approx(expected.elbo, rel=1e-12)
        assert held.elbo_error == pytest.approx(expected.elbo_error, rel=1e-9)
        with monkeypatch.context() as fewer:  # where some rows stand for all, they are the same ones
            fewer.setattr(module, "ELBO_ROWS", 40)
            one, other = replace(held), replace(expected)
            assert one.elbo == pytest.approx(other.elbo, rel=1e-12)
            assert abs(one.elbo - whole) < 5 * one.elbo_error
            assert one.elbo_error == pytest.approx(other.elbo_error, rel=1e-9)
    copy = pickle.loads(pickle.dumps(quick(Numbered(x, y), num_steps=1)))
    with pytest.raises(ValueError, match="no training data"):
        copy.elbo  # noqa: B018


def test_diagnose_and_arviz_of_a_stream_are_those_of_arrays(arrays, expected, tmp_path, monkeypatch):
    from pyro_sps.diagnostics import density, diagnose

    x, y = arrays
    path = write(tmp_path / "rows.parquet", x, y)
    fit = quick(path, "y", num_steps=1)
    held = replace(expected, source=fit.source, features=fit.features, targets=fit.targets, x=None, y=None)
    whole = sps.diagnose(expected, draws=50)
    loaded = replace(held, source=None)
    for found in (sps.diagnose(held, draws=50), sps.diagnose(loaded, path, draws=50)):
        assert found.convergence[0].elbo == pytest.approx(whole.convergence[0].elbo, rel=1e-10)
    found = sps.diagnose(held, draws=50, held_out=path)
    assert found.predictive.held_out
    assert found.predictive.lpp == pytest.approx(whole.predictive.lpp, rel=1e-10)
    assert found.importance[0].khat == pytest.approx(whole.importance[0].khat, rel=1e-6)
    groups = [sps.to_arviz(one, 5) for one in (held, expected)]
    for name in ("sample_stats", "log_likelihood", "posterior_predictive", "observed_data"):
        for variable in groups[0][name].data_vars:
            np.testing.assert_allclose(groups[0][name][variable], groups[1][name][variable], rtol=1e-8)
    # Of more rows than can be looked at together, some stand for all; what needs all has one more pass, or is left out.
    monkeypatch.setattr(density, "MOST_ROWS", 40)
    many = sps.diagnose(held, draws=50)
    assert many.predictive.num_rows == 40
    np.testing.assert_allclose(many.importance[0].log_ratios, whole.importance[0].log_ratios, rtol=1e-8)
    assert many.convergence[0].elbo == pytest.approx(expected.elbo, rel=1e-10)
    with pytest.raises(ValueError, match=r"has 50 rows, and most groups .* give some rows as x and y"):
        sps.to_arviz(held, 5)
    assert sps.to_arviz(held, 5, groups="posterior").posterior["w"].shape[:2] == (1, 5)
    monkeypatch.setattr(diagnose, "MOST_LOGS", 1000)
    few = sps.diagnose(held, draws=50)
    assert few.importance == ()
    assert any("each of 50 rows under each of 50 draws" in text for text in few.left_out)
    with pytest.raises(ValueError, match="different training data"):
        sps.diagnose([held, quick(Numbered(x + 1, y), num_steps=1)])


# --- order -----------------------------------------------------------------------------------------


def streams(folder, monkeypatch):
    """Sources whose windows are much smaller than the data; their rows are 0, 1, 2, ..."""
    monkeypatch.setattr(row_groups, "WINDOW_BYTES", 4 * 2 * 15)
    monkeypatch.setattr(opening, "WINDOW_BYTES", 8 * 15)
    rows = np.arange(ROWS, dtype=np.float64)[:, None]
    write(folder / "part-0.parquet", rows[:31], rows[:31], row_group_size=7)
    write(folder / "part-1.parquet", rows[31:], rows[31:], row_group_size=7)
    loader = DataLoader(Endless(rows, rows), batch_size=4)
    yield opening.source_of(folder, "y", NO_EXTRAS, None)
    yield opening.source_of(loader, None, NO_EXTRAS, ROWS)
    yield opening.source_of(Numbered(rows, rows), None, NO_EXTRAS, None)


def taken(iterator, count):
    return [next(iterator)[0].flatten().tolist() for _ in range(count)]


def test_order_is_seeded_shuffled_resumed_and_shared(tmp_path, monkeypatch):
    for source in streams(tmp_path, monkeypatch):
        batches = taken(source.batches(0, 8, as_is), 20)
        assert batches == taken(source.batches(0, 8, as_is), 20)
        assert batches != taken(source.batches(1, 8, as_is), 20)
        for epoch in range(3):  # of 6 batches, in which 2 rows are left out
            rows = [row for batch in batches[6 * epoch : 6 * epoch + 6] for row in batch]
            assert len(set(rows)) == 48
            assert rows != sorted(rows)
        assert batches[:6] != batches[6:12]
        for start in (1, 5, 6, 13):
            assert taken(source.batches(0, 8, as_is, start), 4) == batches[start : start + 4]
        shares = [taken(source.batches(0, 8, as_is, 2, rank, 3), 4) for rank in range(3)]
        for number in range(4):
            assert sorted(row for share in shares for row in share[number]) == sorted(batches[2 + number])
        in_order = torch.cat([x for x, _ in source.in_order(as_is)]).flatten().tolist()
        assert in_order == list(range(ROWS))
        assert torch.cat([x for x, _ in source.in_order(as_is, 17)]).flatten().tolist() == in_order[17:]


def test_files_are_shuffled_across_the_whole(tmp_path, monkeypatch):
    """Over epochs, each row follows each other one about as often: no two row groups stay apart."""
    source = next(streams(tmp_path, monkeypatch))
    early = torch.zeros(ROWS)
    iterator = source.batches(0, 5, as_is)
    for _ in range(400):  # epochs of 10 batches, of which the first two are a fifth of the rows
        for number in range(10):
            x, _ = next(iterator)
            if number < 2:
                early[x.flatten().long()] += 1
    # Row groups of 7, 7, 7, 7, 3, 7, 7, 5 rows in windows of some 15: the share of an early place is near 1/5 for each,
    # and its standard error over 400 epochs is 0.02.
    assert ((early / 400 - 0.2).abs() < 0.1).all()


# --- Parquet ---------------------------------------------------------------------------------------


def test_a_single_row_group_is_shuffled_as_a_whole_and_standardised_exactly(arrays, tmp_path):
    x, y = arrays
    path = write(tmp_path / "rows.parquet", x, y, 9)
    found = quick(path, "y")
    expected = quick(x, y)
    for name in ("x_mean", "x_scale", "y_mean", "y_scale"):
        torch.testing.assert_close(
            getattr(found.standardizer, name), getattr(expected.standardizer, name), rtol=1e-12, atol=0
        )
    assert found.features == ("x0", "x1", "x2")
    assert found.targets == ("y",)
    prediction = found.predict(path, 20)
    torch.testing.assert_close(prediction.mean, found.predict(torch.as_tensor(x), 20).mean)
    assert found.predict(sps.ParquetData(path, targets="y"), 20).rmse() == pytest.approx(
        found.predict(torch.as_tensor(x), 20).rmse(y)
    )


def test_columns_say_weights_error_bars_and_gaps(arrays, tmp_path):
    x, y = arrays
    weights, bars, gaps = np.arange(ROWS) % 3, np.linspace(0.1, 1, ROWS), y.copy()
    gaps[::5] = math.nan
    path = write(tmp_path / "rows.parquet", x, gaps, weights=weights, bars=bars)
    options = {"batch_size": ROWS, "num_steps": 10, "missing": "ignore"}
    data = sps.ParquetData(path, targets=["y"], weights="weights", y_scale="bars")
    found = quick(data, **options)
    expected = quick(x, gaps, weights=weights, y_scale=bars, **options)
    torch.testing.assert_close(found.guide.loc, expected.guide.loc, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.standardizer.x_mean, expected.standardizer.x_mean)
    torch.testing.assert_close(found.standardizer.y_scale, expected.standardizer.y_scale)
    named = opening.source_of(path, "y", Extras("weights", "bars"), None)
    assert next(named.in_order(lambda piece, where: torch.as_tensor(piece.weights))).tolist() == weights.tolist()
    torch.testing.assert_close(found.predict(data, 20).std, found.predict(torch.as_tensor(x), 20, y_scale=bars).std)
    assert math.isfinite(found.predict(data, 20).lpp())


def test_moments_of_pieces_are_those_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    values = 1e8 + torch.randn(1000, 4, generator=generator, dtype=torch.float64)
    values[:, 3] = 5.0
    weights = torch.rand(1000, generator=generator, dtype=torch.float64)
    weights[100:200] = 0
    for counts in (None, weights):
        moments = Moments()
        for first in (0, 1, 100, 200, 900):
            last = {0: 1, 1: 100, 100: 200, 200: 900, 900: 1000}[first]
            moments.add(values[first:last], None if counts is None else counts[first:last])
        mean, scale = moments.result(values)
        expected = Standardizer.of(values, Observed(values, counts), True)
        torch.testing.assert_close(mean, expected.x_mean, rtol=1e-14, atol=0)
        torch.testing.assert_close(scale, expected.x_scale, rtol=1e-7, atol=0)  # deviations of 1e8 keep 8 digits
        assert scale[3] == 1


# --- sizes, checkpoints, faults --------------------------------------------------------------------


def test_the_size_is_known_told_or_an_error_before_any_work(arrays):
    x, y = arrays
    stream = Endless(x, y)
    with pytest.raises(ValueError, match="num_data must say how many rows the data set Endless has"):
        quick(stream)
    for wrong, words in ((ROWS + 1, "only 50 rows, where 51"), (ROWS - 1, "more than 49 rows|50 rows, where 49")):
        with pytest.raises(sps.tables.DataError, match=words):
            quick(stream, num_data=wrong)
        with pytest.raises(sps.tables.DataError, match=words):
            list(itertools.islice(opening.source_of(stream, None, NO_EXTRAS, wrong).batches(0, 8, as_is), 10))
    fit = quick(stream, num_data=ROWS)
    assert len(fit.predict(stream, 10).mean) == ROWS
    with pytest.raises(ValueError, match="num_data must be 50"):
        quick(Numbered(x, y), num_data=40)
    with pytest.raises(ValueError, match="num_data is for data that does not tell"):
        quick(x, y, num_data=ROWS)


@pytest.mark.parametrize("kind", ["parquet", "stream"])
def test_a_fit_goes_on_at_the_very_batch(arrays, tmp_path, monkeypatch, kind):
    x, y = arrays
    monkeypatch.setattr(row_groups, "WINDOW_BYTES", 4 * 4 * 15)
    path = write(tmp_path / "rows.parquet", x, y)
    data = {"parquet": (path, "y"), "stream": (Endless(x, y),)}[kind]
    told = {"num_data": ROWS} if kind == "stream" else {}
    whole = quick(*data, num_steps=20, **told)
    with pytest.raises(ZeroDivisionError):
        quick(
            *data,
            num_steps=20,
            checkpoint=tmp_path / "run",
            checkpoint_every=9,
            callbacks=[lambda s, _: 1 / (s - 13)],
            **told,
        )
    rest = sps.resume(tmp_path / "run", network(), *data, progress=False, **told)
    same(rest, whole, exactly=True)
    np.testing.assert_array_equal(rest.losses, whole.losses)
    if kind == "parquet":
        write(path, x + 1, y)
        with pytest.raises(sps.LoadError, match="x and y are"):
            sps.resume(tmp_path / "run", network(), *data, progress=False)


def test_what_breaks_is_named_and_the_checkpoint_before_it_is_whole(arrays, tmp_path, monkeypatch):
    x, y = arrays
    monkeypatch.setattr(row_groups, "WINDOW_BYTES", 4 * 4 * 15)
    path = write(tmp_path / "rows.parquet", x, y)
    with pytest.raises(sps.tables.DataError, match=r"there is no file .*none\.parquet"):
        quick(tmp_path / "none.parquet", "y")
    with pytest.raises(sps.tables.DataError, match="no column 'z'"):
        quick(path, "z")
    content = path.read_bytes()
    run = tmp_path / "run"

    def breaks(step, losses):
        if step == 10:  # the middle of the data; the file's end says where the row groups are
            path.write_bytes(content[:600] + bytes(len(content) - 1400) + content[-800:])

    with pytest.raises(sps.tables.DataError, match=r"rows\.parquet, row group \d+ cannot be read"):
        quick(path, "y", num_steps=60, checkpoint=run, checkpoint_every=5, callbacks=[breaks])
    path.write_bytes(content)
    rest = sps.resume(run, network(), path, "y", progress=False)
    assert torch.equal(rest.guide.loc, quick(path, "y", num_steps=60).guide.loc)
    path.unlink()
    with pytest.raises(sps.tables.DataError, match="there is no file"):
        rest.predict(path).mean  # noqa: B018


def test_faults_of_data_sets_are_named(arrays):
    x, y = arrays
    with pytest.raises(sps.tables.DataError, match=r"data set Numbered, .*(shape|stack)"):
        quick(Numbered(x, y, "shape"))
    with pytest.raises(RuntimeError, match="a worker process of the data set Numbered died"):
        quick(DataLoader(Numbered(x, y, "dies"), batch_size=8, num_workers=1))
    with pytest.raises(sps.tables.DataError, match="must be pairs"):
        quick(TensorDataset(torch.as_tensor(x)))
    with pytest.raises(sps.tables.DataError, match="y must have as many"):
        quick(
            DataLoader(Endless(x, y), batch_size=8, collate_fn=lambda items: (torch.ones(8, 3), torch.ones(5, 1))),
            num_data=ROWS,
        )
    sampler = WeightedRandomSampler([1.0] * ROWS, ROWS)
    with pytest.raises(ValueError, match="a sampler of its own"):
        quick(DataLoader(Numbered(x, y), batch_size=8, sampler=sampler))
    with pytest.raises(ValueError, match="batch_size is 9, and the DataLoader has batches of 8"):
        quick(DataLoader(Numbered(x, y), batch_size=8), batch_size=9)
    with pytest.raises(ValueError, match="batch_size must be a number"):
        quick(Numbered(x, y), batch_size=None)
    with pytest.raises(ValueError, match="y is missing"):
        quick(x)
    with pytest.raises(ValueError, match="y must be left out"):
        quick(Numbered(x, y), y)


def test_random_data_sets_are_the_same_again(arrays):
    """Augmentations depend on the batch alone: not on how rows are loaded, nor on where a fit began."""
    x, y = arrays
    data = Numbered(x, y, "noise")
    loader = DataLoader(data, batch_size=8, num_workers=2)
    here, there = (opening.source_of(one, None, NO_EXTRAS, None) for one in (data, loader))
    batches = taken(here.batches(0, 8, as_is), 8)
    assert batches == taken(here.batches(0, 8, as_is), 8) == taken(there.batches(0, 8, as_is), 8)
    assert batches[7:] == taken(here.batches(0, 8, as_is, 7), 1)
    assert batches[0] != batches[6]


def test_several_inputs():
    from torch import nn

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 1)

        def forward(self, first, second):
            return self.b(torch.tanh(self.a(torch.cat([first, second], 1))))

    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 30, 1, generator=generator)
    y = first + second
    bnn = sps.BNN(Two(), sps.Unmasked(), sps.Zero(), example={"first": first, "second": second})

    class Pairs(Dataset):
        def __len__(self):
            return 30

        def __getitem__(self, row):
            return {"first": first[row], "second": second[row]}, y[row]

    found, expected = quick(Pairs(), bnn=bnn), quick({"first": first, "second": second}, y, bnn=bnn)
    torch.testing.assert_close(found.guide.loc, expected.guide.loc, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        found.predict(Pairs(), 10).mean,
        expected.predict({"first": first, "second": second}, 10).mean,
        rtol=1e-3,
        atol=1e-4,
    )


def test_nothing_is_read_ahead_of_what_is_asked(tmp_path):
    """Errors reach whoever reads; a reader that is left early leaves no thread behind."""
    import threading

    def broken():
        yield torch.zeros(1)
        raise OSError("broken")

    items = sources._ahead(broken())
    assert next(items).shape == (1,)
    with pytest.raises(OSError, match="broken"):
        next(items)
    items = sources._ahead(iter([torch.zeros(1)] * 5))
    next(items)
    items.close()
    for thread in threading.enumerate():
        if thread.name.startswith("pyro_sps reads"):
            thread.join(10)
    assert not any(thread.name.startswith("pyro_sps reads") for thread in threading.enumerate())
