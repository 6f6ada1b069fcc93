"""How the tests run the notebooks: shortened, with this checkout's package, and without data not at all."""

import os
import sys
from pathlib import Path

import pytest

NEEDS_DATA = {"3_a_real_data_set.ipynb": "ENB2012_data.xlsx"}


def pytest_runtest_setup(item):
    needed = NEEDS_DATA.get(Path(item.path).name)
    folder = os.environ.get("PYRO_SPS_DATA")
    if needed and not (folder and Path(folder, needed).is_file()):
        pytest.skip(f"the environment variable PYRO_SPS_DATA names no folder with {needed}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Kernels inherit the environment; `%%bash` cells look for `pyro-sps` beside the running Python."""
    paths = {
        "PYTHONPATH": [str(item.config.rootpath), os.environ.get("PYTHONPATH", "")],
        "PATH": [str(Path(sys.executable).parent), os.environ.get("PATH", "")],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYRO_SPS_QUICK", os.environ.get("PYRO_SPS_QUICK", "1"))
        for name, parts in paths.items():
            patch.setenv(name, os.pathsep.join(filter(None, parts)))
        return (yield)
