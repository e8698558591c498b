"""A pytest plugin that runs a sample: tests in an order drawn from a seed, and none begun after a time.

    pytest -m proof --sample-seed SEED --begin-none-after SECONDS --record FILE

What the time leaves undone is no failure. FILE says after each test how far the run is, should it be cut off.
"""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("sample")
    group.addoption("--sample-seed", metavar="SEED", help="run the tests in an order drawn from SEED")
    group.addoption("--begin-none-after", type=float, metavar="SECONDS", help="leave out tests that come later")
    group.addoption("--record", type=Path, metavar="FILE", help="after each test, write to FILE how far the run is")


def pytest_configure(config: pytest.Config) -> None:
    if any(config.getoption(name) is not None for name in ("--sample-seed", "--begin-none-after", "--record")):
        config.pluginmanager.register(Sample(config), "sample")


class Sample:
    """Shuffles, watches the clock, and counts."""

    def __init__(self, config: pytest.Config) -> None:
        self.seed: str | None = config.getoption("--sample-seed")
        self.limit: float = config.getoption("--begin-none-after") or float("inf")
        self.path: Path | None = config.getoption("--record")
        self.started = time.monotonic()
        self.counts = {"total": 0, "run": 0, "passed": 0, "skipped": 0, "failed": 0}
        self.failures: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """After `-m` chose: shuffles whole modules, and the tests within each, so that fixtures are made once."""
        if self.seed is not None:
            random.Random(self.seed).shuffle(items)
            rank: dict[Path, int] = {}
            for item in items:
                rank.setdefault(item.path, len(rank))
            items.sort(key=lambda item: rank[item.path])

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.counts["total"] = len(session.items)
        self._write()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self) -> bool | None:
        """True, which ends the matter, for a test that would begin too late."""
        return True if time.monotonic() - self.started > self.limit else None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
        report = yield
        if report.failed and item.nodeid not in self.failures:
            self.failures.append(item.nodeid)
            self.counts["failed"] += 1
        if report.when == "call" and report.passed:
            self.counts["passed"] += 1
        if report.skipped:
            self.counts["skipped"] += 1
        if call.when == "teardown":
            self.counts["run"] += 1
        self._write()
        return report

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        run, total = self.counts["run"], self.counts["total"]
        terminalreporter.write_line(f"sample: {run} of {total} tests ran, in an order drawn from {self.seed}")

    def _write(self) -> None:
        if self.path is not None:
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps(self.counts | {"failures": self.failures}))
            temporary.replace(self.path)
