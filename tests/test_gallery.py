"""The gallery's pages of real networks run, in their small form."""

import importlib.util
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
PAGES = ("lstm_rows", "vit_digits", "bert_pages", "resnet_images", "unet_denoising")


@pytest.mark.parametrize(
    "name", [pytest.param(page, marks=[] if page == "lstm_rows" else pytest.mark.slow)
             for page in PAGES]
)  # fmt: skip
def test_a_page_runs_and_says_what_it_cost(name, monkeypatch, capsys):
    needed = ["onnxruntime", "sklearn"]
    needed += ["transformers"] if name in ("vit_digits", "bert_pages") else []
    for library in needed:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"needs {library}")
    monkeypatch.setenv("PRUNUS_SMALL", "1")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("default")  # those of other libraries are not the page's
        try:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        finally:
            sys.modules.pop("_shipping", None)
    said = capsys.readouterr().out
    for word in ("dense", "pruned", "retrained", "compact, the same network", "parameters"):
        assert word in said
    for engine in ("torch on cpu", "onnxruntime on cpu"):
        (line,) = [line for line in said.splitlines() if line.startswith(engine)]
        assert any(f": {verdict}, " in line for verdict in ("faster", "slower", "no benefit"))
    (figures,) = [line.split() for line in said.splitlines() if line.startswith("parameters")]
    dense, small = (int(part.replace(",", "")) for part in (figures[1], figures[3]))
    assert small < 0.8 * dense
    (trained,) = [line.split()[0] for line in said.splitlines() if line.endswith(" retrained")]
    (same,) = [line.split()[0] for line in said.splitlines() if line.endswith("the same network")]
    assert float(trained) == pytest.approx(float(same), abs=2e-3)
