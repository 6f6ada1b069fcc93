"""How Sphinx builds the documentation (`make docs`). Nothing is downloaded and no notebook is run."""

import shutil
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

from pyro_sps import __version__

project = "pyro_sps"
author = "the authors of pyro_sps"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_click"]
exclude_patterns = ["_build", "tutorials/README.md"]

# Sphinx reads pages below docs/ only: the notebooks and the study's pages are copied there, and git ignores the copies.
HERE = Path(__file__).parent
for folder in ("tutorials", "study"):
    shutil.rmtree(HERE / folder, ignore_errors=True)
    shutil.copytree(HERE.parent / folder, HERE / folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.py"))

# Notebooks are shown with the outputs that are committed in them.
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

# In docstrings `name` is a link if there is such a name, else code.
default_role = "py:obj"
nitpicky = True
# Types of other libraries, and names that stand for several types.
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:class", r"(torch|nn|pyro|numpy|arviz|xarray|matplotlib|collections|pathlib)\..*"),
    ("py:class", "Tensor|MCMC|Axes|Scheme|Values|Prior|Source|Callback|Path"),
    ("py:class", r"(np|pd|pandas|sklearn)\..*"),
    ("py:(exc|func)", r"sklearn\..*"),  # of docstrings that estimators inherit
    # Types that are shown where they are returned, and have no page.
    (
        "py:class",
        r"pyro_sps\..*\.(Priors|PartialNetwork|Places|Structure|Joint|Column|OrderedLogistic|MeanNetwork|Indexed|Streamed)",
    ),
]
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True
add_module_names = False
maximum_signature_line_length = 90
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"pyro_sps {release}"
html_show_copyright = False


def show_math(writer, node):
    """Write a formula as MathML, which browsers draw by themselves: pages need no script and no network."""
    block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=block)
    writer.body.append(f'<div class="math">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def show_examples(app, context, lines):
    """Show the examples at the end of a command's help as code, in place of sphinx-click's lines of verse."""
    code = [line.removeprefix("|") for line in lines[1:]]
    lines[:] = [lines[0].removeprefix("| "), "", ".. code-block:: sh", "", *code] if lines else []


def setup(app):
    """Called by Sphinx."""
    app.connect("sphinx-click-process-epilog", show_examples)
    app.add_html_math_renderer("mathml", (show_math, None), (show_math, None))


html_math_renderer = "mathml"
