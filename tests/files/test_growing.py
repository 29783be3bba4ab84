"""Folders that grow aside over hours and get their name at the end."""

import os

import pytest

from prunus.files import growing


@pytest.mark.parametrize("name", ["net", "n" * 251, "n" * 255, "ü" * 127])
def test_names_of_any_length_are_gone_on_with(tmp_path, name):
    target = tmp_path / name
    with growing(target) as made:
        (made.folder / "a").write_text("1")
    assert not target.exists()
    with growing(target) as made:
        assert (made.folder / "a").read_text() == "1"
        with pytest.raises(TimeoutError, match="Another process"), growing(target):
            pass
        assert made.finish() == target
    assert os.listdir(tmp_path) == [name]
    assert os.listdir(target) == ["a"]
