"""Give a line to each entry of a traceback that has none, on which pytest's report fails."""

from types import TracebackType


def give_lines(error: BaseException | None, seen: frozenset[int] = frozenset()) -> None:
    """Repair the traceback of an exception, and those of its causes, in place.

    Some instructions belong to no line, such as the jump that closes a loop. A signal raises
    wherever it finds the interpreter, so a test stopped by its time limit may end there, with
    `tb_lineno` None. pytest subtracts one from it, raises, and runs no further test.
    """
    if error is None or id(error) in seen:
        return
    trace = error.__traceback__
    if trace is not None and trace.tb_lineno is None:
        error.__traceback__ = trace = _with_line(trace)
    while trace is not None:
        if trace.tb_next is not None and trace.tb_next.tb_lineno is None:
            trace.tb_next = _with_line(trace.tb_next)
        trace = trace.tb_next
    for other in (error.__cause__, error.__context__):
        give_lines(other, seen | {id(error)})


def _with_line(trace: TracebackType) -> TracebackType:
    first = trace.tb_frame.f_code.co_firstlineno
    return TracebackType(trace.tb_next, trace.tb_frame, trace.tb_lasti, first)
