"""Fixtures shared by every test folder; this folder is on the path, so that tests import `nvml_stub`.

In CI (the environment variable `CI` is set) a skipped test fails the run unless its reason is on the list in
.ci/allowed-skips.txt: a missing package must not hide tests.
"""

import gc
import logging
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import nvml_stub
import pytest

from adaptive.device.host import freeze_garbage_collection
from app.service.logs import OWN_LOGGERS

# The tests start hundreds of processes. With this variable, each would compile 190 files of the project.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

SHORT_FILES = Path(__file__).parent / "unit" / "app" / "store"  # each takes some seconds
ALLOWED_SKIPS = Path(__file__).parents[1] / ".ci" / "allowed-skips.txt"


def unexpected_skips(reasons: list[str]) -> list[str]:
    """The reasons that are not on the list, each once."""
    lines = ALLOWED_SKIPS.read_text().splitlines()
    allowed = tuple(line for line in lines if line and not line.startswith("#"))
    return sorted({reason for reason in reasons if not reason.startswith(allowed)})


def skip_reasons(config: pytest.Config) -> list[str]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter else []
    return [str(report.longrepr[2]).removeprefix("Skipped: ") for report in reports if report.longrepr]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    is_controller = not hasattr(session.config, "workerinput")
    if is_controller and os.environ.get("CI") and unexpected_skips(skip_reasons(session.config)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    unexpected = unexpected_skips(skip_reasons(config)) if os.environ.get("CI") else []
    for reason in unexpected:
        terminalreporter.write_line(f"SKIP NOT ALLOWED IN CI: {reason} (see .ci/allowed-skips.txt)", red=True)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    gc.disable()  # the 800,000 objects of torch and diffusers are no garbage
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # A long file at the end would leave the other cores idle.
    items.sort(key=lambda item: item.path.is_relative_to(SHORT_FILES))


def pytest_collection_finish() -> None:
    freeze_garbage_collection()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or item.path != nextitem.path:
        freeze_garbage_collection()  # libraries, too, that this file's tests have imported


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the stub NVIDIA driver, `libnvidia-ml.so.1`, freshly compiled."""
    return nvml_stub.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that runs in the test's own process sets up logging for all tests after it."""
    loggers = [logging.getLogger(), *map(logging.getLogger, OWN_LOGGERS)]
    levels = [logger.level for logger in loggers]
    handlers = list(loggers[0].handlers)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    for handler in list(loggers[0].handlers):
        if type(handler) is logging.StreamHandler and handler not in handlers:
            loggers[0].removeHandler(handler)
