"""The `prunus` program: its subcommands, and one clear line for every user's mistake."""

import errno
import sys
from contextlib import redirect_stderr, redirect_stdout

import typer

from prunus.cli import (
    bench,
    certify,
    compress,
    demo,
    export,
    folder,
    listing,
    plan,
    prune,
    report,
    reproduce,
    sensitivity,
    theory,
)
from prunus.files import Patient, open_closed

__all__ = ["app", "main"]

app = typer.Typer(
    name="prunus",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Prune PyTorch networks and say, before and after, what the pruning costs.",
)
app.command("bench")(bench.bench)
app.command("demo")(demo.demo)
app.command("prune")(prune.prune)
app.command("plan")(plan.plan)
app.command("certify")(certify.certify)
app.command("export")(export.export)
app.command("compress")(compress.compress)
app.command("decompress")(compress.decompress)
app.command("perplexity")(folder.perplexity)
app.command("report")(report.report)
app.command("reproduce")(reproduce.reproduce)
app.command("sensitivity")(sensitivity.sensitivity)
app.command("list")(listing.listing)
app.add_typer(theory.app, name="theory")


def main() -> None:
    """Run the program; a user's mistake costs one line on standard error and exit code 2.

    A standard output that breaks stops no work: what a command writes to files it writes. A reader
    that went away (`| head -1`) is nothing to complain about; a full device costs a line and exit
    code 2 in the end.
    """
    open_closed()
    out, err = Patient(sys.stdout, divert=True), Patient(sys.stderr, divert=True)
    with redirect_stdout(out), redirect_stderr(err):
        code = _run()
        out.flush()
        if out.broken is not None and out.broken.errno != errno.EPIPE:
            reason = out.broken.strerror or out.broken
            print(f"prunus: standard output could not be written ({reason})", file=err)
            code = code or 2
        err.flush()
    sys.exit(code)


def _run() -> int:
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (ValueError, TypeError, KeyError, OSError, ImportError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"prunus: {message}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not _expected(error):
            raise
        print(f"prunus: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prunus: interrupted", file=sys.stderr)
        return 130
    return 0


def _expected(error: Exception) -> bool:
    """True where the message is meant for the user: a refused compaction, say, or failed runs."""
    from prunus.export.check import ExportError
    from prunus.reproduce.harness import FailedRuns
    from prunus.surgery import CompactionError

    return isinstance(error, CompactionError | ExportError | FailedRuns | MemoryError)
