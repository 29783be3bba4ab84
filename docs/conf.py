"""Sphinx configuration: Markdown pages, and examples that are run to make their figures."""

import prunus

project = "prunus"
author = "the prunus authors"
release = prunus.__version__
extensions = ["myst_parser", "sphinx_gallery.gen_gallery", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "gallery/**/*.ipynb"]
html_theme = "furo"
html_title = f"prunus {release}"
suppress_warnings = ["config.cache", "myst.header"]
sphinx_gallery_conf = {
    "examples_dirs": ["../examples"],
    "gallery_dirs": ["gallery"],
    # Only examples that need no data sets and seconds are run; the others are shown.
    "filename_pattern": "sampling_dpps",
    "ignore_pattern": r"__init__|_shipping",
    "write_computation_times": False,
    "plot_gallery": True,
}
