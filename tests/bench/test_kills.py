"""`kill -9` of the run and of single workers: nothing is lost, doubled or half-written."""

import pytest

from bench_runs import survives


def test_a_killed_worker_and_a_killed_run_lose_and_double_nothing(tmp_path):
    survives(tmp_path, "local", kills=2, seeds=1)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray", "dask"])
def test_twenty_kills_lose_and_double_nothing(tmp_path, engine):
    pytest.importorskip({"local": "joblib", "ray": "ray", "dask": "distributed"}[engine])
    survives(tmp_path, engine, kills=20, seeds=20)
