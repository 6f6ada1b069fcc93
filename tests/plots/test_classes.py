"""Figures of classes."""

import numpy as np
import pytest
import torch

import pyro_sps as sps
from pyro_sps.plots import plot_confusion, plot_reliability


@pytest.fixture(scope="module")
def labels():
    x = torch.linspace(-1, 1, 60).unsqueeze(1)
    y = (x[:, 0] > 0).long()
    bnn = sps.BNN(sps.mlp([1, 5, 2]), sps.Unmasked(), likelihood=sps.Categorical())
    return sps.fit(bnn, x, y, num_steps=200, progress=False).predict(x, num_samples=50), y


def test_reliability_shows_shares_of_right_rows(labels):
    prediction, y = labels
    line = plot_reliability(prediction, y, bins=5).lines[1]
    probabilities = prediction.mean.numpy()
    confidence, right = probabilities.max(1), probabilities.argmax(1) == y.numpy()
    for mean, share in zip(*line.get_data(), strict=True):
        inside = np.floor(confidence * 5).clip(max=4) == np.floor(min(mean, 0.999) * 5)
        assert confidence[inside].mean() == pytest.approx(mean)
        assert right[inside].mean() == pytest.approx(share)


def test_confusion_counts_rows(labels):
    prediction, y = labels
    ax = plot_confusion(prediction, y, ["no", "yes"])
    counts = np.array([int(text.get_text()) for text in ax.texts]).reshape(2, 2)
    predicted = prediction.mean.argmax(1)
    assert counts.tolist() == [[int(((y == o) & (predicted == p)).sum()) for p in (0, 1)] for o in (0, 1)]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["no", "yes"]


def test_numbers_are_refused():
    x = torch.linspace(-1, 1, 10).unsqueeze(1)
    fit = sps.fit(sps.BNN(sps.mlp([1, 3, 1]), sps.Unmasked()), x, x, num_steps=2, progress=False)
    for draw in (plot_reliability, plot_confusion):
        with pytest.raises(ValueError, match="numbers, not labels"):
            draw(fit.predict(x), x)
    with pytest.raises(ValueError, match="bins"):
        plot_reliability(fit.predict(x), x, bins=0)
