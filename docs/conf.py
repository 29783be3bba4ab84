"""Sphinx configuration: Markdown pages, a reference from the code, examples that make figures."""

import os
import re
import sys
from pathlib import Path

import vl_convert

import prunus

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from _reference import in_plain_words, write_reference  # noqa: E402 stands beside this file

write_reference(HERE / "reference")
project = "prunus"
author = "the prunus authors"
release = prunus.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_typehints = "none"  # shapes are said in the signatures' own words, below
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # shapes such as "*seeds K" are no markup
exclude_patterns = ["_build", "gallery/**/*.ipynb"]
html_theme = "furo"
html_title = f"prunus {release}"
suppress_warnings = ["config.cache", "myst.header"]
html_show_copyright = False  # LICENSE says it; a year and a name here would age


def thumbnail(block, about, gallery):
    """The first drawing that a page shows becomes the picture of its card too."""
    shown = about["example_globals"].get("___")  # the value of the block's last expression
    drawing = re.search(r"<svg.*?</svg>", getattr(shown, "_repr_html_", str)(), re.DOTALL)
    if drawing:
        svg = drawing.group()
        if "xmlns=" not in svg:  # inside a page it goes without saying
            svg = svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
        picture = vl_convert.svg_to_png(svg, scale=1.5)
        Path(next(about["image_path_iterator"])).write_bytes(picture)
    return ""


# The examples run in their small form, without data sets; PRUNUS_GALLERY=0 shows them unrun.
os.environ.setdefault("PRUNUS_SMALL", "1")
sphinx_gallery_conf = {
    "examples_dirs": ["../examples"],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"/(?!mnist_six_methods|which_selector)\w+\.py$",
    "image_scrapers": (thumbnail,),
    "ignore_pattern": r"__init__|(^|/)_",
    "write_computation_times": False,
    "plot_gallery": os.environ.get("PRUNUS_GALLERY", "1") != "0",
}


def setup(app):
    """Docstrings are written for readers of the code; before napoleon they are made markup."""
    app.connect("autodoc-process-docstring", lambda *about: in_plain_words(about[-1]), priority=400)
