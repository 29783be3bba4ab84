"""The tool that plants bugs: rows that no longer fit the code are named, rates are by area."""

import importlib.util
import sys
from pathlib import Path

TOOL = Path(__file__).parents[1] / "tools/mutants.py"


def test_rows_that_do_not_fit_the_code_are_named(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("mutants_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for it
    spec.loader.exec_module(module)
    package, tests = tmp_path / "src/prunus", tmp_path / "tests"
    package.mkdir(parents=True)
    tests.mkdir()
    (package / "a.py").write_text("x = 1\ny = 1 + 1\n")
    (tests / "test_a.py").write_text("")

    def row(number, **changes):
        given = {"file": "a.py", "old": "x = 1", "new": "x = 2", "tests": ("tests/test_a.py::t",)}
        return module.Mutant(number=number, area="sums", **{**given, **changes})

    good = row(1)
    assert module.lost([good], tmp_path) == []
    bad = [
        row(2, old="z = 1"),
        row(3, old="1"),
        row(4, file="b.py"),
        row(5, new="x = 1"),
        row(6, tests=("tests/test_b.py",)),
    ]
    said = module.lost([good, *bad], tmp_path)
    assert said == [
        "row 2 (sums), a.py: 'z = 1' occurs 0 times",
        "row 3 (sums), a.py: '1' occurs 3 times",
        "row 4 (sums), b.py: 'x = 1' is in a file that is gone",
        "row 5 (sums): changes nothing",
        "row 6 (sums): there is no tests/test_b.py",
    ]
    results = [
        {"area": "sums", "outcome": module.NOTICED},
        {"area": "sums", "outcome": module.SURVIVED},
        {"area": "parts", "outcome": module.HUNG},
    ]
    assert [line.split() for line in module.table(results).splitlines()[1:]] == [
        ["parts", "1", "1", "100%"],
        ["sums", "2", "1", "50%"],
        ["all", "3", "2", "67%"],
    ]
    rows = module.load()
    assert all(mutant.tests for mutant in rows)
    assert module.lost(rows, TOOL.parents[1]) == []
