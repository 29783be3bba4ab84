"""The `prunus` program: its subcommands, and one clear line for every user's mistake."""

import sys

import typer

from prunus.cli import bench, certify, demo, listing, plan, prune, report, reproduce, theory

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
app.command("report")(report.report)
app.command("reproduce")(reproduce.reproduce)
app.command("list")(listing.listing)
app.add_typer(theory.app, name="theory")


def main() -> None:
    """Run the program; a user's mistake costs one line on standard error and exit code 2."""
    try:
        app()
    except (ValueError, TypeError, KeyError, OSError, ImportError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"prunus: {message}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        if not _expected(error):
            raise
        print(f"prunus: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("prunus: interrupted", file=sys.stderr)
        sys.exit(130)


def _expected(error: Exception) -> bool:
    """True where the message is meant for the user: a refused compaction, say, or failed runs."""
    from prunus.reproduce.harness import FailedRuns
    from prunus.surgery import CompactionError

    return isinstance(error, CompactionError | FailedRuns | MemoryError)
