"""pytest on two pretended cards:

    python tests/accelerator/pytest_on_cards.py tests/gpu
    python tests/accelerator/pytest_on_cards.py --pretended-name tests/accelerator/on_card/test_device.py

With `--pretended-name` the device is not CUDA, but torch's PrivateUse1.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import nvml_stub  # noqa: E402
from pretended import AS_CUDA, PRIVATE_NAME, CardSpec, Machine, environment, unavailable  # noqa: E402


def main(arguments: list[str]) -> int:
    """Run pytest with these arguments; returns its exit status."""
    if reason := unavailable():
        raise SystemExit(reason)
    named = "--pretended-name" in arguments
    arguments = [each for each in arguments if each != "--pretended-name"]
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine.create(Path(folder, "cards"), [CardSpec(), CardSpec()])
        environ = environment(
            machine, nvml_stub.build(Path(folder)), device=PRIVATE_NAME if named else AS_CUDA
        )
        command = [sys.executable, "-m", "pytest", "-p", "pretended.plugin", "-n0", *arguments]
        return subprocess.run(command, env=environ, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
