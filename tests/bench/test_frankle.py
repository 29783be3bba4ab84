"""Lottery tickets by the paper's protocol, made small: rounds, controls, records, verdicts."""

import json
from dataclasses import replace

import pytest

from prunus.reproduce import REPRODUCTIONS, frankle2019_mnist, reproduction, save
from prunus.reproduce.frankle2019_mnist import (
    FULL,
    SMALL,
    account,
    claims,
    judged,
    kept_rows,
    runs_of,
    verdict,
)  # fmt: skip
from prunus.reproduce.frankle2019_trainings import ROLES, densities
from prunus.reproduce.harness import Harness

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
TINY = replace(SMALL, epochs=1, check=5, exponents=(7, 15), reported=(7, 15), seeds=2, early=0.2)
TRAININGS = 1 + 3 * 2 + 4 * 2


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    return folder, runs_of(TINY, 0, folder, None, False)


def test_every_role_is_trained_at_every_density(made):
    _, rows = made
    assert len(rows) == 2 * (1 + len(ROLES) * 2 + 2)
    for seed in (0, 1):
        own = [r for r in rows if r["seed"] == seed]
        for n in (7, 15):
            found = {r["role"]: r for r in own if r["n"] == n}
            assert set(found) == {*ROLES, "barrier"}
            total, out = 64 * 300 + 300 * 100, 100 * 10
            kept = 0.8**n * total + 0.9**n * out
            for row in found.values():
                assert row["density"] == pytest.approx(kept / (total + out), abs=3e-5)
        (dense,) = [r for r in own if r["role"] == "dense"]
        assert dense["stop"] in (5, 10, 15, 20)
        assert 0 < dense["error"] <= 100


def test_kept_records_are_read_and_others_are_not(made, monkeypatch):
    folder, rows = made
    monkeypatch.setattr(frankle2019_mnist, "Trainings", None)  # nothing is trained again
    assert runs_of(TINY, 0, folder, None, False) == rows
    assert {json.loads(p.read_text())["seed"] for p in folder.iterdir()} == {0, 1}
    with pytest.raises(TypeError):  # another protocol has no records
        runs_of(replace(TINY, epochs=2), 0, folder, None, False)


def same(rows):
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


def test_a_run_goes_on_where_it_stopped_with_what_claims_need_first(made, tmp_path, monkeypatch):
    _, rows = made
    given = frankle2019_mnist.Trainings.row
    order = []

    def stops(self, role, n):
        if len(order) == 11:
            raise KeyboardInterrupt
        order.append((role, n))
        return given(self, role, n)

    monkeypatch.setattr(frankle2019_mnist.Trainings, "row", stops)
    with pytest.raises(KeyboardInterrupt):
        runs_of(TINY, 0, tmp_path, None, False)
    judged = {("dense", 0), ("ticket", 7), ("ticket", 15), ("re-initialised", 7), ("one shot", 7)}
    judged |= {("one shot", 15)}
    assert set(order[:6]) == {*order[6:], ("re-initialised", 7)} == judged
    monkeypatch.setattr(frankle2019_mnist.Trainings, "row", given)
    assert {*kept_rows(TINY, 0, tmp_path)} >= judged
    again = runs_of(TINY, 0, tmp_path, None, False)
    assert same(again) == same(rows)


def test_the_account_is_saved_whole(made, tmp_path):
    pytest.importorskip("altair", reason="figures are the extra `report`")
    result = account(TINY, made[1])
    save(result, tmp_path)
    assert len(result.rows) == 2 * len(ROLES)
    assert len({tuple(row) for row in result.rows}) == 1
    text = (tmp_path / "frankle2019-mnist.md").read_text()
    assert "| re-initialised |" in text
    assert "not told apart" in text or "reproduced" in text
    assert {row["verdict"] for row in claims(made[1])} <= {
        "reproduced", "not told apart", "contradicted",
    }  # fmt: skip


def test_claims_alone_take_the_trainings_that_they_compare(made, tmp_path):
    _, rows = made
    few = runs_of(TINY, 0, tmp_path, None, False, claims_alone=True)
    assert {(r["role"], r["n"]) for r in few} == judged(TINY)
    assert same(few) == same([r for r in rows if (r["role"], r["n"]) in judged(TINY)])
    assert same(runs_of(TINY, 0, made[0], None, False, claims_alone=True)) == same(few)
    assert claims(few) == claims(rows)
    assert kept_rows(TINY, 1, tmp_path).keys() == judged(TINY)  # where the whole goes on from
    found = account(TINY, few, claims_alone=True)
    assert found.name == "frankle2019-claims"
    assert {line["role"] for line in found.rows} == {"ticket", "one shot", "re-initialised"}
    assert any("Only what these claims compare" in line for line in found.conditions)


def test_at_full_scale_every_claim_gets_a_verdict_from_what_is_trained_for_it():
    rows = [
        {
            "seed": seed, "role": role, "n": n, "density": 0.8**n,
            "error": 2.0 - n / 20 + 0.1 * (seed % 2) * (role == "ticket"),
            "stop": 900 - 10 * n - seed * (role == "ticket"),
        }
        for seed in range(FULL.seeds)
        for role, n in judged(FULL)
    ]  # fmt: skip
    assert len(rows) == 5 * 9
    assert len(claims(rows)) == len(frankle2019_mnist.CLAIMS) == 8
    for role in {r["role"] for r in rows} - {"dense"}:
        assert len(claims([r for r in rows if r["role"] != role])) < 8


def claimed(gap):
    """Rows in which the ticket's error at 13.5 % lies `gap` points from dense, seed by seed."""
    rows = []
    for seed, extra in enumerate(gap):
        own = {"seed": seed, "stop": 10, "last_error": 0.0}
        rows.append({**own, "role": "dense", "n": 0, "error": 2.0, "density": 1.0})
        rows.append({**own, "role": "ticket", "n": 9, "error": 2.0 + extra, "density": 0.135})
    return claims(rows)


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        ([-0.4, -0.3, -0.35], "reproduced"),
        ([0.4, 0.3, 0.35], "contradicted"),
        ([-0.4, 0.3, 0.1], "not told apart"),
        ([-0.4], "not told apart"),
    ],
)
def test_verdicts_follow_the_interval(gap, said):
    (row,) = claimed(gap)
    assert row["claim"].startswith("a ticket at 13.5 % is more accurate")
    assert row["verdict"] == said
    assert verdict({"low": 0.1, "high": 0.2, "mean": 0.15, "p": 0.0}, 0.3) == "reproduced"
    assert verdict({"low": None, "high": None, "mean": -1.0, "p": 0.03}, 0.0) == "reproduced"
    assert verdict({"low": None, "high": None, "mean": 1.0, "p": 0.03}, 0.0) == "contradicted"


def test_full_scale_takes_every_round_of_the_paper():
    assert FULL.exponents == tuple(range(1, 16))
    assert set(FULL.reported) <= set(FULL.exponents)
    assert densities(FULL, 1) == {"fc1": 0.8, "fc2": 0.8, "fc3": 0.9}
    assert REPRODUCTIONS["frankle2019-mnist"].resumes


@pytest.mark.parametrize("name", ["frankle2019-mnist", "frankle2019-claims"])
def test_workers_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name} runs in this process alone"):
        reproduction(name)(
            scale="small", seed=0, data_dir=None, progress=False, harness=Harness(workers=2)
        )
