"""Sphinx settings of the documentation; `make docs` builds it into docs/_build/html."""

import itertools
import os
import re
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from jupyter_cache import get_cache
from sphinx.ext import autosummary

import pyrovae as pv

# Of the notebooks that the build executes.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two run at a time
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # tqdm's, where ipywidgets is not installed

project = "pyrovae"
author = "the pyrovae authors"
version = release = pv.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_design",
]
exclude_patterns = ["_build"]
nitpicky = False
default_role = "code"  # single backticks in docstrings are code

# Pages are MyST markdown; those with a jupytext header are notebooks, executed once and kept in the cache.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_timeout = 240
nb_execution_in_temp = True  # what a notebook writes is not in the checkout, nor there when it runs again
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

# The reference comes from the docstrings.
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False  # else every `forward` repeats torch's
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
add_module_names = True
autosummary_generate = False  # the summaries link to entries on their own page
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Main arguments", "params_style"), ("Other arguments", "params_style")]
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_math_renderer = "mathml"
html_title = "pyrovae"
html_static_path = ["_static"]
html_css_files = ["pyrovae.css"]
html_copy_source = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072b2", "color-brand-content": "#0072b2"},
    "dark_css_variables": {"color-brand-primary": "#56b4e9", "color-brand-content": "#56b4e9"},
}
pygments_style = "tango"
pygments_dark_style = "native"


def first_paragraph(doc: list[str], document: Any) -> str:
    """What a summary says of an entry: the first paragraph of its docstring, where a formula may contain full stops."""
    lines = itertools.dropwhile(lambda line: not line.strip(), doc)
    return " ".join(line.strip() for line in itertools.takewhile(str.strip, lines))


autosummary.extract_summary = first_paragraph  # Sphinx's own ends at the first full stop, inside of backticks, too


def visit_math(translator: Any, node: Any) -> None:
    """Formulas as MathML, which browsers draw themselves: no script from elsewhere, and the site works offline."""
    block = node.tagname == "math_block"
    formula = str(latex2mathml.tex2mathml(node.astext(), as_block=block))
    translator.body.append(f'<div class="math">{formula}</div>' if block else formula)
    raise nodes.SkipNode


# What each notebook begins with where it is downloaded; the site neither runs nor shows it.
INSTALL = """```{code-cell} ipython3
:tags: [remove-cell, skip-execution]

%pip install --quiet 'pyrovae[arviz]'
```"""


def offer_notebook(app: Any, docname: str, source: list[str]) -> None:
    """Let a tutorial be downloaded as the notebook that was run, whose first cell installs pyrovae, as Colab needs it."""
    if is_notebook(docname):
        link = f"{{nb-download}}`Download this page as a notebook <{docname.rpartition('/')[2]}.ipynb>`, for Jupyter or Colab."
        source[0] = re.sub(
            r"^# .*$", lambda title: f"{title[0]}\n\n{link}\n\n{INSTALL}", source[0], count=1, flags=re.MULTILINE
        )


def is_notebook(docname: str) -> bool:
    return docname.startswith("tutorials/") and docname != "tutorials/index"


LONGEST = "tutorials/swap-anything"  # begins first


def spread_notebooks(app: Any, env: Any, docnames: list[str]) -> None:
    """Order pages such that notebooks are far apart: a process reads pages that are neighbours, and executes them in turn."""
    notebooks = [name for name in docnames if is_notebook(name)]
    order = [name for name in docnames if name not in notebooks]
    apart = len(docnames) // max(1, len(notebooks))
    for number, name in enumerate(sorted(notebooks, key=lambda name: (name != LONGEST, name))):
        order.insert(number * apart, name)
    docnames[:] = order


def create_cache(app: Any, env: Any, docnames: list[str]) -> None:
    """Create the cache of executed notebooks before processes share it: two that create its tables at once fail."""
    get_cache(env.mystnb_config.execution_cache_path).list_cache_records()


def skip_routing(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out methods that scikit-learn makes for its routing of metadata, whose docstrings link to its own pages."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def setup(app: Any) -> None:
    app.connect("autodoc-skip-member", skip_routing)
    app.connect("env-before-read-docs", create_cache)
    app.connect("env-before-read-docs", spread_notebooks)
    app.connect("source-read", offer_notebook)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
