"""The gallery's pages run in their small form: what they say, and the picture at their end."""

import ast
import importlib.util
import sys
import warnings
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
SHIPPED = ("lstm_rows", "vit_digits", "bert_pages", "resnet_images", "unet_denoising")
# Other pages, and something that each says.
OTHERS = {
    "cnn_digits": "times smaller: 4,214 of 29,066 parameters",
    "sensitivity_layers": "equal shares",
    "tickets_digits": "other first weights",
    "certify_digits": "share of changed predictions",
    "at_init_digits": "safe down to density",
    "dpp_digits": "greedy mode",
    "teacher_student_map": "places: ",
    "llm_folder": "sparsegpt  perplexity",
}
TRANSFORMERS = ("vit_digits", "bert_pages", "llm_folder")
SLOW = ("vit_digits", "bert_pages", "resnet_images", "unet_denoising")


def run_page(name, monkeypatch):
    """Run a page as the gallery does; the value of its last expression, which is shown."""
    needed = ["sklearn", "vl_convert"] + ["transformers"] * (name in TRANSFORMERS)
    for library in needed + ["onnxruntime"] * (name in SHIPPED):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"needs {library}")
    monkeypatch.setenv("PRUNUS_SMALL", "1")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    path = EXAMPLES / f"{name}.py"
    *body, last = ast.parse(path.read_text()).body
    assert isinstance(last, ast.Expr), "a page ends with what it shows"
    names = {"__name__": "__main__", "__file__": str(path)}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("default")  # those of other libraries are not the page's
        try:
            exec(compile(ast.Module(body, []), str(path), "exec"), names)
            return eval(compile(ast.Expression(last.value), str(path), "eval"), names)
        finally:
            for helper in ("_shipping", "_pictures"):
                sys.modules.pop(helper, None)


def pages(names):
    return [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in names]


@pytest.mark.parametrize("name", pages(SHIPPED))
def test_a_page_runs_and_says_what_it_cost(name, monkeypatch, capsys):
    shown = run_page(name, monkeypatch)
    assert "<svg" in shown._repr_html_()
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


@pytest.mark.parametrize("name", pages(OTHERS))
def test_a_page_says_its_piece_and_ends_with_a_picture(name, monkeypatch, capsys):
    shown = run_page(name, monkeypatch)
    assert OTHERS[name] in capsys.readouterr().out
    assert "<svg" in shown._repr_html_()


def test_every_page_is_run_by_a_test():
    from_the_command_line = {"mnist_six_methods", "which_selector", "sampling_dpps"}  # own tests
    there = {path.stem for path in EXAMPLES.glob("[!_]*.py")}
    assert there == {*SHIPPED, *OTHERS, *from_the_command_line}
