"""Writes the boards' JSON files: `python docker/grafana/boards`. With --check, reports outdated files
instead.

Grafana is provisioned with the JSON, which can also be imported by hand. Edit the code in this folder instead
of the JSON.
"""

import json
import sys
from pathlib import Path

from fleet import FLEET
from memory import MEMORY
from model import board_json
from operations import OPERATIONS

FOLDER = Path(__file__).parents[1] / "dashboards"
BOARDS = {"operations.json": OPERATIONS, "memory.json": MEMORY, "fleet.json": FLEET}


def main() -> int:
    """Write or check every file; return the exit status, 1 if a checked file is outdated."""
    check_only = "--check" in sys.argv[1:]
    stale = []
    for name, board in BOARDS.items():
        path = FOLDER / name
        text = json.dumps(board_json(board), indent=1, ensure_ascii=False) + "\n"
        if check_only and (not path.exists() or path.read_text(encoding="utf-8") != text):
            stale.append(name)
        if not check_only:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.stderr.write(f"outdated: {', '.join(stale)}; run python docker/grafana/boards\n")
    return len(stale) > 0


if __name__ == "__main__":
    sys.exit(main())
