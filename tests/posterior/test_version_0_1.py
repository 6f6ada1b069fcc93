"""What version 0.1 wrote still loads: `tests/data/version-0.1`, made by the last commit before the wings.

It is a fit of `sps.mlp([1, 4, 3, 1])` with `Heavy()` masks, `Constant(0.5, learn=True)` and `Gaussian(0.2, learn=True)`
to y = x² at 20 points from −1 to 1, of 30 steps, standardised: saved, as a checkpoint and as a pickle.
"""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import pyro_sps as sps

OLD = Path(__file__).parents[1] / "data" / "version-0.1"
# What version 0.1 predicted at −1, 0 and 1 from 50 draws of seed 3.
MEANS = [[0.371471], [0.334065], [0.407370]]


def check(fit):
    x = torch.tensor([[-1.0], [0.0], [1.0]])
    torch.testing.assert_close(fit.predict(x, 50, seed=3).mean, torch.tensor(MEANS), atol=2e-4, rtol=0)
    assert fit.settings["num_steps"] == len(fit.losses) == 30
    assert [check["step"] for check in fit.validation] == [10, 20, 30]


def test_a_saved_fit_loads():
    with pytest.warns(UserWarning, match="does not say what its network computed"):
        check(sps.load(OLD / "fit", sps.mlp([1, 4, 3, 1])))


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="NumPy 1 reads no pickles of NumPy 2")
def test_a_pickle_loads():
    fit = pickle.loads((OLD / "fit.pickle").read_bytes())  # our own file
    check(fit)
    assert isinstance(fit, sps.Fit)
    assert "left" in str(fit.bnn.symmetry())
    check(pickle.loads(pickle.dumps(fit)))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # another machine, perhaps
@pytest.mark.filterwarnings("ignore::pyro_sps.masks.schemes.SymmetryWarning")
def test_a_checkpoint_is_gone_on_with(tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes((OLD / "checkpoint/checkpoint.safetensors").read_bytes())
    bnn = sps.BNN(sps.mlp([1, 4, 3, 1]), sps.Heavy(), sps.Constant(0.5, learn=True), sps.Gaussian(0.2, learn=True))
    x = torch.linspace(-1, 1, 20).unsqueeze(1)
    check(sps.resume(tmp_path, bnn, x, x**2, validation=(x, x**2), progress=False))


def test_old_modules_are_found_under_their_new_names():
    from pyro_sps.infer import Fit  # as code of version 0.1 has it
    from pyro_sps.nn import BNN, PartialWeight
    from pyro_sps.topology import ACTIVATIONS, trace

    assert (Fit, BNN, PartialWeight) == (sps.Fit, sps.BNN, sps.PartialWeight)
    assert trace is sps.topology.trace
    assert ACTIVATIONS is sps.topology.ACTIVATIONS
    with pytest.raises(ImportError, match="no_such_thing"):
        from pyro_sps.infer import no_such_thing  # noqa: F401
    with pytest.raises(ModuleNotFoundError):
        import pyro_sps.no_such_module  # noqa: F401
