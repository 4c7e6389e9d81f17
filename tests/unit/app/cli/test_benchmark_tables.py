"""The benchmark of emulated cards: its own code on the CPU with tiny VAEs, and the table made of it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import app
from app.cli.benchmark_tables import FRAMEFIT, CaseResults, group_by_case, side_by_side, summary_line

BENCH = Path(__file__).parents[3] / "bench" / "gpu.py"


def row(way: str, seconds: float | None, **extra: Any) -> dict[str, Any]:
    done = {"ok": True, "seconds": seconds} if seconds else {"ok": False, "error": "out_of_memory"}
    return {"card_gib": 8, "case": "ltx", "way": way, **done, **extra}


def test_ours_must_succeed_wherever_anything_does_and_be_the_fastest_or_nearly() -> None:
    fast = CaseResults(8, "a", (row("diffusers default", 1.0), row("tiling", 3.0), row(FRAMEFIT, 1.04)))
    slow = CaseResults(8, "b", (row("diffusers default", 1.0), row("tiling", 3.0), row(FRAMEFIT, 1.5)))
    only = CaseResults(8, "c", (row("diffusers default", None), row("tiling", None), row(FRAMEFIT, 2.0)))
    lost = CaseResults(8, "d", (row("diffusers default", None), row("tiling", 3.0), row(FRAMEFIT, None)))
    nobody = CaseResults(8, "e", (row("diffusers default", None), row(FRAMEFIT, None)))
    assert [each.lost for each in (fast, slow, only, lost, nobody)] == [False, False, False, True, False]
    assert only.cells()[2:6] == ("out of memory", "-", "2.00 s", "1.00")
    assert "succeeded in 3 of the 4 cases" in summary_line([fast, slow, only, lost, nobody])
    assert summary_line([fast, slow, only, lost, nobody]).endswith("within 5% of the fastest, in 2")


def test_two_documents_are_set_side_by_side_by_card_and_case() -> None:
    one, other = (CaseResults(8, "a", (row(FRAMEFIT, seconds),)) for seconds in (2.0, 3.0))
    missing = CaseResults(12, "a", (row(FRAMEFIT, 1.0),))
    assert side_by_side([one, missing], [other]) == [
        ("8 GiB", "a", "2.00 s", "3.00 s", "1.50"),
        ("12 GiB", "a", "1.00 s", "-", "-"),
    ]


@pytest.mark.parametrize("text", ["[]", "{}", "no json"])
def test_a_file_that_is_no_benchmark_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.json"
    path.write_text(text)
    done = CliRunner().invoke(app, ["bench", "compare", str(path)])
    assert done.exit_code == 2


@pytest.mark.slow
def test_the_benchmark_runs_on_the_cpu_and_ours_fits_where_one_call_does_not(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--tiny", "--cases", "sd-tiny", "--cards", "0.05", "--repeats", "1"]
    command = [
        sys.executable,
        str(BENCH),
        *options,
        "--ways",
        "diffusers default",
        FRAMEFIT,
        "--out",
        str(out),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=400)
    document = json.loads(out.read_text())
    (results,) = group_by_case(document)
    default, mine = results.row_of("diffusers default"), results.row_of(FRAMEFIT)
    assert default is not None
    assert mine is not None
    assert default["error"] == "out_of_memory"
    assert mine["frames"] == 8
    assert mine["plan"]["exact"] is True
    assert document["stamp"]["torch"]
    shown = CliRunner().invoke(app, ["bench", "compare", str(out), "--markdown"])
    assert "| 0.05 GiB | sd-tiny | out of memory |" in shown.stdout
