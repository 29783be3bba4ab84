"""`prunus compress` and `prunus decompress`: what they write, read back, and refuse."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

import prunus
from prunus.cli.app import main
from prunus.compression import compress, decompress

MODULE = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))

def other():
    return nn.Sequential(nn.Linear(20, 31), nn.ReLU(), nn.Linear(31, 4))

def tune(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    x = torch.ones(3, 20)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with a module and a pruned network, as the current one."""
    (tmp_path / "compress_for_tests.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import compress_for_tests

    prunus.prune(compress_for_tests.net(), "magnitude", 0.3).save(tmp_path / "pruned")
    return tmp_path


NET = ("--factory", "compress_for_tests:net")


def run(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error."""
    monkeypatch.setattr("sys.argv", ["prunus", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def test_there_and_back(home, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "compress", "pruned", *NET, "--out", "whole.st")
    assert code == 0
    assert out.rstrip().endswith("whole.st")
    assert "ratio" in out or "×" in out
    loaded = prunus.load(home / "pruned", model=__import__("compress_for_tests").net())
    again = compress(loaded, home / "again.st", progress=False)
    assert (home / "whole.st").read_bytes() == again.path.read_bytes()  # as the function's
    code, out, _ = run(monkeypatch, capsys, "decompress", "whole.st", "--out", "weights.st")
    assert code == 0
    assert out.strip() == "weights.st"
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(load_file(home / "weights.st")[name], value)
    code, out, _ = run(monkeypatch, capsys, "decompress", "whole.st", *NET, "--out", "back")
    assert code == 0
    back = prunus.load(home / "back", model=__import__("compress_for_tests").net())
    assert all(torch.equal(m, loaded.masks[n]) for n, m in back.masks.items())


@pytest.mark.parametrize(
    ("options", "most"),
    [
        (["--values", "5"], {"0.weight": 5, "2.weight": 5}),
        (["--values", "0=3", "--values", "*=7", "--tune", "compress_for_tests:tune"],
         {"0.weight": 3, "2.weight": 7}),
        (["--values", "6", "--published"], {"0.weight": 6, "2.weight": 6}),
    ],
)  # fmt: skip
def test_values_are_shared_as_asked(home, options, most, monkeypatch, capsys):
    code, _, _ = run(monkeypatch, capsys, "compress", "pruned", *NET, *options, "--out", "small.st")
    assert code == 0
    state = decompress(home / "small.st")
    for name, k in most.items():
        values = state[name][state[name] != 0].unique()
        assert 1 < len(values) <= k
    if "--tune" in options:
        run(monkeypatch, capsys, "compress", "pruned", *NET, *options[:4], "--out", "plain.st")
        assert not torch.equal(decompress(home / "plain.st")["0.weight"], state["0.weight"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compress", "pruned", *NET, "--values", "many"], "--values must be a whole number"),
        (["compress", "pruned", *NET, "--values", "3", "--values", "0=4"],
         "--values must be one number, or GLOB=NUMBER"),
        (["compress", "pruned", *NET, "--values", "9999"], "4096"),
        (["compress", "nowhere", *NET], "nowhere"),
        (["compress", "pruned", "--factory", "compress_for_tests:other"], "0.weight"),
        (["decompress", "torn.st", "--out", "x"], "torn.st"),
        (["decompress", "pruned/none.st", "--out", "x"], "none.st"),
        (["decompress", "whole.st", "--out", "x", "--max-bytes", "100"], "100"),
    ],
)  # fmt: skip
def test_one_line_of_what_is_wrong(home, arguments, words, monkeypatch, capsys):
    run(monkeypatch, capsys, "compress", "pruned", *NET, "--out", "whole.st")
    whole = (home / "whole.st").read_bytes()
    (home / "torn.st").write_bytes(whole[:-7])
    before = sorted(p.name for p in home.iterdir())
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not out
    assert sorted(p.name for p in home.iterdir()) == before  # nothing is half written
    shutil.rmtree(home / "pruned")
