"""The page of a pruned folder says of every kind of recipe what became of the tensors."""

from dataclasses import replace

import pytest

import prunus


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
