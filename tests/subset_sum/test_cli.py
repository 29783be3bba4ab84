"""`prunus theory subset-sum`: tables, a figure, and one line for bad input."""

import csv

import pytest

from prunus.cli.app import main


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["prunus", "theory", "subset-sum", *words])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    return code, *capsys.readouterr()


def test_samples_of_the_three_constructions(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "needed", "--eps", "0.1,0.01")
    assert code == 0
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["0.1", "0.01"]
    for _, least, uniform, product, logarithmic, single in rows:
        assert int(least) <= int(uniform) <= float(logarithmic) <= int(single)
        assert int(least) <= int(product)


def test_build_measure_and_draw(monkeypatch, capsys, tmp_path):
    words = ["--sizes", "3,4,2", "--items", "3,6", "--points", "500", "--draws", "2"]
    code, out, _ = run(monkeypatch, capsys, "construct", *words, "--out", str(tmp_path / "s"))
    assert code == 0
    rows = [[float(v) for v in line.split()] for line in out.splitlines()[1:3]]
    assert rows[1][1] < rows[0][1]
    assert all(output <= bound for _, _, output, bound, _, _ in rows)
    assert (tmp_path / "s.svg").read_text().startswith("<svg")
    kinds = {row["kind"] for row in csv.DictReader((tmp_path / "s.csv").read_text().splitlines())}
    assert kinds == {"measured", "bound", "theory"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["needed", "--eps", "0.7"], "--eps must lie in (0, 0.5), got 0.7"),
        (["construct", "--items", "x"], "--items must hold numbers with commas"),
        (["construct", "--items", "8.5"], "numbers with commas between, got '8.5'"),
        (["construct", "--items", "40"], "`n` must be a whole number in [1, 34], got 40"),
        (["construct", "--sizes", "4"], "--sizes must name inputs and at least one layer"),
    ],
)
def test_bad_input_costs_one_line(monkeypatch, capsys, words, message):
    code, out, err = run(monkeypatch, capsys, *words)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
