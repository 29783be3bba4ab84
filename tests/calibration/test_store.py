"""Calibrations as files, as sums, and as mappings."""

import hashlib
import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models import build
from prunus.calibration import STATISTICS as STATISTICS_KNOWN
from prunus.calibration import Calibration, calibrate
from prunus.calibration.doubted import _shape

STATISTICS = ("gram", "mean", "max", "zeros", "grad")


def exactly(text):
    return f"^{re.escape(text)}$"


def found(name="cnn-relu"):
    model, x = build(name)
    return model, x, calibrate(model, (x, torch.arange(4) % 4), STATISTICS)


def test_save_and_load(tmp_path):
    model, x, calibration = found()
    again = Calibration.load(calibration.save(tmp_path / "c"))
    assert repr(again) == repr(calibration)
    assert again.refused == calibration.refused
    for name, layer in calibration.items():
        own = again[name]
        assert (own.groups, own.taps, own.samples) == (layer.groups, layer.taps, layer.samples)
        for key in ("weight", "bias", *STATISTICS):
            ours, theirs = getattr(own, key), getattr(layer, key)
            assert (ours is None) == (theirs is None)
            assert ours is None or torch.equal(ours, theirs)
    # resumed: more data, added to what was saved
    more = calibrate(model, (x + 1, torch.arange(4) % 4), STATISTICS)
    resumed, whole = again + more, calibration + more
    assert resumed.fingerprint == whole.fingerprint
    assert torch.equal(resumed["fc1"].gram, whole["fc1"].gram)
    assert [g.name for g in resumed.groups] == [g.name for g in whole.groups]


def test_what_a_file_must_hold_is_what_is_collected():
    """The shape and the count that a reader asks for, of every statistic of a grouped layer."""
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    x = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    names = [name for name, kind in STATISTICS_KNOWN.items() if kind().reads.source != "pair"]
    calibration = calibrate(model, (x, torch.arange(4) % 3), names)
    seen = {*calibration._sums["0"].totals, *calibration._group_sums["0"].totals}
    assert seen == {*names} - {"diag"}  # which the Gram matrix covers
    (group,) = calibration.groups
    layer = calibration["0"]
    for sums, sizes in [
        (calibration._sums["0"], (*layer.weight.shape, layer.groups)),
        (calibration._group_sums["0"], (group.size, group.size, 1)),
    ]:
        for key, value in sums.totals.items():
            statistic = STATISTICS_KNOWN[key]()
            assert statistic.numbers(*sizes) == value.numel()
            if key != "share":  # which looks at the weights themselves
                assert _shape(statistic, sizes) == tuple(value.shape), key


def test_groups_of_a_loaded_calibration(tmp_path):
    model, x, calibration = found()
    again = Calibration.load(calibration.save(tmp_path))
    with pytest.raises(
        ValueError,
        match=exactly(
            "A calibration loaded from a folder has no model and no example to trace. Calibrate "
            "again, or use a recipe for edges."
        ),
    ):
        again.groups  # noqa: B018
    traced = again.with_example(model, x)
    assert [g.name for g in traced.groups] == [g.name for g in calibration.groups]


def test_saving_twice_replaces(tmp_path):
    model, x, calibration = found()
    calibration.save(tmp_path)
    other = calibrate(model, x)
    other.save(tmp_path)
    assert Calibration.load(tmp_path).fingerprint == other.fingerprint


@pytest.mark.parametrize("call", [1, 2])
def test_an_interrupted_save_leaves_the_old_calibration(tmp_path, monkeypatch, call):
    """Between its two files too: they are named by content, and the account comes last."""
    model, x, calibration = found()
    calibration.save(tmp_path)
    replace, calls = os.replace, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == call:
            raise KeyboardInterrupt
        replace(*args)

    before = sorted(path.name for path in tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            calibrate(model, x).save(tmp_path)
    assert Calibration.load(tmp_path).fingerprint == calibration.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def broken(tmp_path, change):
    folder = found("mlp-relu")[2].save(tmp_path / "c")
    change(folder / "calibration.json", next(folder.glob("statistics-*")))
    return folder


def test_bad_folders(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=exactly(f"No calibration.json in {tmp_path}. Give a folder that prunus saved."),
    ):
        Calibration.load(tmp_path)


def rewrite(**changes):
    def change(facts, tensors):
        kept = json.loads(facts.read_text()) | changes
        facts.write_text(json.dumps({k: v for k, v in kept.items() if v is not None}))

    return change


CASES = {
    "no tensors": (
        lambda facts, tensors: tensors.unlink(),
        ".safetensors is missing. Give a folder that prunus saved whole.",
    ),
    "truncated tensors": (
        lambda facts, tensors: tensors.write_bytes(tensors.read_bytes()[:-9]),
        ".safetensors is truncated or was changed: its hash is not the one in "
        "calibration.json. Save it again.",
    ),
    "truncated facts": (
        lambda facts, tensors: facts.write_text(facts.read_text()[:40]),
        "calibration.json is truncated or no JSON (",
    ),
    "foreign": (
        rewrite(kind="pruned"),
        "calibration.json is no calibration that prunus saved. Give another folder.",
    ),
    "no format": (
        rewrite(format=None),
        "calibration.json is no calibration that prunus saved. Give another folder.",
    ),
    "newer": (
        rewrite(format=99),
        "calibration.json has format 99, newer than 3, which this version reads. Upgrade prunus.",
    ),
    "no layers": (rewrite(layers=None), "calibration.json: `layers` is missing."),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_files(tmp_path, case):
    change, message = CASES[case]
    folder = broken(tmp_path, change)
    error = FileNotFoundError if case == "no tensors" else ValueError
    with pytest.raises(error, match=re.escape(message) + ("$" if message[-1] == "." else "")):
        Calibration.load(folder)


def test_only_like_calibrations_merge():
    model, x, calibration = found("mlp-relu")
    with pytest.raises(
        ValueError,
        match=r"^Only calibrations with the same statistics can be merged, got \['grad', 'gram', "
        r"'max', 'mean', 'zeros'\] and \['gram'\]\.$",
    ):
        calibration + calibrate(model, x, ("gram",))
    with pytest.raises(
        ValueError,
        match=r"^Only calibrations of the same layers can be merged, got \[.*\] and "
        r"\['layers\.0'\]\.$",
    ):
        calibration + calibrate(model, x, layers="layers.0")
    other = build("mlp-relu", seed=1)[0]
    with pytest.raises(
        ValueError,
        match=exactly(
            "Layer 'layers.0' has other weights in the two calibrations. Merge calibrations of one "
            "and the same model."
        ),
    ):
        calibration + calibrate(other, x)
    with pytest.raises(TypeError):
        calibration + 1


def test_mapping():
    _, _, calibration = found("mlp-relu")
    assert list(calibration) == ["layers.0", "layers.2", "layers.4"]
    assert len(calibration) == 3
    assert "layers.1" not in calibration
    with pytest.raises(KeyError, match=r"Unknown layer 'layers\.1'\. Did you mean"):
        calibration["layers.1"]
    with pytest.raises(
        ValueError,
        match=exactly(
            "Layer 'layers.0' has no statistic 'cross', which this method needs. Pass data, or "
            "calibrate with statistics=('cross',)."
        ),
    ):
        calibration["layers.0"].require("gram", "diag", "cross")  # the Gram matrix has `diag`
    with pytest.raises(ValueError, match="has no statistics `diag` or `gram`, which this method"):
        calibrate(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2), ("mean",))["0"].power()


def test_a_folder_of_version_0_1_loads_and_merges(tmp_path):
    """Its format: one count per layer, whole Gram sums, no rows and no statistics of classes."""
    model, x, calibration = found("mixed")
    folder = calibration.save(tmp_path)
    facts = json.loads((folder / "calibration.json").read_text())
    tensors = load_file(next(folder.glob("statistics-*")))
    del tensors["||rows"]
    for name, layer in calibration.items():
        gram = layer.gram if layer.groups > 1 else layer.gram[None]
        tensors[f"{name}|gram"] = gram * layer.samples
        entry = facts["layers"][name]
        entry["count"] = entry.pop("counts")["inputs"]
    del facts["groups"], facts["options"], facts["files"]
    next(folder.glob("statistics-*")).unlink()
    save_file(tensors, folder / "statistics.safetensors")
    digest = hashlib.sha256((folder / "statistics.safetensors").read_bytes()).hexdigest()
    (folder / "calibration.json").write_text(json.dumps(facts | {"format": 1, "hash": digest}))
    old = Calibration.load(folder)
    assert old.statistics == STATISTICS
    assert old.rows is None
    merged, expected = old + calibration, calibration + calibration
    for name, layer in calibration.items():
        assert (old[name].samples, old[name].groups) == (layer.samples, layer.groups)
        for key in STATISTICS:
            torch.testing.assert_close(getattr(old[name], key), getattr(layer, key))
            torch.testing.assert_close(getattr(merged[name], key), getattr(expected[name], key))
    # The next one saved there takes the old file away, and no file of anybody else.
    (folder / "statistics-mine.safetensors").write_text("of the user")
    again = calibration.save(folder)
    names = {re.sub("-[0-9a-f]{12}", "", path.name) for path in again.iterdir()}
    assert names == {
        "calibration.json", "statistics.safetensors", "statistics-mine.safetensors",
    }  # fmt: skip
    assert not (folder / "statistics.safetensors").exists()
    assert Calibration.load(folder).fingerprint == calibration.fingerprint


def test_unequal_parts_add_up_to_the_whole():
    """Means are over all vectors, whichever part had more of them."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4)).double(), torch.randn(100, 6, dtype=torch.float64)
    whole = calibrate(model, x)["0"]
    for parts in ((30, 70), (70, 30), (1, 99)):
        one, other = torch.split(x, parts)
        found = (calibrate(model, one) + calibrate(model, other))["0"]
        assert found.samples == 100
        torch.testing.assert_close(found.gram, whole.gram)
        torch.testing.assert_close(found.mean, whole.mean)
