"""The how-to pages' code runs and prints what they say; the reference names what is there."""

import copy
import functools
import re
import sys
from pathlib import Path

import pytest
import torch

import prunus
from doc_pages import alike, carry_out, fences

DOCS = Path(__file__).parent.parent / "docs"
TOUR = "start/quick_tour"
PAGES = sorted(
    str(path.relative_to(DOCS).with_suffix(""))
    for path in DOCS.glob("how_to/*.md")
    if "```python\n" in path.read_text()
)


@functools.cache
def toured() -> dict:
    names: dict = {}
    with torch.random.fork_rng(devices=[]):
        carry_out(DOCS / f"{TOUR}.md", names)
    return names


@pytest.fixture
def tour():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    pytest.importorskip("altair", reason="the tour writes a page")
    names = toured()
    kept = {key: names[key] for key in ("prunus", "torch", "x", "y", "accuracy")}
    kept |= {"nn": torch.nn}
    return kept | {"net": copy.deepcopy(names["net"])} | {
        "optimizer": torch.optim.Adam(names["net"].parameters())
    }  # fmt: skip


def test_the_tour_begins_as_the_readme_does():
    own, readme = (fences(path)[0] for path in (DOCS / f"{TOUR}.md", DOCS.parent / "README.md"))
    assert own == readme


def test_the_tour_runs_and_prints_what_it_says(tour):
    assert tour["net"](tour["x"][:2]).shape == (2, 10)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_and_prints_what_it_says(page, tour):
    with torch.random.fork_rng(devices=[]):
        carry_out(DOCS / f"{page}.md", tour)


def test_other_words_and_far_numbers_are_noticed():
    alike("a 1.00 b", "a 1.1 b")
    with pytest.raises(AssertionError):
        alike("a 1.0 b", "a 1.0 c")
    with pytest.raises(AssertionError):
        alike("a 1.0 b", "a 1.5 b")
    with pytest.raises(AssertionError):
        alike("10 channels", "11 channels")


def test_every_page_is_in_a_table_of_contents():
    listed = set(re.findall(r"(?m)^[\w/]+$", (DOCS / "index.md").read_text()))
    there = {
        str(path.relative_to(DOCS).with_suffix(""))
        for path in DOCS.rglob("*.md")
        if path.relative_to(DOCS).parts[0] not in ("_build", "gallery", "reference")
    }
    assert there - {"index"} <= listed
    assert {page for page in listed if not page.startswith(("gallery", "reference"))} <= there


@pytest.fixture
def reference(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import _reference

    yield _reference
    sys.modules.pop("_reference", None)


def test_the_reference_has_every_public_name(reference):
    text = reference.api_page()
    for name in prunus._PLACES:
        assert f"### {name}\n" in text
        assert f".{name}\n" in text


def test_the_reference_has_every_command_and_option(reference):
    from typer.main import get_command

    from prunus.cli.app import app

    text = reference.cli_page()
    for name, command in get_command(app).commands.items():
        assert f"## `prunus {name}`" in text
        for option in getattr(command, "params", []):
            assert all(flag in text for flag in option.opts if flag.startswith("--"))


def test_every_part_of_a_recipe_is_in_the_reference(reference):
    from prunus.scores import SCORES
    from prunus.selection import SELECTIONS

    text = reference.parts_page()
    for entry in (*SCORES.values(), *SELECTIONS.values()):
        assert f".{entry.__name__}\n" in text


def test_reference_pages_are_written_once(reference, tmp_path):
    written = reference.write_reference(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in written}
    assert {path: path.stat().st_mtime_ns for path in reference.write_reference(tmp_path)} == times
