"""What all tests and doctests share."""

import signal

import pyro
import pytest
import torch
from hypothesis import settings

settings.register_profile("pyro_sps", deadline=None)  # machines are shared: no test is timed
settings.load_profile("pyro_sps")


@pytest.fixture(autouse=True)
def _fresh():
    """Each starts with an empty parameter store of Pyro's, the same random state, and Ctrl-C as Python has it.

    (Shells start what they run in the background with Ctrl-C ignored.)
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pyro.clear_param_store()
    torch.manual_seed(0)
