"""What is given on the command line: files, functions, numbers; and what fails, in its words."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from torch import nn

import prunus
from prunus.bench import evaluate, load_data
from prunus.cli.app import main
from prunus.cli.given import read, scores
from prunus.cli.options import number
from prunus.cli.words import of_system, shown
from prunus.export import read_pt2

MINE = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

def batches():
    torch.manual_seed(1)
    return [(torch.randn(20, 6), torch.arange(20) % 4) for _ in range(2)]

def parts():
    return {"train": iter(batches()), "test": batches()[:1]}

def closeness(model):
    x = torch.ones(4, 6) * torch.arange(4)[:, None]
    with torch.no_grad():
        return {"closeness": -float((model(x) - net()(x)).abs().max())}

def train(model, step):
    wrong = [1, 2]
    return wrong[step.index + 2]

def failing():
    return train(None, None)
"""
NET = "mine_given:net"


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "mine_given.py").write_text(MINE)
    (tmp_path / "broken_given.py").write_text("x = (1,\n")
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(80, 6)).astype(np.float32), np.arange(80) % 4
    np.savez(tmp_path / "own.npz", x=x, y=y)
    np.savez(tmp_path / "bare.npz", x=x)
    np.savez(tmp_path / "far.npz", x=x, y=np.arange(80) % 9)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "plain").write_text("a file")
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    torch.save({"x": tensors[0], "y": tensors[1]}, tmp_path / "own.pt")
    torch.save(tensors, tmp_path / "pair.pt")
    torch.save(tensors[0], tmp_path / "x.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine_given", raising=False)
    return tmp_path


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["prunus", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    return int(end.value.code or 0), " ".join(out.split()), err


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.2", 0.2), ("20%", 0.2), ("33.3%", 0.333), (" 1e-3 ", 1e-3), ("1%", 0.01)],
)
def test_numbers(text, value):
    assert number("--density", text) == value
    with pytest.raises(
        ValueError, match=r"--density must be a number, such as 0\.2 or 20%, got 'x%'"
    ):
        number("--density", "x%")


def test_every_form_of_data_is_the_same_samples(home):
    sets = [read(name, None) for name in ("own.npz", "own.pt", "pair.pt")]
    for other in sets:
        assert other.scored
        assert [len(batch[0]) for batch in other.train] == [60]
        assert torch.equal(other.train[0][0], sets[0].train[0][0])
        assert torch.equal(other.test[0][1], sets[0].test[0][1])
    alone = [read(name, None) for name in ("bare.npz", "x.npy", "x.pt")]
    for other in alone:
        assert not other.scored
        assert torch.equal(other.train[0], alone[0].train[0])
        with pytest.raises(ValueError, match="has one part alone"):
            other.needed("--certify")
    own = read("mine_given:parts", None)
    assert own.scored
    assert len(list(own.train)) == len(list(own.train)) == 2  # an iterator, read again and again
    assert read("mine_given:batches", None).test is None


def test_scores_are_those_of_the_benchmark():
    data = load_data("digits")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    ours = scores(net, read("digits", None).test)
    assert ours == pytest.approx(evaluate(net, data), rel=1e-12)

    class Exported(nn.Module):
        """Gives its output in a tuple, as a program of torch.export does."""

        def forward(self, x):
            return (net(x),)

    assert scores(Exported(), read("digits", None).test) == ours


def test_halves_share_no_sample_and_are_the_whole():
    given = read("digits", None)
    one, other = given.halves("--drop")
    rows = [torch.cat([y for _, y in part.test]) for part in (one, other, given)]
    assert len(rows[0]) + len(rows[1]) == len(rows[2])
    assert abs(len(rows[0]) - len(rows[1])) <= 1
    pixels = [torch.cat([x for x, _ in part.test]).flatten(1) for part in (one, other)]
    assert prunus.rows.row_hashes(pixels[0]).unique().numel() == len(rows[0])
    assert prunus.rows.rows_of([pixels[0]]).among(prunus.rows.row_hashes(pixels[1])) == 0


def test_prune_with_own_functions_weights_and_nm(home, monkeypatch, capsys):
    import mine_given

    torch.manual_seed(7)
    state = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).state_dict()
    torch.save({"state_dict": state, "epoch": torch.tensor(3)}, home / "w.pt")
    code, out, err = run(
        monkeypatch, capsys, "prune", NET, "--weights", "w.pt", "--recipe", "wanda", "--nm", "2:4",
        "--data", "mine_given:parts", "--exclude", "0", "--evaluate", "mine_given:closeness",
        "--out", "small",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "closeness" in out
    model = prunus.load(home / "small", mine_given.net).model
    assert torch.equal(model[0].weight, state["0.weight"])
    kept = (model[2].weight != 0).reshape(4, 2, 4).sum(-1)
    assert (kept == 2).all()
    facts = json.loads((home / "small" / "run.json").read_text())
    assert facts["data_fingerprint"]


def test_prune_to_what_may_be_lost(home, monkeypatch, capsys):
    """On half of the test part; the other half is scored once."""
    code, out, err = run(
        monkeypatch, capsys, "prune", "prunus.bench.zoo:digits_mlp", "--recipe", "magnitude",
        "--drop", "2%", "--data", "digits", "--out", "small",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert re.search(r"density 0\.\d+ found by \d+ evaluations \(the dense network, and", out)
    before, after = map(float, re.search(r"accuracy (\S+) → (\S+), higher is better", out).groups())
    assert before - 0.02 - 1e-4 <= after < before
    assert "on the other half of the test part, which had no part in choosing: accuracy" in out
    code, out, err = run(
        monkeypatch, capsys, "plan", NET, "--drop", "0.1", "--metric", "closeness", "--recipe",
        "magnitude", "--evaluate", "mine_given:closeness", "--out", "plan.json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert prunus.Plan.from_json((home / "plan.json").read_text()).kind == "drop"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--train", "mine_given:train"), "--train mine_given:train: IndexError: list index out of "
         "range (mine_given.py, line 23: return wrong[step.index + 2])"),
        (("--train", "broken_given:train"), "--train broken_given:train: SyntaxError: '(' was "),
        (("--data", "mine_given:failing"), "--data mine_given:failing: AttributeError: 'NoneType' "
         "object has no attribute 'index' (mine_given.py, line 23"),
        (("--device", "cuda"), "--device cuda is not there: Torch not compiled with CUDA"),
        (("--weights", "whole.pt"), "--weights: whole.pt is no file of tensors alone"),
        (("--weights", "x.pt"), "--weights: x.pt holds no state_dict"),
        (("--data", "whole.pt"), "whole.pt is no readable file of tensors"),
        (("--data", "no.pt"), "There is no file no.pt"),
        (("--recipe", "wanda"), "Recipe 'wanda' needs data (diag), got none. Pass --data."),
        (("--nm", "2-4"), "--nm must be N:M, such as 2:4, got '2-4'."),
        (("--nm", "5:4"), "--nm 5:4: `n` must be a whole number in [1, 4], got 5."),
        (("--density", "120%"), "--density must lie in (0, 1], got 1.2."),
        (("--density", "30"), "--density must lie in (0, 1], got 30.0. Write 0.3 for 30 %."),
        (("--drop", "1", "--data", "digits"), "A drop of 1 allows any accuracy ("),
        (("--samples", "x"), "Invalid value for '--samples': "),
        (("--no-such",), "No such option: --no-such. See `prunus prune --help`."),
        (("--drop", "1%", "--density", "0.5"), "Give --density or --drop, not both."),
        (("--drop", "1%"), "--drop needs --data, or --evaluate"),
        (("--drop", "1%", "--data", "x.npy"), "--drop needs data that had no part in the pruning"),
        (("--metric", "accuracy"), "--metric belongs to --drop"),
        (("--data", "x.npy", "--certify", "--density", "0.5"), "--certify needs data that had no"),
        (("--data", "far.npz"), "Labels must lie in [0, 3], the network's classes, got "),
        (("--threads", "100000"), "--threads must be a whole number in [1, "),
        (("--length", "8"), f"--length is for a language model's folder, which has a config.json; "
         f"{NET} is none"),
        (("--inputs", "dense"), "--inputs is for a language model's folder"),
        (("--batch", "1"), "--batch is for a language model's folder"),
        (("--workers", "2"), "--workers is for a language model's folder"),
        (("--kind", "sup"), "--kind and --delta belong to --budget gap=LIMIT"),
        (("--delta", "0.5"), "--kind and --delta belong to --budget gap=LIMIT"),
        (("--delta", "0.05"), "--kind and --delta belong to --budget gap=LIMIT"),
        (("--factory", NET), f"--factory builds the network of a saved folder, and MODEL {NET}"),
        (("--train", "./mine_given.py:train"), "a module as `import` names it, got './mine_given."),
        (("--out", "plain/x"), "plain/x: Not a directory. A part of the path is a file: name"),
        (("--out", "n" * 300), "File name too long. Give it a shorter name."),
        ((), "Give --density, such as 0.2, or --drop, --budget, --plan or --nm."),
    ],
)  # fmt: skip
def test_what_failed_costs_one_line_in_the_words_of_the_command(
    home, monkeypatch, capsys, arguments, message
):
    if arguments == ("--device", "cuda") and torch.cuda.is_available():
        pytest.skip("there is one")
    fixed = ["--recipe", "magnitude"] if "--recipe" not in arguments else []
    asked = {"--density", "--nm", "--drop", "--metric"} & {*arguments} or not arguments
    density = [] if asked else ["--density", "0.5"]
    net = "prunus.bench.zoo:digits_mlp" if "digits" in arguments else NET
    code, _, err = run(monkeypatch, capsys, "prune", net, *fixed, *density, *arguments)
    assert code == 2
    assert not (home / "pruned").exists()  # no empty folder is left
    assert err.startswith("prunus: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bench nowhere.yaml", "nowhere.yaml: No such file or directory. Look at the path."),
        ("bench one.yaml --dry-run --part 5/4", "--part must be a whole number in [1, 4], got 5."),
        ("bench one.yaml --dry-run --workers 0", "--workers must be a whole number >= 1, got 0."),
        ("bench one.yaml --dry-run --executor lokal", "Did you mean local?"),
        ("report rows --sql", "--sql must be a statement, such as SELECT * FROM records"),
        ("certify mine_given:net plain --data own.npz", "PRUNED: plain is no whole safetensors"),
        ("certify mine_given:net mine_given:parts --data own.npz", "PRUNED: mine_given:parts ret"),
        (
            "plan mine_given:net --data x.npy --limit 1% --radius 2",
            "--radius belongs to --kind sup",
        ),
        ("plan mine_given:net --data x.npy --limit 1% --out rows", "rows: Is a directory. It is a"),
    ],
)
def test_so_does_what_failed_in_other_commands(home, monkeypatch, capsys, line, message):
    (home / "one.yaml").write_text("tasks: [digits-mlp]\nrecipes: [magnitude]\ndensities: [30%]\n")
    (home / "rows").mkdir()
    (home / "rows" / "a.jsonl").write_text("")
    words = line.split() + ([""] if line.endswith("--sql") else [])
    code, _, err = run(monkeypatch, capsys, *words)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_a_grid_takes_shares_in_percent_as_the_commands_do():
    from prunus.bench.grid.load import make_grid

    same = {"tasks": ["digits-mlp"], "recipes": ["magnitude"]}
    percent = make_grid({**same, "densities": ["30%", {"fc1": "12.5 %"}]})
    assert percent.densities == make_grid({**same, "densities": [0.3, {"fc1": 0.125}]}).densities
    with pytest.raises(ValueError, match=r"`density` must lie in \(0, 1\], got 1.3"):
        make_grid({**same, "densities": ["130%"]})


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "a/b"), "a/b: No space left on device. Free some "
         "space, or name a place on another disk."),
        (PermissionError(13, "Permission denied", b"b"), "b: Permission denied. Look at its "
         "permissions, or name another."),
        (OSError(5, "Input/output error", "c"), "c: Input/output error."),
        (TimeoutError(110, "Another process is saving here. Wait for it", "d"),
         "d: Another process is saving here. Wait for it."),
        (FileNotFoundError("No plan at e."), "No plan at e."),
    ],
)  # fmt: skip
def test_errors_of_the_system_say_where_what_and_what_to_do(error, line):
    assert of_system(error) == line


def test_debug_prints_the_traceback_wherever_it_stands(home, monkeypatch, capsys):
    arguments = ("prune", NET, "--density", "0.5", "--train", "mine_given:train", "--recipe",
                 "magnitude")  # fmt: skip
    for line in (("--debug", *arguments), (*arguments, "--debug")):
        code, _, err = run(monkeypatch, capsys, *line, "--out", f"out{line[0]}")
        assert code == 2
        assert "Traceback" in err
        assert 'mine_given.py", line 23, in train' in err
        assert err.splitlines()[-1].startswith("prunus: --train mine_given:train: IndexError")


def test_the_version_and_the_installing_of_completion(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "--version")
    assert (code, out) == (0, f"prunus {prunus.__version__} (torch {torch.__version__})")
    assert "--install-completion" in run(monkeypatch, capsys, "--help")[1]


def test_messages_in_the_words_of_the_command():
    options = {"density": "--density", "data": "--data", "kind": "--kind", "model": "MODEL"}
    assert shown("`density` and `layers`; pass data=.", options) == (
        "--density and `layers`; pass --data."
    )
    assert shown("kind='sup' with x=3, `model`", options) == "--kind sup with x=3, MODEL"


# -- .pt2 ------------------------------------------------------------------------------------------


def exported(path, model, x):
    from torch.export import Dim, export, save

    save(export(model.eval(), (x,), dynamic_shapes=({0: Dim("batch", min=2)},)), path)
    return path


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.norm = nn.Embedding(11, 6, padding_idx=0), nn.LayerNorm(6)
        self.inner = nn.Linear(6, 12)
        self.outer = nn.Linear(12, 3, bias=False)
        self.twice = nn.Linear(3, 3)

    def forward(self, ids):
        x = self.norm(self.table(ids))
        x = self.outer(torch.relu(self.inner(x))).mean(1)
        return self.twice(self.twice(x))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same", bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2, stride=2), nn.Flatten(), nn.Linear(72, 10),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "x", "kinds"),
    [
        (convolutional, torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
         [nn.Conv2d, nn.BatchNorm2d, nn.Conv2d, nn.Linear]),
        (Table, torch.arange(24).reshape(4, 6) % 11,
         [nn.Embedding, nn.LayerNorm, nn.Linear, nn.Linear]),
    ],
)  # fmt: skip
def test_a_program_is_a_network_again(tmp_path, make, x, kinds):
    torch.manual_seed(0)
    net = make().eval()
    again = read_pt2(exported(tmp_path / "net.pt2", net, x))
    assert list(again.state_dict()) == list(net.state_dict())
    assert [type(m) for m in again.modules() if type(m) in kinds] == kinds  # a shared one stays
    with torch.no_grad():
        torch.testing.assert_close(again(x[:3]), net(x[:3]))
    pruned = prunus.prune(again, "importance-node+ls", 0.6, data=x)
    twice = "twice" if hasattr(net, "twice") else None  # no layer of the program: it has two calls
    same = prunus.prune(net, "importance-node+ls", 0.6, data=x, exclude=twice)
    assert pruned.cost_after.parameters == same.cost_after.parameters
    assert {k: v.tolist() for k, v in pruned.masks.items()} == {
        k: v.tolist() for k, v in same.masks.items()
    }
    torch.testing.assert_close(pruned.compact()(x), pruned.model(x), atol=1e-5, rtol=1e-4)


def test_the_command_takes_a_program_and_its_folder(home, monkeypatch, capsys):
    import mine_given

    exported(home / "net.pt2", mine_given.net(), torch.ones(4, 6))
    code, _, err = run(
        monkeypatch, capsys, "prune", "net.pt2", "--recipe", "importance-node+ls", "--density",
        "50%", "--data", "own.pt", "--out", "small",
    )  # fmt: skip
    assert (code, err) == (0, "")
    loaded = prunus.load(home / "small", read_pt2(home / "net.pt2"))
    assert (
        loaded.compact()[0].weight.shape == (4, 6)
        if isinstance(loaded.compact(), nn.Sequential)
        else loaded.compact().get_submodule("0").weight.shape == (4, 6)
    )


@pytest.mark.parametrize("text", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_damaged_program(tmp_path, text):
    (tmp_path / "net.pt2").write_bytes(text)
    with pytest.raises(ValueError, match=r"net\.pt2 is no whole program of torch\.export"):
        read_pt2(tmp_path / "net.pt2")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_pt2(tmp_path / "none.pt2")


@pytest.mark.slow
def test_a_hugging_face_model(home, monkeypatch, capsys):
    """A classifier of transformers, by its folder, to a folder that `from_pretrained` loads."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, num_labels=4, max_position_embeddings=16,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).eval().save_pretrained(home / "bert")
    (home / "mine_given.py").write_text(
        MINE
        + """
def tokens():
    torch.manual_seed(2)
    batch = lambda: {
        "input_ids": torch.randint(0, 30, (12, 9)),
        "attention_mask": torch.ones(12, 9, dtype=torch.long),
        "labels": torch.arange(12) % 4,
    }
    return {"train": [batch(), batch()], "test": [batch()]}
"""
    )
    code, out, err = run(
        monkeypatch, capsys, "prune", "hf:bert", "--recipe", "importance-node+ls", "--density",
        "50%", "--data", "mine_given:tokens", "--layers", "*intermediate*", "--out", "small",
    )  # fmt: skip
    assert code == 0, err
    assert "accuracy" in out
    small = transformers.BertForSequenceClassification.from_pretrained(home / "small" / "hf")
    assert small.config.intermediate_size < 32
    code, _, err = run(monkeypatch, capsys, "prune", "hf:nowhere/at-all/x", "--density", "0.5")
    assert (code, err.count("\n")) == (2, 1)
    assert "there is no folder 'nowhere/at-all/x'" in err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, err = run(monkeypatch, capsys, "prune", "hf:nobody/nothing", "--density", "0.5")
    assert (code, err.count("\n")) == (2, 1)
    assert "nobody/nothing is no folder here, and the Hugging Face Hub did not give it" in err
