"""The `prunus` program: its subcommands, and one clear line for every user's mistake."""

import errno
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from typing import Annotated, Any

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
from prunus.cli.imports import Interrupted, OwnError
from prunus.cli.words import of_system, options_of, shown
from prunus.files import Patient, open_closed

__all__ = ["app", "main"]

DEBUG = "--debug"
STOPPED = 130  # as shells say of an interrupt

app = typer.Typer(
    name="prunus",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prune PyTorch networks and say, before and after, what the pruning costs.",
)


def _version(asked: bool) -> bool:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        import prunus

        try:
            beside = f" (torch {version('torch')})"
        except PackageNotFoundError:
            beside = ""
        typer.echo(f"prunus {prunus.__version__}{beside}")
        raise typer.Exit
    return asked


@app.callback()
def every(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and end.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Also print the traceback of an error; before or after COMMAND."
        ),
    ] = False,
) -> None:
    """Prune PyTorch networks and say, before and after, what the pruning costs."""


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
    arguments = sys.argv[1:]
    debug = DEBUG in arguments
    # Wherever it stands: one thinks of it at the end of a line that has failed.
    arguments = [DEBUG] * debug + [word for word in arguments if word != DEBUG]
    group = _flowing(typer.main.get_command(app))
    try:
        code = group.main(arguments, prog_name="prunus", standalone_mode=False)
        if code == STOPPED:  # what typer makes of an interrupt
            print("prunus: interrupted", file=sys.stderr)
        return code if isinstance(code, int) else 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        print("prunus: interrupted", file=sys.stderr)
        return STOPPED
    except Interrupted as stop:
        print(f"prunus: {stop}", file=sys.stderr)
        return STOPPED
    except Exception as error:
        if type(error).__name__ == "Abort":  # of older versions of typer
            print("prunus: interrupted", file=sys.stderr)
            return STOPPED
        message = _message(error)
        if message is None:
            raise
        if debug:
            traceback.print_exc(file=sys.stderr)
        if not isinstance(error, OwnError):
            message = shown(message, options_of(group, arguments))
        print(f"prunus: {message}", file=sys.stderr)
        return 2


def _flowing(command: Any) -> Any:
    """The command whose help breaks its lines where the terminal ends, not where the source does.

    Paragraphs stay apart.
    """
    if command.help:
        paragraphs = (" ".join(text.split()) for text in command.help.split("\n\n"))
        command.help = "\n\n".join(paragraphs)
    for inner in getattr(command, "commands", {}).values():
        _flowing(inner)
    return command


def _message(error: Exception) -> str | None:
    """One line for a user's mistake; None for a fault of ours."""
    formatted = getattr(error, "format_message", None)
    if formatted is not None:  # typer's own: no such option, no number, …
        usage = getattr(error, "ctx", None)
        path = usage.command_path if usage is not None else "prunus"
        if type(error).__name__ == "NoArgsIsHelpError":  # whose message is the help, printed before
            return f"Nothing was asked for. See `{path} --help`."
        return f"{str(formatted()).rstrip('.')}. See `{path} --help`."
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, OSError):
        return of_system(error)
    if isinstance(error, ValueError | TypeError | KeyError | ImportError | OwnError):
        return str(error)
    if isinstance(error, RuntimeError | MemoryError) and _expected(error):
        return str(error)
    return None


def _expected(error: Exception) -> bool:
    """True where the message is meant for the user: a refused compaction, say, or failed runs."""
    from prunus.export.check import ExportError
    from prunus.reproduce.harness import FailedRuns
    from prunus.surgery import CompactionError

    return isinstance(error, CompactionError | ExportError | FailedRuns | MemoryError)
