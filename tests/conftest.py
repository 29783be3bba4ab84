"""Every type and shape annotation of the package is checked while the tests run."""

import gc
import os

import hypothesis
import pytest

import browser
import typechecking
from tracebacks import give_lines

gc.disable()  # until all tests are collected: what is made till then stays
typechecking.install("prunus")

from prunus.calibration import STATISTICS  # noqa: E402 after the checks are on
from prunus.presets import PRESETS  # noqa: E402
from prunus.surgery.attributes import ROWS  # noqa: E402
from prunus.views import VIEWS  # noqa: E402

os.environ.pop("COLUMNS", None)  # which pytest's workers set; tests of widths set their own

TABLES = {"views": VIEWS, "attributes": ROWS, "statistics": STATISTICS, "recipes": PRESETS}

hypothesis.settings.register_profile(
    "prunus",
    deadline=None,
    derandomize=True,
    max_examples=50,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # as on a busy machine
)
hypothesis.settings.load_profile("prunus")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Look for no garbage among modules and tests, which is half the time of collecting them."""
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture(scope="session")
def chromium():
    """A browser, whose start takes a second, for all tests of this process."""
    if browser.find() is None:
        pytest.skip("no Chromium is installed")
    with browser.browser() as opened:
        yield opened


@pytest.fixture
def tab(chromium):
    """Its tab, without what another test downloaded."""
    for file in chromium.downloads.iterdir():
        file.unlink()
    return chromium


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> None:
    if call.excinfo is not None:
        give_lines(call.excinfo.value)


@pytest.fixture(autouse=True)
def tables_stay():
    """A test that registers something takes it back: another one would see it."""
    before = {name: dict(table) for name, table in TABLES.items()}
    yield
    changed = [name for name, table in TABLES.items() if dict(table) != before[name]]
    for name in changed:
        TABLES[name].clear()
        TABLES[name].update(before[name])
    assert not changed, f"left in the tables of {', '.join(changed)} by this test"
