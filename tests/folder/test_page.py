"""The page of a pruned folder says of every kind of recipe what became of the tensors."""

from dataclasses import replace

import pytest

import prunus
from prunus.folder.account import read_account
from prunus.report.folder import folder_page, folder_rows


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wanda", "Zeros in dense tensors save no time."),
        ("importance-node+ls", "The network is smaller."),
        ("block-cosine", "The network is smaller."),
        ("reap", "The network is smaller."),
    ],
)
def test_words_follow_the_recipes_units(source, tmp_path, name, words):
    found = prunus.prune_folder(source, tmp_path / "out", "magnitude", 0.5, progress=False)
    result = replace(found, recipe=repr(prunus.recipes[name]))
    page = result.report(tmp_path / "page.html").read_text()
    assert words in page


def test_errors_are_told_in_percent_of_what_the_layers_give(source, ids, tmp_path):
    found = prunus.prune_folder(
        source, tmp_path / "out", "sparsegpt", 0.5, data=ids, progress=False
    )
    again, _ = read_account(tmp_path / "out")
    assert all(own.relative_error == own.error / own.power > 0 for own in found.layers.values())
    assert again.layers == found.layers
    row = folder_rows(found)[0]
    own = [layer for name, layer in found.layers.items() if name.endswith("self_attn.q_proj")]
    assert row["layers"].endswith("self_attn.q_proj")
    assert row["relative"] == pytest.approx(sum(o.error for o in own) / sum(o.power for o in own))
    page = found.report(tmp_path / "page.html", made="2026-01-02").read_text()
    assert "output error (% of the output)" in page
    assert f"{100 * row['relative']:.3g} %" in page
    assert f"{found.tokens:,} tokens calibrated" in page[page.index("<footer>") :]
    assert "2026-01-02" in page


def test_an_account_of_an_older_version_has_no_percentages(source, ids, tmp_path):
    found = prunus.prune_folder(
        source, tmp_path / "out", "sparsegpt", 0.5, data=ids, progress=False
    )
    older = {name: replace(own, power=None) for name, own in found.layers.items()}
    page = folder_page(replace(found, layers=older))
    assert "mean squared output error" in page
    assert "% of the output" not in page
