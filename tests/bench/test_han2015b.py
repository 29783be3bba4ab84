"""Deep Compression: the kept account is that of its records, and how its settings are chosen."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prunus.bench.data.sets import Dataset
from prunus.bench.data.tasks import TASKS
from prunus.bench.grid.sweep import finished
from prunus.bench.statistics.intervals import paired
from prunus.reproduce import han2015b_choice, save
from prunus.reproduce.han2015b_choice import candidates, smallest
from prunus.reproduce.han2015b_lenet import account, grids
from prunus.reproduce.han2015b_tasks import HELD, lenet300, part
from prunus.reproduce.harness import with_interval

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SHOWN = ("| LeNet-", "| ResNet-", "| CNN,")  # networks in the page's table
# Points allowed on held-out images, and what the test images show of what is chosen so.
CHOICES = {0.0: "106× at 0.07 ± 0.10", 0.1: "111× at 0.20 ± 0.13"}
TRIED = (han2015b_choice.decay_01, han2015b_choice.decay_05, han2015b_choice.decay_10)


@pytest.mark.parametrize(("scale", "folder"), [("full", "lenet"), ("small", "digits")])
def test_the_kept_account_comes_from_the_kept_records(scale, folder, tmp_path):
    pytest.importorskip("altair", reason="figures are the extra `report`")
    own = RESULTS / f"han2015b_{folder}"
    records = [json.loads(x) for x in (own / "records.jsonl").read_text().splitlines()]
    found = finished(own)
    assert len(found) == len(records)
    save(account(scale, [found[r["id"]] for r in records]), tmp_path)
    for kind in ("json", "md"):
        name = f"han2015b-lenet.{kind}"
        assert (tmp_path / name).read_text() == (own / name).read_text()
    tasks = {grid["tasks"][0] for grid in grids(scale)}
    assert {r["task"] for r in records} <= tasks


def record(like, task, budget, seed, before, **ways):
    """With (bytes, held-out error) for each way."""
    files = {
        way: {"bytes": size, "dense_bytes": 1000, "scores": {"test_error": error}}
        for way, (size, error) in ways.items()
    }
    return replace(
        like, task=task, budget=budget, seed=seed, before={"test_error": before},
        extra={"compressed": files},
    )  # fmt: skip


def test_the_smallest_file_that_errs_no_more_is_chosen():
    like = next(iter(finished(RESULTS / "han2015b_digits").values()))
    records = [
        record(like, "a", "thin", 0, 0.02, four=(10, 0.025), eight=(20, 0.019)),
        record(like, "a", "thin", 1, 0.03, four=(12, 0.027), eight=(22, 0.031)),
        record(like, "b", "thin", 0, 0.02, four=(9, 0.03), eight=(40, 0.01)),
        record(like, "a", "thick", 0, 0.02, four=(15, 0.0201), eight=(50, 0.02)),
    ]
    found = candidates(records)
    assert [c.bytes for c in found] == [9, 11, 15, 21, 40, 50]
    assert [c.networks for c in found] == [1, 2, 1, 2, 1, 1]
    assert [c.excess for c in found] == pytest.approx([1.0, 0.1, 0.01, 0.0, -1.0, 0.0])
    assert found[1].ratio == pytest.approx(1000 / 11)
    chosen = smallest(records, 0.0)
    assert (chosen.task, chosen.budget, chosen.way) == ("a", "thin", "eight")
    assert smallest(records, 0.2).way == "four"
    with pytest.raises(ValueError, match=r"at most -2 points more than dense\. Ask for more"):
        smallest(records, -2)


def test_what_is_chosen_by_is_neither_trained_on_nor_tested_on(monkeypatch):
    x = torch.arange(HELD + 700).reshape(-1, 1)
    whole = Dataset(
        name="places", x_train=x, y_train=x.flatten(), x_test=-x[:9] - 1, y_test=x[:9].flatten(),
        fingerprint="",
    )  # fmt: skip
    base = replace(TASKS["mnist-lenet300"], data=lambda *, data_dir: whole)
    monkeypatch.setitem(TASKS, "mnist-lenet300", base)
    found = han2015b_choice.decay_05.data(data_dir=None)
    final = part(HELD, "train", base, data_dir=None)
    assert torch.equal(found.x_train, final.x_train)
    assert torch.equal(found.x_test, part(HELD, "held", base, data_dir=None).x_train)
    assert torch.equal(torch.cat([found.y_train, found.y_test]), whole.y_train)
    assert torch.equal(final.x_test, whole.x_test)
    assert len({own.definition for own in (lenet300, *TRIED)}) == 1 + len(TRIED)


def test_the_page_says_what_was_recorded_and_chosen():
    page = (ROOT / "docs" / "compress.md").read_text()
    records = [*finished(RESULTS / "han2015b_choice").values()]
    at = [r for r in records if r.task.endswith("decay_05")]
    assert len(at) == len({(r.budget, r.seed) for r in at}) == 4 * 4
    rows = 0
    first = max((r.budget for r in at), key=lambda text: ast.literal_eval(text)["fc1"])
    for own in candidates(at):
        each = [
            100 * (r.extra["compressed"][own.way]["scores"]["test_error"] - r.before["test_error"])
            for r in sorted(at, key=lambda r: r.seed)
            if r.budget == own.budget
        ]
        densities = ", ".join(f"{share:g}" for share in ast.literal_eval(own.budget).values())
        cells = [densities, own.way, f"{own.ratio:.1f}×", ", ".join(map(with_interval, each)),
                 with_interval(own.excess)]  # fmt: skip
        assert f"| {' | '.join(cells)} |" in page
        rows += 1
    assert rows == 4 * 4
    means = {
        c.task.rpartition("_")[2]: (c.networks, with_interval(c.excess).replace("-", "−"))
        for c in candidates(records)
        if c.way == "8 tuned" and c.budget == first
    }
    assert [means[decay][0] for decay in ("01", "10", "05")] == [2, 2, 4]
    said = (
        f"0.1 errs {means['01'][1]} points above dense, of 1 {means['10'][1]} (two networks each)"
        f", of 0.5 {means['05'][1]}."
    )
    assert said in " ".join(page.split())
    kept = [
        x
        for folder in ("lenet", "digits")
        for x in (RESULTS / f"han2015b_{folder}" / "han2015b-lenet.md").read_text().splitlines()
        if x.startswith(SHOWN)
    ]
    assert [x for x in page.splitlines() if x.startswith(SHOWN)] == kept
    assert len(kept) > 20


def test_the_setting_at_a_tenth_of_a_point_is_what_held_out_images_choose():
    """The rule picks it, the reproduction has it on five networks, the page says what it took."""
    page = (ROOT / "docs" / "compress.md").read_text()
    at = [r for r in finished(RESULTS / "han2015b_choice").values() if r.task.endswith("decay_05")]
    for above, said in CHOICES.items():
        chosen = smallest(at, above)
        assert chosen.networks == 4
        own = [
            r for r in finished(RESULTS / "han2015b_lenet").values()
            if r.budget == chosen.budget and chosen.way in r.extra["compressed"]
        ]  # fmt: skip
        assert sorted(r.seed for r in own) == [0, 1, 2, 3, 4]
        files = [r.extra["compressed"][chosen.way] for r in own]
        found = paired(
            {r.seed: 100 * f["scores"]["test_error"] for r, f in zip(own, files, strict=True)},
            {r.seed: 100 * r.before["test_error"] for r in own},
        )
        size = sum(f["bytes"] for f in files)
        ratio = sum(f["dense_bytes"] for f in files) / size
        interval = with_interval(found["mean"], found["low"], found["high"])
        assert f"{ratio:.0f}× at {interval.replace('-', '−')}" == said
        assert said in page
