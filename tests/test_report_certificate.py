"""The certificate on a page and as JSON: what it holds, and how it looks in a real browser."""

import functools
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import prunus
from prunus.report.certificate import (
    certificate_page,
    gap_bins,
    gap_histogram,
    gap_marks,
    write_certificate,
)
from prunus.report.pruning import pruning_page
from prunus.theory.gap import Certificate, InSampleWarning, words
from prunus.theory.gap.statement import SHOWN, Statement

pytestmark = pytest.mark.filterwarnings("ignore::prunus.theory.gap.VacuousWarning")


@functools.cache
def pruned():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    result = prunus.prune(model, "magnitude", 0.6, data=x[:100])
    return result, result.certify(x[100:])


@functools.cache
def unbounded():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm, self.out = nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 3)

        def forward(self, x):
            return self.out(self.norm(self.fc(x)))

    torch.manual_seed(0)
    model, x = Normed().eval(), torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    return prunus.prune(model, "magnitude", 0.6, data=x[:50]).certify(x[50:])


@pytest.mark.parametrize("certificate", [lambda: pruned()[1], unbounded])
def test_json_round_trip(certificate):
    one = certificate()
    two = Certificate.from_json(one.to_json())
    assert two.to_json() == one.to_json()
    assert two.statements == one.statements
    assert two.held_out == one.held_out
    assert two.value == one.value
    assert two.ledger == one.ledger
    assert dict(two.per_layer) == {k: dict(v) for k, v in one.per_layer.items()}
    assert two.gaps == one.gaps
    assert two.summary() == one.summary()
    json.loads(one.to_json(), parse_constant=pytest.fail)  # no NaN, no Infinity


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"statements": [{}]}', "null"])
def test_what_is_no_certificate(text):
    with pytest.raises(ValueError, match=r"^the text is no certificate as `to_json` writes it"):
        Certificate.from_json(text)


def test_the_page_says_everything_in_words(tmp_path):
    result, certificate = pruned()
    page = result.report(tmp_path / "page.html", certificate=certificate).read_text()
    text = page.partition("<main>")[2].partition("</main>")[0]
    for statement in (*certificate.statements, *certificate.held_out):
        for event, _ in statement.ledger:
            assert event in text.replace("&#x27;", "'")
        for assumption in statement.assumptions:
            assert assumption in text
        if statement.vacuous:
            assert f"<strong>Vacuous</strong>: the bound on the {SHOWN[statement.kind]}" in text
            assert statement.reason in text
    assert 'id="chart-contribution"' in text
    assert 'id="chart-gaps"' in text
    assert "On fresh data, at most <strong>" in text
    assert "with probability at least 95%" in text
    assert "What is guaranteed" not in pruning_page(result)
    alone = write_certificate(unbounded(), tmp_path / "alone.html").read_text()
    assert "No finite bound over a ball of inputs is known for this network." in alone
    assert "no finite bound exists for this network" in alone
    assert "&#x27;norm&#x27; (LayerNorm)" in alone
    assert 'id="chart-contribution"' not in alone


def test_bounds_on_shares_are_rounded_up_and_told_in_percent():
    """4.005 % is at most 4.1 %, never 4.00 %."""
    _, certificate = pruned()
    [share] = [s for s in certificate.of("changed") if s.route == "Clopper-Pearson"]
    told = certificate_page(
        replace(certificate, held_out=(replace(share, value=0.04005, measured=0.02),))
    )
    text = told.partition("<main>")[2]
    assert "at most <strong>4.1 %</strong> of predictions change" in text
    assert "≤ 4.1 %" in text
    assert "4.0 %" not in text.replace("4.005", "")
    assert "which says nothing: see below" in text  # the ball's, whose bound is vacuous
    assert text.count("What is guaranteed") == 0  # the title says it


@pytest.mark.parametrize(
    ("delta", "said"),
    [
        (0.05, "95%"),
        (0.025, "97.5%"),
        (0.001, "99.9%"),
        (1e-7, "99.99999%"),
        (1e-17, "99.999999999999999%"),
    ],
)
def test_the_headline_is_the_best_that_holds_with_its_confidence(delta, said):
    """The least share of fresh data, the lowest quantile, never more confidence than 1 − δ."""
    _, one = pruned()
    kept = {"status": "RIG", "level": "held-out", "delta": delta, "route": "by hand"}
    best = [
        Statement(kind="changed", value=0.5, **kept),
        Statement(kind="changed", value=0.20001, **kept),
        Statement(kind="changed", value=0.1, **kept | {"level": "L3"}),  # of no fresh data
        Statement(kind="changed", value=1.0, **kept),
        Statement(kind="changed", value=0.0, vacuous=True, **kept),
        Statement(kind="quantile", value=math.inf, argument=0.2, **kept),
        Statement(kind="quantile", value=2.0, argument=0.9, **kept),
        Statement(kind="quantile", value=1.0, argument=0.5, **kept | {"delta": delta / 2}),
    ]
    balls = [
        Statement(kind="sup", status="RIG", level="L3", value=v, route="by hand")
        for v in (7.0, 3.0)
    ]
    share = "at most 20.1 % of predictions change"
    moves = "50 % of outputs move by less than 1"

    def headline(*statements):
        return words.headline(replace(one, statements=statements, held_out=(), radius=2.0))

    on = "on inputs like these:"
    assert headline(*best, *balls) == f"With {said} confidence each {on} {share}; {moves}."
    assert headline(*best[:5], *balls) == f"With {said} confidence {on} {share}."
    assert headline(*balls) == "No input in the ball of radius 2 moves the output by more than 3."
    assert headline(replace(balls[0], vacuous=True)).startswith("Nothing that is of use")
    seen = replace(best[0], measured=0.25, in_sample=True, status="PRED")
    assert headline(seen, *balls).startswith(
        "These data made the pruning, so that nothing they show is a guarantee: 25 % of"
    )


def test_in_sample_data_guarantee_nothing_on_the_page(tmp_path):
    result, _ = pruned()
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    with pytest.warns(InSampleWarning):
        certificate = result.certify(x[:100])
    page = result.report(tmp_path / "page.html", certificate=certificate).read_text()
    assert "On the data that also calibrated or planned" in page
    assert "On fresh data" not in page
    assert "in-sample, no guarantee" in page


def test_histogram_counts_every_positive_gap():
    _, certificate = pruned()
    rows = gap_bins(certificate.gaps)
    assert sum(r["inputs"] for r in rows) == len(certificate.gaps) == 300
    assert rows[0]["from"] == pytest.approx(min(certificate.gaps))
    assert rows[-1]["to"] == pytest.approx(max(certificate.gaps))
    ratios = [r["to"] / r["from"] for r in rows]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    for row in rows:
        low, high = row["from"] * (1 + 1e-9), row["to"] * (1 - 1e-9)
        assert sum(low <= g <= high for g in certificate.gaps) <= row["inputs"]
    assert gap_bins([0.0, 0.0]) == []
    assert sum(r["inputs"] for r in gap_bins([0.0, 2.0, 2.0])) == 2
    marks = gap_marks(certificate)
    assert {m["kind"] for m in marks} == {"bound", "prediction", "measured"}
    assert all(0 < m["at"] < math.inf for m in marks)
    assert gap_histogram([0.0], marks)  # nothing to draw, and no failure
    with pytest.raises(ValueError, match=r"^`gaps` must hold at least one gap"):
        gap_histogram([], [])


def test_the_charts_are_drawn_at_every_width(tab, tmp_path):
    result, certificate = pruned()
    path = result.report(tmp_path / "page.html", certificate=certificate)
    for width, dark in ((1280, False), (400, True)):
        tab.look(width, dark=dark)
        tab.open(path.as_uri(), "document.body.dataset.drawn == '4'")
        assert tab.complaints() == []
        assert tab.requests() == []
        assert tab.run("document.documentElement.scrollWidth") <= width
        count = len([r for r in gap_bins(certificate.gaps) if r["inputs"]])
        columns = tab.run(
            "[...document.querySelectorAll('#chart-gaps .mark-rect path')]"
            ".filter(p => p.getBoundingClientRect().height > 1).length"
        )
        assert columns >= count
        bars = tab.run("document.querySelectorAll('#chart-contribution .mark-rect path').length")
        assert bars >= 2
