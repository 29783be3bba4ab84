"""The kept account of the lottery tickets is that of the records beside it."""

import json
from pathlib import Path

import pytest

from prunus.reproduce import save
from prunus.reproduce.frankle2019_mnist import SMALL, account, runs_of

KEPT = Path(__file__).parents[2] / "benchmarks" / "results" / "frankle2019_mnist"


def test_the_kept_account_comes_from_the_kept_records(tmp_path):
    pytest.importorskip("altair", reason="figures are the extra `report`")
    rows = runs_of(SMALL, 0, KEPT / "records", None, progress=False)
    save(account(SMALL, rows), tmp_path)
    for kind in ("json", "md"):
        name = f"frankle2019-mnist.{kind}"
        assert (tmp_path / name).read_text() == (KEPT / name).read_text()
    assert len(json.loads((KEPT / "frankle2019-mnist.json").read_text())["rows"]) == 30
