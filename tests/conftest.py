"""Every type and shape annotation of the package is checked while the tests run."""

import hypothesis
import pytest

import typechecking
from tracebacks import give_lines

typechecking.install("prunus")

hypothesis.settings.register_profile(
    "prunus",
    deadline=None,
    derandomize=True,
    max_examples=50,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # as on a busy machine
)
hypothesis.settings.load_profile("prunus")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> None:
    if call.excinfo is not None:
        give_lines(call.excinfo.value)
