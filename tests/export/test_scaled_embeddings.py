"""A narrower stream in classes that scale embeddings by the root of the width, saved and loaded."""

import pytest

import prunus
from prunus import Recipe
from prunus.ambient import quiet
from prunus.coupling import couple
from prunus.granularity import Node
from prunus.scores import Magnitude
from real_checks import compared
from real_networks import NETWORKS, decoder


@pytest.mark.parametrize(("kind", "tied"), [("Gemma", False), ("Gemma2", True)])
def test_a_narrower_gemma_comes_back_by_from_pretrained(kind, tied, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from real_networks import build

    more = {"query_pre_attn_scalar": 8} if kind == "Gemma2" else {}
    net = decoder(kind, head_dim=8, tie_word_embeddings=tied, **more)
    monkeypatch.setitem(NETWORKS, "scaled", net)
    model, examples = build("scaled")
    (stream,) = [g for g in couple(model, examples[0]).groups if g.embeddings]
    recipe = Recipe(granularity=Node(), score=Magnitude(reduction="l2"))
    density = {stream.name: 0.75, "*": 1.0}
    with quiet():
        pruned = prunus.prune(model, recipe, density, data=examples[0], layers="*")
        found = pruned.save_hf(tmp_path / "net", example=examples[0])
        again = type(model).from_pretrained(tmp_path / "net").eval()
    assert "take the root of what it lost" in found.notes[0]
    assert again.config.hidden_size == 24
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    assert max(check.error for check in found.checked) <= 1e-6
    for batch in examples:
        assert compared(pruned.model, again, batch) <= 1e-5
