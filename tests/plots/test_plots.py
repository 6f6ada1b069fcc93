"""Figures show what they say: the data of their artists, their labels, their limits."""

import math

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import pyro_sps as sps
from pyro_sps import plots
from pyro_sps.data.arrays import Standardizer
from pyro_sps.posterior.outputs import Member
from pyro_sps.posterior.predict import Prediction

HIDDEN = [1, 4, 4, 1]


@pytest.fixture(scope="module")
def data():
    x = torch.linspace(-1, 1, 40, dtype=torch.float64).unsqueeze(1)
    return x, x.sin() + 3


@pytest.fixture(scope="module")
def fits(data):
    net = sps.mlp(HIDDEN, dtype=torch.float64)
    bnn = sps.BNN(net, scheme=sps.Heavy(), values=sps.Constant(1.5), likelihood=sps.Gaussian(0.2))
    return sps.fit(bnn, *data, num_steps=200, replicas=2, standardize=True, progress=False)


def normal(mean, scale, num_samples=400):
    """A prediction of y ~ Normal(mean, scale²), by a linear network without uncertainty."""
    net = torch.nn.Linear(1, 1, dtype=torch.float64)
    bnn = sps.BNN(net, scheme=sps.Unmasked(), values=sps.Zero(), likelihood=sps.Gaussian(scale))
    guide = sps.AutoSPSNormal(bnn, init_scale=1e-9)
    guide(mean, mean)
    guide.loc.data = torch.tensor([1.0, 0.0], dtype=torch.float64)
    return Prediction.of([Member(bnn, guide, Standardizer.identity(bnn.like))], mean, num_samples, 0)


def by_label(ax):
    handles, labels = ax.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def is_in(ax, figure_of):
    """Whether the axes returned are those given, and None makes a figure of its own."""
    given = Figure().subplots()
    return figure_of(given) is given and ax.get_figure() is not given.get_figure()


# --- networks --------------------------------------------------------------------------------------


def test_masks_and_orbits():
    topology = sps.Topology.of(sps.mlp([8, 12, 12, 2]))
    masks = sps.Light()(topology)
    values = sps.Constant(2.0)(topology, masks, torch.Generator().manual_seed(0))
    report = sps.certify(topology, masks)
    axes = plots.plot_symmetry(report, masks, values)
    cells = axes[1].images[0].get_array()
    assert (cells.mask == masks["2.weight"].numpy()).all()
    assert set(cells.compressed().tolist()) == {-2.0, 2.0}
    assert axes[1].images[0].get_clim() == (-2.0, 2.0)  # zero in the middle of the colours
    assert axes[0].figure.get_suptitle().startswith("120 permutations")  # small orders are written out
    marked = sum(len(points.get_offsets()) for points in axes[1].collections)
    orbits = report.orbits()
    assert marked == sum(orbit.count(label) > 1 for orbit in orbits.values() for label in orbit) == 10
    plain = plots.plot_masks(topology, masks)
    assert (plain[1].images[0].get_array() == ~masks["2.weight"].numpy()).all()
    assert [ax.get_title() for ax in plain] == [
        f"{t.name}: {int((~masks[t.name]).sum())} of {t.numel} fixed" for t in topology.matrices
    ]
    assert (plain[0].get_xlabel(), plain[0].get_ylabel()) == ("unit of input", "unit of layer 1")


def test_masks_need_axes_for_every_matrix():
    topology = sps.Topology.of(sps.mlp([3, 5, 2]))
    with pytest.raises(ValueError, match="each of 2 weight matrices, got 1"):
        plots.plot_masks(topology, {}, axes=[Figure().subplots()])
    narrow = plots.plot_masks(sps.Topology.of(sps.mlp([1, 5, 1])), {})[0]
    assert [tick for tick in narrow.get_xticks() if -0.5 <= tick <= 0.5] == [0]  # units are counted


def test_masks_of_kernels_and_slots_are_drawn_by_index():
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 4, 3))
    topology = sps.Topology.of(net, torch.zeros(2, 2, 4, 4))
    masks = sps.Heavy()(topology)
    first, last = plots.plot_symmetry(sps.certify(topology, masks), masks)
    assert first.images[0].get_array().shape == (4, 2 * 9)
    assert first.get_ylabel() == "index of axis 0 (layer 1)"
    assert last.get_xlabel() == "index of the other axes (layer 1)"
    with pytest.raises(ValueError, match="plot_masks draws the weights of any network"):
        plots.plot_network(topology)


def edges(ax):
    """Ends, colour and line style of every edge."""
    found = {}
    for collection in ax.collections:
        if not hasattr(collection, "get_segments"):
            continue
        dashed = collection.get_linestyles()[0][1] is not None
        for line, colour, width in zip(
            collection.get_segments(), collection.get_colors(), collection.get_linewidths(), strict=True
        ):
            (x0, y0), (x1, y1) = line.tolist()
            found[x0, y0, x1, y1] = (dashed, to_hex(colour), width)
    return found


def test_network_has_an_edge_a_weight_and_dashes_the_fixed_ones():
    bnn = sps.BNN(sps.mlp([2, 3, 1]), scheme=sps.Rigid(signs=True), values=sps.Constant(1.5))
    ax = plots.plot_network(bnn.topology, bnn.masks, bnn.fixed)
    drawn = edges(ax)
    assert len(drawn) == 9
    height = {0: [0.5, -0.5], 1: [1.0, 0.0, -1.0], 2: [0.0]}  # unit 0 on top
    constants = {}
    for column, name in enumerate(["0.weight", "2.weight"]):
        for (to, origin), free in np.ndenumerate(bnn.masks[name].numpy()):
            dashed, colour, _ = drawn[column, height[column][origin], column + 1, height[column + 1][to]]
            assert dashed != free
            if free:
                assert colour == to_hex("0.75")
            else:
                constants.setdefault(float(bnn.fixed[name][to, origin]), set()).add(colour)
    assert len(set.union(*constants.values())) == len(constants)  # one colour a value
    assert all(len(colours) == 1 for colours in constants.values())
    assert [text.get_text() for text in ax.texts] == ["0", "1", "input", "0", "1", "2", "layer 1", "0", "output"]
    assert ax.get_title() == f"2-3-1 network, {bnn.num_fixed} of 13 weights fixed"
    assert is_in(ax, lambda given: plots.plot_network(bnn.topology, ax=given))


def test_network_shows_values_by_width_and_fixed_biases_as_squares():
    topology = sps.Topology.of(sps.mlp([1, 2, 1]))
    weights = {"0.weight": torch.tensor([[4.0], [1.0]]), "0.bias": torch.tensor([4.0, -4.0])}
    weights |= {"2.weight": torch.tensor([[0.0, -4.0]]), "2.bias": torch.zeros(1)}
    ax = plots.plot_network(topology, {"0.bias": torch.tensor([False, True])}, weights=weights)
    drawn = edges(ax)
    assert drawn[0, 0, 1, 0.5][2] == drawn[1, -0.5, 2, 0][2] > drawn[0, 0, 1, -0.5][2] > drawn[1, 0.5, 2, 0][2]
    assert drawn[0, 0, 1, 0.5][1] != drawn[1, -0.5, 2, 0][1]  # the sign is a colour
    shapes = {
        tuple(offset): len(points.get_paths()[0].vertices)
        for points in ax.collections
        if not hasattr(points, "get_segments")
        for offset in points.get_offsets().tolist()
    }
    assert shapes[1, 0.5] == 5
    assert shapes[1, -0.5] > 5  # corners of a square, points of a circle
    with pytest.raises(ValueError, match="up to 24 units, got 30"):
        plots.plot_network(sps.Topology.of(sps.mlp([1, 30, 1])))


# --- predictions -----------------------------------------------------------------------------------


def test_bands_of_a_prediction(fits, data):
    x = torch.tensor([[0.5], [-1.0], [2.0], [0.0]], dtype=torch.float64)  # not in order
    prediction = fits.predict(x, num_samples=50)
    ax = plots.plot_bands(prediction, data, x.square(), level=0.8, draws=4)
    drawn = by_label(ax)
    order = [1, 3, 0, 2]
    assert drawn["predictive mean"].get_xdata().tolist() == [-1.0, 0.0, 0.5, 2.0]
    np.testing.assert_allclose(drawn["predictive mean"].get_ydata(), prediction.mean[order, 0])
    np.testing.assert_allclose(drawn["true function"].get_ydata(), x.square()[order, 0])
    np.testing.assert_allclose(drawn["data"].get_xydata(), torch.cat(data, 1))
    corners = drawn["80 % interval"].get_paths()[0].vertices
    lower, upper = prediction.interval(0.8)
    for end in (lower, upper):
        for point in torch.cat([x, end], 1).tolist():
            assert np.isclose(corners, point).all(1).any()
    functions = [line.get_ydata() for line in ax.lines if line.get_linewidth() == 0.5]
    assert len(functions) == 4
    for line in functions:
        assert np.isclose(prediction.function_draws[:, order, 0], line).all(1).any()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("input x", "target y")
    assert ax.get_legend() is not None


def test_bands_of_a_fit_cover_its_data_in_original_units(fits, data):
    ax = plots.plot_bands(fits[0])
    np.testing.assert_allclose(by_label(ax)["data"].get_xydata(), torch.cat(data, 1))
    assert ax.get_xlim() == pytest.approx((-1.2, 1.2))
    assert is_in(ax, lambda given: plots.plot_bands(fits, ax=given))
    given = Figure().subplots()
    assert plots.plot_bands(fits, ax=given).get_legend() is None


def test_bands_refuse_what_they_cannot_draw(fits):
    wide = sps.fit(
        sps.BNN(sps.mlp([2, 2, 1]), sps.Unmasked()), torch.zeros(4, 2), torch.zeros(4), num_steps=1, progress=False
    )
    for source in (wide, wide.predict(torch.zeros(3, 2))):
        with pytest.raises(ValueError, match="one input, got 2"):
            plots.plot_bands(source)
    with pytest.raises(ValueError, match=r"one of 0 \.\.\. 0, got 1"):
        plots.plot_bands(fits, target=1)


def test_bands_of_a_loaded_fit_need_a_prediction(fits, tmp_path):
    fits[0].save(tmp_path / "fit")
    loaded = sps.load(tmp_path / "fit", sps.mlp(HIDDEN, dtype=torch.float64))
    with pytest.raises(ValueError, match="no training data"):
        plots.plot_bands(loaded)


def test_predicted_marks_targets_outside():
    mean = torch.linspace(0, 1, 10, dtype=torch.float64).unsqueeze(1)
    prediction = normal(mean, 0.1)
    y = mean.clone()
    y[3] += 1.0
    y[7] -= 1.0
    ax = plots.plot_predicted(prediction, y, level=0.9)
    drawn = by_label(ax)
    assert drawn["outside"].get_xdata().tolist() == y[[3, 7], 0].tolist()
    assert len(drawn["inside the interval"].get_xdata()) == 8
    np.testing.assert_allclose(drawn["outside"].get_ydata(), mean[[3, 7], 0])
    lower, upper = prediction.interval(0.9)
    assert [line.tolist() for line in ax.collections[1].get_segments()] == [
        [[y[i].item(), lower[i].item()], [y[i].item(), upper[i].item()]] for i in (3, 7)
    ]
    assert ax.get_title() == "8 of 10 in their 90 % interval"
    assert is_in(ax, lambda given: plots.plot_predicted(prediction, y, ax=given))


def calibrated(rows, spread):
    """A prediction of standard normal targets whose standard deviation is `spread`."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    return normal(torch.zeros(rows, 1, dtype=torch.float64), spread), y


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_calibration_is_the_coverage_of_a_normal(spread):
    rows = 2000
    prediction, y = calibrated(rows, spread)
    ax = plots.plot_calibration(prediction, y)
    levels, shares = by_label(ax)["observed, 2,000 targets"].get_data()
    z = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor((1 + levels) / 2))
    expected = torch.erf(spread * z / math.sqrt(2)).numpy()
    # Binomial errors; ranks among 400 draws are multiples of 1/401, at both ends of an interval.
    assert (abs(shares - expected) < 4 * np.sqrt(0.25 / rows) + 0.01).all()
    band = by_label(ax)["95 % of calibrated ones"].get_paths()[0].vertices
    middle = band[np.isclose(band[:, 0], 0.5, atol=0.003)]
    half_width = 1.96 * math.sqrt(0.25 / rows)
    assert np.ptp(middle[:, 1]) == pytest.approx(2 * half_width, rel=0.15)
    inside = (shares < levels + half_width) & (shares > levels - half_width)
    assert inside[5:14].all() == (spread == 1.0)


def test_pit_is_flat_if_calibrated_and_a_cup_if_too_sure():
    rows, bins = 2000, 8
    for spread in (1.0, 0.5):
        prediction, y = calibrated(rows, spread)
        ax = plots.plot_pit(prediction, y, bins=bins)
        counts = np.array([bar.get_height() for bar in ax.patches])
        assert counts.sum() == rows
        assert len(counts) == bins
        band = by_label(ax)["95 % of calibrated ones"].get_paths()[0].vertices[:, 1]
        scale = math.sqrt(rows * (1 / bins) * (1 - 1 / bins))
        assert (band.max() - band.min()) == pytest.approx(2 * 1.96 * scale, rel=0.05)
        if spread == 1.0:
            assert (abs(counts - rows / bins) < 4 * scale).all()
        else:
            assert min(counts[0], counts[-1]) > rows / bins + 4 * scale
    assert is_in(ax, lambda given: plots.plot_pit(prediction, y, ax=given))
    with pytest.raises(ValueError, match="bins must be a positive integer, got 0"):
        plots.plot_pit(prediction, y, bins=0)


def test_labels_have_no_rank():
    bnn = sps.BNN(sps.mlp([1, 3, 3]), sps.Unmasked(), likelihood=sps.Categorical())
    x, y = torch.zeros(6, 1), torch.tensor([0, 1, 2, 0, 1, 2])
    prediction = sps.fit(bnn, x, y, num_steps=1, progress=False).predict(x, num_samples=5)
    for draw in (plots.plot_pit, plots.plot_calibration, plots.plot_predicted):
        with pytest.raises(ValueError, match="not defined for labels"):
            draw(prediction, y)


# --- posteriors ------------------------------------------------------------------------------------


def test_elbo_history_and_its_running_mean(fits):
    ax = plots.plot_elbo(fits)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["replica 0", "replica 1"]
    for index, fit in enumerate(fits):
        raw, smooth = ax.lines[2 * index : 2 * index + 2]
        np.testing.assert_allclose(raw.get_ydata(), -fit.losses)
        window = len(fit.losses) // 50
        for k in (0, 70, len(smooth.get_ydata()) - 1):
            assert smooth.get_ydata()[k] == pytest.approx(-fit.losses[k : k + window].mean())
        assert smooth.get_xdata()[0] == (window - 1) // 2
    low, high = ax.get_ylim()
    for fit in fits:  # the end is in sight, the start is not
        assert low < -fit.losses[100:].max() < -fit.losses[-1] < high
    assert low > min(-fit.losses[0] for fit in fits)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "ELBO / nats")
    assert is_in(ax, lambda given: plots.plot_elbo(fits[0], given))
    named = plots.plot_elbo({"heavy": fits[0], "again": fits[1]})
    assert list(by_label(named)) == ["heavy", "again"]
    with pytest.raises(ValueError, match="at least one fit"):
        plots.plot_elbo([])


def test_unit_has_violins_where_stochastic_and_crosses_where_fixed(fits):
    bnn = fits[0].bnn
    ax = plots.plot_unit({"one": fits[0], "two": fits[1]}, "layer 2", 0, num_samples=200)
    labels = [tick.get_text() for tick in ax.get_xticklabels()]
    assert labels == [*(f"2.weight[0, {j}]" for j in range(4)), "2.bias[0]", "4.weight[0, 0]"]
    fixed = ~bnn.masks["2.weight"][0]
    assert 0 < fixed.sum() < 4
    crosses = [line for line in ax.lines if line.get_marker() == "X"]
    assert len(crosses) == 2
    for side, line in zip((-1, 1), crosses, strict=True):
        np.testing.assert_allclose(line.get_xdata(), fixed.nonzero()[:, 0] + side * 0.2)
        np.testing.assert_allclose(line.get_ydata(), bnn.fixed["2.weight"][0][fixed])
    bodies = [c for c in ax.collections if c.get_alpha() == 0.5]
    assert len(bodies) == 2 * (6 - int(fixed.sum()))
    medians = [c for c in ax.collections if hasattr(c, "get_segments")]
    exact = fits[0].guide.median()["2.bias"][0].item()
    scale = fits[0].guide.quantiles([0.8413])["2.bias"][0, 0].item() - exact
    drawn = medians[0].get_segments()[-2][0, 1]  # the bias, before the weight that leads away
    assert abs(drawn - exact) < 4 * 1.2533 * scale / math.sqrt(200)  # standard error of a median
    assert by_label(ax).keys() == {"one", "two"}
    short = plots.plot_unit({"one": fits[0]}, "layer 2", 0, most=2, num_samples=5)
    assert short.get_title() == "unit 0 of layer 2: 2 of 6 weights"
    with pytest.raises(ValueError, match=r"units 0 \.\.\. 3, got 4"):
        plots.plot_unit({"one": fits[0]}, "layer 1", 4)
    with pytest.raises(ValueError, match="layer must be one of"):
        plots.plot_unit({"one": fits[0]}, "layer 9")
    with pytest.raises(ValueError, match="at least one"):
        plots.plot_unit({})


def test_twins_are_mirrored_at_the_diagonal():
    topology = sps.Topology.of(sps.mlp([1, 2, 1]))
    generator = torch.Generator().manual_seed(0)
    w1 = torch.tensor([1.0, 3.0]) + 0.1 * torch.randn(2, 500, 2, generator=generator)  # (chains, draws, units)
    w1[1] = w1[1].flip(-1)  # the second chain is in the twin mode
    draws = {"0.weight": w1.unsqueeze(-1), "0.bias": w1 + 1, "2.weight": w1.unsqueeze(-2), "2.bias": w1[..., :1]}
    axes = plots.plot_twins((topology, draws))
    assert [ax.get_xlabel() for ax in axes] == ["0.weight[0, 0]", "0.bias[0]", "2.weight[0, 0]"]
    assert [ax.get_ylabel() for ax in axes] == ["0.weight[1, 0]", "0.bias[1]", "2.weight[0, 1]"]
    assert {ax.get_title() for ax in axes} == {"50 % above the diagonal"}
    for ax in axes:
        assert ax.get_xlim() == ax.get_ylim()
        assert ax.get_aspect() == 1.0
    one, other = by_label(axes[0])["chain 0"], by_label(axes[0])["chain 1"]
    np.testing.assert_allclose(one.get_xydata(), w1[0])
    np.testing.assert_allclose(other.get_xydata(), w1[1])
    one_mode = {name: value[:1] for name, value in draws.items()}
    given = list(Figure().subplots(1, 2))
    assert plots.plot_twins((topology, one_mode), axes=given) == given
    assert given[0].get_title() == "100 % above the diagonal"
    with pytest.raises(ValueError, match="each of 3 weights of a unit, got 4"):
        plots.plot_twins((topology, draws), axes=list(Figure().subplots(1, 4)))
    with pytest.raises(ValueError, match=r"draws must have shape"):
        plots.plot_twins((topology, draws | {"0.weight": torch.zeros(2, 1)}))


def test_twins_of_replicas_have_a_colour_each(fits):
    axes = plots.plot_twins(fits, "layer 1", (2, 3), num_samples=30)
    points = by_label(axes[0])
    assert list(points) == ["chain 0", "chain 1"]
    assert len({to_hex(line.get_color()) for line in points.values()}) == 2
    assert all(len(line.get_xdata()) == 30 for line in points.values())
