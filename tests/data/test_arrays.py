"""Arrays from users, standardisation, minibatches, seeds."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from pyro_sps.data.arrays import Standardizer, as_tensor, grid_of, make_generator, minibatches, noise_stream

LIKE = torch.zeros(1)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int64", "uint8", "uint32", "bool"])
def test_every_kind_of_number_becomes_a_tensor(dtype):
    array = np.array([[0, 1], [1, 0]]).astype(dtype)
    assert torch.equal(as_tensor("x", array, LIKE), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


def test_strides_and_flags_do_not_matter():
    array = np.arange(12.0).reshape(3, 4)[:, ::-2]
    array.flags.writeable = False
    assert as_tensor("x", array, LIKE).tolist() == [[3, 1], [7, 5], [11, 9]]
    assert as_tensor("x", np.array([[1, 2.5]], dtype=object), LIKE).tolist() == [[1, 2.5]]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.array([[1.0], [np.nan]]), ValueError, "x must be finite, got NaN or infinity in row 1"),
        (torch.tensor([[float("inf")]]), ValueError, "row 0"),
        (np.zeros((0, 3)), ValueError, r"x is empty: its shape is \(0, 3\)"),
        (3.0, ValueError, "single number"),
        (np.array([["a"]]), TypeError, "real numbers"),
        (np.array([["a"]], dtype=object), TypeError, "real numbers"),
        (np.array([1 + 2j]), TypeError, "real numbers"),
        (torch.tensor([1 + 2j]), TypeError, "real numbers"),
        (np.array([1e300]), ValueError, "out of the range of torch.float32"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), TypeError, "real numbers"),
    ],
)
def test_bad_arrays_are_named(value, error, message):
    with pytest.raises(error, match=message):
        as_tensor("x", value, LIKE)


def test_labels():
    assert as_tensor("y", [0.0, 2.0], LIKE, integer=True).dtype == torch.int64
    with pytest.raises(ValueError, match="fractions"):
        as_tensor("y", [0.5], LIKE, integer=True)


@example(step=0.1, shift=-3.7, seed=315618, dtype=torch.float32, rows=5)
@given(
    step=st.sampled_from([1.0, 0.25, 0.1, 5.0, 1000.0]),
    shift=st.sampled_from([0.0, -3.7, 100.0]),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    rows=st.integers(5, 200),
)
def test_grid_of_rounded_numbers(step, shift, seed, dtype, rows):
    """The greatest common divisor of the differences, by NumPy on whole numbers, and in any units."""
    whole = np.random.default_rng(seed).poisson(4, rows) * np.random.default_rng(seed).choice([1, 2, 3])
    repeats = 1 < len(set(whole)) < rows
    expected = step * np.gcd.reduce(np.diff(np.unique(whole))) if repeats else 0.0
    values = torch.tensor(shift + step * whole).to(dtype).unsqueeze(1)
    found = grid_of(values).item()
    assert found == pytest.approx(expected, rel=1e-3)
    units = Standardizer.of(values, values, targets=True)
    scale, seen = units.y_scale.item(), units.targets(values)
    # As a network sees them: a difference has lost the digits of two numbers before and of two after.
    lost = torch.finfo(dtype).eps * (values.abs().max().item() / scale + seen.abs().max().item())
    if repeats and lost < max(16 * torch.finfo(dtype).eps, 1e-10) * seen.abs().max().item():
        assert grid_of(seen).item() == pytest.approx(expected / scale, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(20))
def test_continuous_numbers_lie_on_no_grid_even_if_some_repeat(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(50, 1, generator=generator, dtype=dtype)
    assert grid_of(values).item() == 0
    repeated = torch.cat([values, values[:7]])
    assert grid_of(repeated).item() == 0
    assert grid_of(repeated.clamp(min=0.0)).item() == 0  # censored
    assert grid_of(torch.ones(5, 1, dtype=dtype)).item() == 0


def test_grid_of_labels_and_columns():
    values = torch.tensor([[0, 10], [1, 30], [1, 70], [4, 70]])
    assert grid_of(values).tolist() == [1.0, 20.0]


@given(st.floats(-1e6, 1e6), st.floats(1e-1, 1e6))
def test_standardizer_moves_to_zero_mean_and_unit_scale_and_back(shift, spread):
    generator = torch.Generator().manual_seed(0)
    x = shift + spread * torch.randn(50, 3, generator=generator, dtype=torch.float64)
    y = shift - spread * torch.randn(50, 1, generator=generator, dtype=torch.float64)
    standardizer = Standardizer.of(x, y, targets=True)
    # The data's own rounding, 1e-16 of its size, in units of its spread, with a margin for sums.
    tolerance = 1e-12 + 1e-14 * abs(shift) / spread
    assert standardizer.inputs(x).mean(0).abs().max() < tolerance
    assert (standardizer.inputs(x).std(0, unbiased=False) - 1).abs().max() < 1e-9 + tolerance
    torch.testing.assert_close(standardizer.targets(y) * standardizer.y_scale + standardizer.y_mean, y)


def test_constant_columns_are_only_shifted():
    x = torch.tensor([[0.1, 1.0], [0.1, 3.0]])
    standardizer = Standardizer.of(x, x, targets=False)
    assert standardizer.inputs(x).tolist() == [[0.0, -1.0], [0.0, 1.0]]
    assert standardizer.targets(x) is not None
    assert torch.equal(standardizer.targets(x), x)


def test_an_epoch_holds_every_row_at_most_once():
    stream = minibatches([0], rows=10, batch_size=3)
    epoch = torch.cat([next(stream)[0] for _ in range(3)])
    assert len(set(epoch.tolist())) == 9
    counts = torch.zeros(10)
    for _ in range(3000):
        counts[next(stream)[0]] += 1
    # Each row is in an epoch (1000 of them) with probability 0.9.
    assert ((counts - 900).abs() < 5 * (1000 * 0.9 * 0.1) ** 0.5).all()


def take(stream, count):
    return torch.stack([draw.clone() for draw in itertools.islice(stream, count)])


STREAMS = {
    "noise": lambda seeds, start=0: noise_stream(seeds, (2, 50_000), torch.zeros(()), start),  # two draws a block
    "rows": lambda seeds, start=0: minibatches(seeds, 20_000, 5_000, start),  # three epochs a block
}


@pytest.mark.parametrize("name", STREAMS)
def test_streams_depend_on_their_seed_alone_and_start_anywhere(name):
    stream = STREAMS[name]
    alone, other = take(stream([3]), 14), take(stream([4]), 14)
    assert not torch.equal(alone, other)
    assert torch.equal(take(stream([4, 3]), 14), torch.cat([other, alone], dim=1))
    assert len({tuple(draw.flatten()[:5].tolist()) for draw in alone}) == 14
    for start in (1, 2, 3, 12, 13):
        assert torch.equal(take(stream([3], start), 1)[0], alone[start])


def test_noise_is_standard_normal():
    draws = take(noise_stream([0], (1000,), torch.zeros((), dtype=torch.float64)), 300).flatten()
    n = len(draws)
    assert abs(draws.mean()) < 5 / n**0.5
    assert abs(draws.square().mean() - 1) < 5 * (2 / n) ** 0.5
    assert abs(draws.pow(4).mean() - 3) < 5 * (96 / n) ** 0.5


@pytest.mark.parametrize("seed", [-1, 1.5, True, "0"])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="seed must be a non-negative integer"):
        make_generator("cpu", seed)


def test_generators_of_different_keys_differ():
    states = {make_generator("cpu", *key).initial_seed() for key in [(0,), (1,), (0, 1), (1, 0), (0, 0), (0, 0, 1)]}
    assert len(states) == 6
