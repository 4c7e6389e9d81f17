"""A small run of the chaos campaign: `tests/bench/chaos.py` has 200 cases over four families."""

import json
import subprocess
import sys
from pathlib import Path

CHAOS = Path(__file__).parents[3] / "bench" / "chaos.py"


def test_no_decode_is_lost_or_begun_again_while_free_memory_swings_and_allocations_fail(
    tmp_path: Path,
) -> None:
    command = [sys.executable, str(CHAOS), "--cases", "10", "--families", "ltx-0.9.0", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "chaos.json").read_text())["rows"]
    assert len(rows) == 10
    assert sum(row["retries"] for row in rows) > 0
    assert any(len(set(row["sizes"])) > 1 for row in rows)
