"""How long is left: said before the start by the formula, and anew from what blocks took."""

import logging

from prunus.folder import BlockResult, prune_folder
from prunus.folder import loop as module
from prunus.folder.loop import left


def test_the_first_block_counts_until_there_is_another():
    blocks = [BlockResult(layers={}, seconds=s) for s in (60.0, 10.0, 14.0)]
    assert left(blocks[:1], 3) == "about 3 min left"
    assert left(blocks[:2], 3) == "about 30 s left"
    assert left(blocks, 600) == "about 2 h left"
    assert left(blocks, 0) == "about 0 s left"


def test_bar_and_log_say_it(source, ids, tmp_path, monkeypatch, caplog):
    said = []

    class Bar:
        def __init__(self, words, total, *, progress):
            said.append(words)

        def __enter__(self):
            return lambda steps, words=None: said.append(words)

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(module, "progress_bar", Bar)
    with caplog.at_level(logging.INFO, logger="prunus"):
        result = prune_folder(source, tmp_path / "out", "wanda", 0.5, data=ids)
    before = f"pruning blocks by wanda ({result.needs.short()})"
    assert said[0] == before
    assert said[1] is None
    assert [words.rpartition("(")[2][:5] for words in said[2:]] == ["about"] * 3
    assert all(words.endswith(" left)") for words in said[2:])
    lines = [record.getMessage() for record in caplog.records if record.name == "prunus"]
    assert lines[0] == f"pruning blocks by wanda: {result.needs.summary()}"
    assert [line.partition(" took ")[0] for line in lines[1:]] == [
        f"block {i} of 3" for i in range(3)
    ]
