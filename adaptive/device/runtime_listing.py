"""The program that asks torch which CUDA devices it can open: one line of JSON on standard output.

Owns the calls of torch that list, name and open devices. `adaptive.device.runtime` starts it and reads the
line; its `RuntimeDevice` describes the fields. Every failure is an answer.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def listing() -> dict[str, Any]:
    """The answer: torch's CUDA version, the devices, and why there are none."""
    # torch would otherwise count devices through NVML, which is what is in doubt.
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    answer: dict[str, Any] = {"cuda_build": None, "error": None, "devices": []}
    try:
        import torch

        answer["cuda_build"] = torch.version.cuda
        if torch.version.cuda is None:
            answer["error"] = "torch was built without CUDA"
            return answer
        # Raises with CUDA's own reason. Afterwards CUDA counts devices, not NVML.
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch's
        answer["devices"] = [_device(torch, ordinal) for ordinal in range(torch.cuda.device_count())]
    except Exception as error:
        answer["error"] = _said(error)
    return answer


def _device(torch: Any, ordinal: int) -> dict[str, Any]:
    properties, _ = _tried(lambda: torch.cuda.get_device_properties(ordinal))
    memory, unopened = _tried(lambda: torch.cuda.mem_get_info(ordinal))
    uuid = str(_tried(lambda: properties.uuid)[0] or "")
    return {
        "ordinal": ordinal,
        "uuid": uuid.removeprefix("GPU-").removeprefix("MIG-"),
        "name": str(_tried(lambda: properties.name)[0] or ""),  # fails where the driver's text is not UTF-8
        "total_bytes": int(_tried(lambda: properties.total_memory)[0] or (memory[1] if memory else 0)),
        "free_bytes": int(memory[0]) if memory else None,
        "error": unopened,
    }


def _tried(question: Callable[[], Any]) -> tuple[Any, str | None]:
    """The answer and None, or None and why there is none."""
    try:
        return question(), None
    except Exception as error:
        return None, _said(error)


def _said(error: Exception) -> str:
    """The first line of what a failure says; CUDA's go on with advice on debugging."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


if __name__ == "__main__":
    sys.stdout.write(json.dumps(listing()) + "\n")
