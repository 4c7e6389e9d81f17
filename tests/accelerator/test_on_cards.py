"""Runs the tests of `on_card/`, and those of real cards (`tests/gpu/`), on pretended cards.

Each run is a process of its own.

To run some of them by hand: `python tests/accelerator/pytest_on_cards.py tests/accelerator/on_card -k late`.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from pretended import AS_CUDA, PRIVATE_NAME, CardSpec, Machine, environment

ROOT = Path(__file__).parents[2]
ON_CARD = "tests/accelerator/on_card"
DEVICE_FIRST = sorted(
    (str(path) for path in (ROOT / ON_CARD).glob("test_*.py")),
    key=lambda path: ("test_device" not in path, path),
)
# In CI one of the property tests; `pytest_on_cards.py tests/gpu` runs all of them.
SOME = "not streams_are_as_close or (wan-2.2 and bfloat16)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "arguments"),
    [
        pytest.param(AS_CUDA, ["tests/gpu", "-k", SOME], id="the tests of real cards"),
        # The tests of the card itself come first: they count every byte of an empty card.
        pytest.param(AS_CUDA, DEVICE_FIRST, id="cards as CUDA"),
        pytest.param(
            PRIVATE_NAME,
            [f"{ON_CARD}/test_device.py", f"{ON_CARD}/test_kinds.py"],
            id="cards under another name",
        ),
    ],
)
def test_on_pretended_cards(device: str, arguments: list[str], nvml_library: Path, tmp_path: Path) -> None:
    machine = Machine.create(tmp_path / "cards", [CardSpec(), CardSpec()])
    options = ["-p", "pretended.plugin", "-p", "no:cacheprovider", "-n0", "-q", "--tb=short"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--basetemp={tmp_path / 'inner'}", *arguments],
        env=environment(machine, nvml_library, device=device),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"on pretended cards:\n{done.stdout[-20000:]}{done.stderr[-4000:]}", pytrace=False)
