"""Every table at 80 columns and narrower: nothing is cut off, no line is too long."""

import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prunus
from prunus.report.text import table_text, width_here

TEXTS = st.text("abcdefg ±→0123456789.", max_size=40)


@given(
    st.integers(1, 9).flatmap(
        lambda n: st.lists(st.lists(TEXTS, min_size=n, max_size=n), min_size=1, max_size=4)
    ),
    st.integers(40, 110),
)
def test_every_word_is_there_and_every_line_fits(rows, width):
    names = [f"column {i}" for i in range(len(rows[0]))]
    text = table_text([dict(zip(names, row, strict=True)) for row in rows], width=width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    squeezed = "".join(c for c in text if c not in " │┃\n")
    for row in rows:
        for word in [w for cell in row for w in cell.split() if len(w) < 20]:
            assert word in squeezed or all(part in squeezed for part in word)


def test_wide_tables_come_in_parts_with_the_key():
    rows = [{"recipe": f"recipe-number-{i}", **{str(d): "37.5 → 12.4" for d in range(8)}}
            for i in range(3)]  # fmt: skip
    whole = table_text(rows, width=200)
    parts = table_text(rows, width=60)
    assert whole.count("recipe-number-1") == 1
    assert parts.count("recipe-number-1") == parts.count("┏") > 1
    assert parts.count("37.5 → 12.4") == 24
    assert "[+ls]" in table_text([{"a": "x[+ls]", "b": "[red]"}], width=60)  # no markup


def test_the_width_is_the_terminals(monkeypatch):
    for columns, width in [("80", 80), ("20", 40), ("300", 110)]:
        monkeypatch.setenv("COLUMNS", columns)
        assert width_here() == width


def commands(command, path=()):
    """The path of a command and of all below it."""
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


def test_every_help_fills_80_columns_and_no_more(monkeypatch, capsys):
    """Text is broken where a line is full, not where the source breaks it; nothing is cut off."""
    from typer.main import get_command

    from prunus.cli.app import app, main

    monkeypatch.setenv("COLUMNS", "80")
    paths = list(commands(get_command(app)))
    assert len(paths) > 25
    for path in paths:
        monkeypatch.setattr("sys.argv", ["prunus", *path, "--help"])
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
        lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        assert max(map(len, lines)) <= 80, path
        said = " ".join(" ".join(lines).replace("│", " ").split())
        assert "…" not in said.replace("torch_linear, …", "").replace("gelu, …", ""), path
        words = [line for line in lines if not line[:1] or line[0] == " "]
        for one, other in pairwise(words):
            if one and other:
                assert len(one) + 1 + len(other.split()[0]) > 79, (path, one, other)


def small_folder(folder):
    """A pruned network on disk with the function that builds it."""
    (folder / "terminal_net.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef net():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()\n\n\n"
        "def batches():\n    return [torch.randn(40, 6)]\n"
    )
    scope: dict = {}
    exec((folder / "terminal_net.py").read_text(), scope)
    net = scope["net"]()
    prunus.prune(net, "magnitude+ls", 0.5, data=scope["batches"]()).save(folder / "small")


@pytest.mark.parametrize(
    "arguments",
    [
        ("compress", "small", "--factory", "terminal_net:net", "--values", "4", "--out", "s.st"),
        ("export", "terminal_net:net", "small", "--data", "terminal_net:batches", "--format",
         "safetensors", "--out", "exported"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_works_on_a_pruned_folder_fits_80_columns(monkeypatch, capsys, tmp_path, arguments):
    from prunus.cli.app import main

    small_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "80")
    follow = [arguments]
    if arguments[0] == "compress":
        follow.append(("decompress", "s.st", "--out", "w.safetensors"))
    for words in follow:
        monkeypatch.setattr("sys.argv", ["prunus", *words])
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
        out = capsys.readouterr().out
        assert "…" not in out.replace("model=…", "")
        tables = [line for line in out.splitlines() if line[:1] in "│┃├└┏┡"]
        assert max(map(len, tables), default=0) <= 80
        assert bool(tables) == (words[0] == "compress")
    sys.modules.pop("terminal_net", None)


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "recipes"), ("list", "scores"), ("list", "selections"), ("list", "statistics"),
        ("list", "schedules"), ("list", "tasks"), ("list", "data"), ("list", "reproductions"),
        ("list", "granularities"), ("list", "allocations"), ("list", "joint"),
        ("list", "compensations"), ("reproduce", "list"), ("theory", "gap", "norm", "300", "100"),
        ("theory", "gap", "minimal-width"), ("theory", "subset-sum", "needed"),
        ("theory", "teacher-student", "prune", "-K", "3", "--until", "2", "--inputs", "30",
         "--masks", "2", "--simulations", "1"),
        ("theory", "at-init", "safe-density", "--samples", "40", "--model", "20"),
        ("theory", "gap", "curve", "--values", "0.9,0.5", "--draws", "2", "--sup-draws", "0"),
        ("prune", "prunus.bench.zoo:digits_cnn", "--recipe", "importance-node+ls", "--density",
         "30%", "--data", "digits", "--certify", "--out", "net"),
        ("sensitivity", "prunus.bench.zoo:digits_mlp", "--density", "0.5", "--density", "0.1"),
        ("plan", "prunus.bench.zoo:digits_mlp", "--limit", "10%", "--data", "digits"),
        ("demo", "--seeds", "1", "--out", "report"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_no_command_cuts_anything_off_at_80_columns(monkeypatch, capsys, tmp_path, arguments):
    from prunus.bench import demo as demonstration
    from prunus.cli.app import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.argv", ["prunus", *arguments])
    if arguments[0] == "demo":  # in small
        monkeypatch.setattr(demonstration, "DENSITIES", (0.5, 0.3, 0.2, 0.1, 0.05))
        names = ["magnitude", "magnitude+ls", "random-edge", "random-edge+ls"]
        monkeypatch.setattr(demonstration, "basic_recipes", lambda: names)
        monkeypatch.setattr(demonstration, "NETS", ("digits-mlp",))
        monkeypatch.setattr("os.cpu_count", lambda: 1)  # or worker processes would be started
    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    out, err = capsys.readouterr()
    assert "…" not in out.replace("he_normal, lecun_normal, torch_linear, …", "").replace(
        "relu, tanh, gelu, …", ""
    )
    tables = [line for line in out.splitlines() if line[:1] in "│┃├└┏┡╭╰"]
    assert max(map(len, tables), default=0) <= 80
    if arguments[0] == "demo":
        assert [line[:6] for line in err.splitlines()] == ["1 of 4", "2 of 4", "3 of 4", "4 of 4"]
        last = out.splitlines()[-1]
        assert last == "The report: report/report.html"
        assert "At density" in out
        assert "→" in out
