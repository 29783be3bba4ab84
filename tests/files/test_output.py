"""What a command computes is saved whatever becomes of its standard output."""

import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import prunus
from prunus.cli.app import main
from prunus.files import Patient
from prunus.result import Pruned

FACTORY = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
"""
PRUNE = (
    "prune", "net_of_test_output:net", "--recipe", "importance-node+ls", "--density", "0.5",
    "--data", "own.npz",
)  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "net_of_test_output.py").write_text(FACTORY)
    x = np.random.default_rng(0).normal(size=(80, 6))
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(80) % 4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def broken_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def full_device():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    return open("/dev/full", "w")


def whole(folder):
    """What `prunus prune` leaves behind, and that it can be read."""
    import net_of_test_output

    names = sorted(re.sub("-[0-9a-f]+\\.", ".", path.name) for path in folder.iterdir())
    assert names == [
        "compact.safetensors", "pruned.json", "report.html", "run.json", "weights.safetensors",
    ]  # fmt: skip
    loaded = prunus.load(folder, net_of_test_output.net)
    assert loaded.compact()[0].weight.shape == (4, 6)
    assert loaded.cost_after.latency is not None
    assert "What is guaranteed" in (folder / "report.html").read_text()


@pytest.mark.parametrize("where", [broken_pipe, full_device])
def test_a_broken_standard_output_loses_nothing(home, monkeypatch, capsys, where):
    monkeypatch.setattr(sys, "argv", ["prunus", *PRUNE, "--certify", "--out", "small"])
    with where() as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as end:
            main()
    whole(home / "small")
    said = capsys.readouterr().err
    if where is broken_pipe:  # the reader has seen enough
        assert (end.value.code, said) == (0, "")
    else:
        assert end.value.code == 2
        assert said == ("prunus: standard output could not be written (No space left on device)\n")


def test_a_broken_standard_error_keeps_the_exit_code(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["prunus", "list", "nothing"])
    with full_device() as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 2


@pytest.mark.parametrize("step", ["measured", "compact", "summary", "certify", "report"])
def test_the_network_is_saved_before_anything_that_may_fail(home, monkeypatch, capsys, step):
    """Its training may have taken hours."""

    def failing(*args, **options):
        raise ValueError("it failed")

    monkeypatch.setattr(Pruned, step, failing)
    monkeypatch.setattr(sys, "argv", ["prunus", *PRUNE, "--certify", "--out", "small"])
    with pytest.raises(SystemExit, match=r"^2$"):
        main()
    assert capsys.readouterr().err == "prunus: it failed\n"
    import net_of_test_output

    loaded = prunus.load(home / "small", net_of_test_output.net)
    assert int((loaded.model[0].weight != 0).any(1).sum()) == 4
    assert (home / "small" / "run.json").exists()


def test_a_patient_stream_is_the_stream_until_it_breaks():
    stream = io.StringIO()
    patient = Patient(stream)
    print("a", file=patient, flush=True)
    assert (stream.getvalue(), patient.broken, patient.isatty()) == ("a\n", None, False)

    class Breaking(io.StringIO):
        def flush(self):
            raise BrokenPipeError(32, "Broken pipe")

    patient = Patient(Breaking())
    print("a", file=patient, flush=True)
    assert isinstance(patient.broken, BrokenPipeError)
    print("b", file=patient, flush=True)
    assert patient._stream.getvalue() == "a\n"
    closed = io.StringIO()
    closed.close()
    with pytest.raises(ValueError, match="closed"):  # a mistake is no broken pipe
        print("a", file=Patient(closed))


@pytest.mark.slow
@pytest.mark.parametrize("end", ["| head -1", "| true", "> /dev/full", ">&-", ">&- 2>&- <&-"])
@pytest.mark.parametrize("command", ["prune", "list", "plan", "theory"])
def test_in_a_shell(home, command, end):
    words = {
        "prune": " ".join([*PRUNE, "--certify", "--out", "small"]),
        "list": "list recipes",
        "plan": "plan net_of_test_output:net --limit 0.9 --data own.npz --out plan.json",
        "theory": "theory subset-sum needed",
    }[command]
    code = "from prunus.cli.app import main; main()"
    script = f'"{sys.executable}" -c "{code}" {words} {end}; exit ${{PIPESTATUS[0]}}'
    run = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    if "full" in end:
        assert run.returncode == 2
        assert run.stderr == (
            "prunus: standard output could not be written (No space left on device)\n"
        )
    else:
        assert (run.returncode, run.stderr) == (0, "")
    if command == "prune":
        whole(home / "small")
    if command == "plan":
        assert prunus.Plan.from_json((home / "plan.json").read_text()).feasible
