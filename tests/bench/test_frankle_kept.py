"""The kept accounts of the lottery tickets, and what the page says, are those of the records."""

import json
import re
from pathlib import Path

import pytest

from prunus.bench.statistics.intervals import holm, paired
from prunus.reproduce import save
from prunus.reproduce.frankle2019_mnist import CLAIMS, FULL, SMALL, account, claims, runs_of

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "benchmarks" / "results" / "frankle2019_mnist"
PAGE = " ".join((ROOT / "docs" / "prune_while_you_train.md").read_text().split())


def kept(protocol, **options):
    return runs_of(protocol, 0, KEPT / "records", None, progress=False, **options)


def test_the_kept_account_comes_from_the_kept_records(tmp_path):
    pytest.importorskip("altair", reason="figures are the extra `report`")
    save(account(SMALL, kept(SMALL)), tmp_path)
    save(account(FULL, kept(FULL, claims_alone=True), claims_alone=True), tmp_path)
    for stem in ("frankle2019-mnist", "frankle2019-claims"):
        for kind in ("json", "md"):
            name = f"{stem}.{kind}"
            assert (tmp_path / name).read_text() == (KEPT / name).read_text()
    assert len(json.loads((KEPT / "frankle2019-mnist.json").read_text())["rows"]) == 30


def test_the_page_says_of_mnist_what_the_records_say():
    """Every claim's number with its interval, how many hold, and after Holm's correction."""
    rows = kept(FULL, claims_alone=True)
    found = claims(rows)
    assert len(found) == 8
    for claim in found:
        mean, low, high = re.findall(r"[-+][0-9.]+", claim["measured"])
        said = f"{mean} ({low} to {high})".replace("-", "−")
        assert said in PAGE, claim
    verdicts = [claim["verdict"] for claim in found]
    counts = [verdicts.count(v) for v in ("reproduced", "not told apart", "contradicted")]
    words = dict(enumerate(("none", "one", "two", "three", "four", "five", "six", "seven")))
    assert f"{words[counts[0]]} of eight published claims are reproduced, none is contra" in PAGE
    assert counts[2] == 0
    adjusted = holm([
        paired(of(rows, one, n, key), shifted(of(rows, other, n, key), bound))["p"]
        for _, _, key, one, other, n, bound, _ in CLAIMS
    ])  # fmt: skip
    told = [p <= 0.05 for p in adjusted]
    assert told == [False, *(v == "reproduced" for v in verdicts[1:])]
    assert f"correction over the eight, {words[sum(told)]} stay below 5 %; sooner" in PAGE
    assert f"sooner than dense has {adjusted[0]:.3f}." in PAGE


def of(rows, role, n, key):
    at = 0 if role == "dense" else n
    return {r["seed"]: r[key] for r in rows if (r["role"], r["n"]) == (role, at)}


def shifted(values, bound):
    return {seed: value + bound for seed, value in values.items()}
