"""The API reference has every public name, and everything that it shows has an example that runs."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import pyro_sps

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs/api").glob("*.rst"))


def shown():
    """What the pages show, by full name: the directives read as Sphinx reads them."""
    found = {}
    for page in PAGES:
        module = ""
        for directive, name in re.findall(r"^\.\. (\w+):: (\S+)$", page.read_text(), flags=re.MULTILINE):
            if directive in ("currentmodule", "automodule"):
                module = name
            elif directive.startswith("auto"):
                where, _, name = (name if name.startswith("pyro_sps.") else f"{module}.{name}").rpartition(".")
                assert f"{where}.{name}" not in found
                found[f"{where}.{name}"] = getattr(importlib.import_module(where), name)
    return found


def public():
    """The classes and functions that the package exports or its public modules define, by full name."""
    found = {f"pyro_sps.{name}": getattr(pyro_sps, name) for name in pyro_sps.__all__}
    for module in (importlib.import_module(f"pyro_sps.{place}") for place in pyro_sps._MODULES.values()):
        for name, value in vars(module).items():
            if not name.startswith("_") and getattr(value, "__module__", "").startswith(module.__name__):
                found[f"{module.__name__}.{name}"] = value
    return {name: value for name, value in found.items() if inspect.isclass(value) or inspect.isfunction(value)}


def test_every_public_name_is_in_the_reference():
    values = list(shown().values())
    missing = [name for name, value in public().items() if value not in values]
    assert not missing, "add these to pages of docs/api"


def test_what_the_reference_shows_has_an_example():
    example = re.compile(r"^Example:\n +>>> ", flags=re.MULTILINE)
    missing = [name for name, value in shown().items() if not example.search(inspect.getdoc(value) or "")]
    assert not missing, "add an `Example:` to the docstrings of these"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/index.md").read_text()
    assert PAGES
    assert not [page.stem for page in PAGES if f"\napi/{page.stem}\n" not in index]


def test_that_all_name_the_same_version():
    version = pyro_sps.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}] - 20" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    ("page", "least"), [("CONTRIBUTING.md", 3), ("docs/coming_from.md", 20), ("docs/using.md", 15)]
)
def test_examples_of_pages(page, least):
    found = doctest.testfile(str(ROOT / page), module_relative=False)
    assert found.attempted > least
    assert found.failed == 0
