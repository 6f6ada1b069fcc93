"""Doctests share a process: each starts with an empty parameter store of Pyro's."""

import pyro
import pytest


@pytest.fixture(autouse=True)
def _empty_parameter_store():
    pyro.clear_param_store()
