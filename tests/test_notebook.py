"""What a notebook shows of a result: words, tables and still pictures, safe and self-contained."""

import re
import sys
import warnings
from xml.etree import ElementTree

import pytest
import torch

import models
import prunus
from prunus.budget import Plan
from prunus.notebook import SHOWN, histogram, view


@pytest.fixture(scope="module")
def results():
    pytest.importorskip("vl_convert", reason="pictures need the extra `report`")
    torch.manual_seed(0)
    model, x = models.MLP((6, 8, 3)), torch.randn(80, 6)
    pruned = prunus.prune(model, "wanda+ls", 0.5, data=x[:40])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        certificate = pruned.certify(x[40:])
    compared = prunus.compare(
        model, ["magnitude", "wanda"], [0.5, 0.2], data=x[:40],
        evaluate=lambda m: {"loss": m(x).square().mean().item()}, progress=False,
    )  # fmt: skip
    scan = prunus.sensitivity(
        model, "magnitude", [0.5, 0.2], evaluate=lambda m: m(x).square().mean().item()
    )
    return {"pruned": pruned, "plan": pruned.plan, "certificate": certificate,
            "comparison": compared, "scan": scan}  # fmt: skip


@pytest.mark.parametrize("name", ["pruned", "plan", "certificate", "comparison", "scan"])
def test_a_view_is_whole_and_asks_for_nothing(name, results):
    text = results[name]._repr_html_()
    body = text.replace("&nbsp;", " ")
    ElementTree.fromstring(re.sub(r"class=(\w+)", r'class="\1"', body))  # every tag is closed
    assert "<script" not in text
    assert not re.findall(r"""(?:src|href)=["']?http""", text)
    assert "<table>" in text
    assert ("<svg" in text) == (name != "plan")


def test_views_begin_with_the_headline(results):
    for name in ("pruned", "comparison"):
        first = re.search(r"<strong>(.*?)</strong>", results[name]._repr_html_())[1]
        plain = re.sub(r"</?code>", "`", first).replace("&#x27;", "'")
        assert plain == results[name].headline()


def test_names_are_text():
    text = Plan(kept={"<b>fc": 3}, notes=("a < b",))._repr_html_()
    assert "<b>fc" not in text
    assert "&lt;b&gt;fc" in text
    assert "a &lt; b" in text


def test_a_long_table_says_how_much_is_left_out():
    text = view(["w"], [[{"a": i} for i in range(SHOWN + 7)]])
    assert text.count("<tr>") == SHOWN + 1
    assert "… and 7 more" in text


def test_a_histogram_has_a_bar_a_bin_and_leaves_out_what_has_no_logarithm():
    svg = ElementTree.fromstring(histogram([0.0, 1.0, 10.0, float("inf")], "gap", bins=4))
    heights = [float(bar.get("height")) for bar in svg.iter("rect")]
    assert heights == [76.0, 0.0, 0.0, 76.0]
    assert histogram([0.0], "gap") == ""


def test_without_the_drawing_library_the_tables_are_left(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    text = results["pruned"]._repr_html_()
    assert "<svg" not in text
    assert "<table>" in text
