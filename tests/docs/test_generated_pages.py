"""Pages made from the source, and numbers taken from results files, are up to date."""

import subprocess
import sys
from pathlib import Path

import error_codes
import figures
import pytest
import results

ROOT = Path(__file__).parents[2]
# Codes that Starlette's own errors get: they stand in no call of ours.
OF_THE_FRAMEWORK = {"not_found", "method_not_allowed"}


def test_generating_the_pages_again_changes_nothing() -> None:
    command = [sys.executable, "docs/generate", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["request", "job"])
def test_every_error_code_has_a_row_and_every_row_a_code(kind: str) -> None:
    rows = {row.code for row in error_codes.documented(kind)}
    used = error_codes.used(kind) | (OF_THE_FRAMEWORK if kind == "request" else set())
    assert rows == used


def test_a_row_has_the_statuses_that_its_code_is_sent_with() -> None:
    rows = {row.code: row.statuses for row in error_codes.documented("request")}
    wrong = [(code, status) for code, status in error_codes.used_statuses() if status not in rows[code]]
    assert not wrong


def test_a_figure_is_rewritten_and_an_unknown_one_is_refused() -> None:
    page = "uses **1.0**<!-- figure: ltx-chunk1-live --> MB"
    assert results.filled(page) != page
    assert results.filled(results.filled(page)) == results.filled(page)
    with pytest.raises(KeyError, match="no-such-figure"):
        results.filled("1<!-- figure: no-such-figure -->")


def test_every_figure_can_be_computed() -> None:
    assert all(figures.figure(name) for name in figures.figure_names())


def test_live_bytes_are_as_exact_as_the_pages_say() -> None:
    errors = [abs(row["error"]) for row in figures.document("prediction-cpu.json")["live"]]
    assert max(errors) < 1e-4  # "within 0.01 %"
