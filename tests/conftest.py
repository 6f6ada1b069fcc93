"""What all tests share."""

import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def _fresh():
    """Every test starts with an empty parameter store and the same random state."""
    pyro.clear_param_store()
    torch.manual_seed(0)
