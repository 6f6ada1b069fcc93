"""Grids of tests of which `make test` runs a few cases, and `make test-all` all."""

import pytest


def few_of(cases, *quick):
    """The cases as parameters, those that are not named in `quick` marked as slow."""
    missing = set(quick) - set(cases)
    assert not missing, f"no cases {missing}"
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]
