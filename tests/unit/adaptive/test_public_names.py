"""The library's front door."""

import subprocess
import sys

import pytest

import adaptive


def test_public_names_are_sorted_and_all_there() -> None:
    assert adaptive.__all__ == sorted(adaptive.__all__)
    assert {"decode", "stream_decode", "predict_peak", "plan", "capture"} <= set(adaptive.__all__)
    for name in adaptive.__all__:
        assert getattr(adaptive, name) is not None
    assert set(adaptive.__all__) <= set(dir(adaptive))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = adaptive.no_such_name


def test_the_planning_half_imports_without_torch() -> None:
    script = (
        "import sys, adaptive, adaptive.device.host, adaptive.device.nvml\n"
        "import adaptive.memory.profile, adaptive.planning.planner\n"
        "from adaptive import MemoryProfile, Policy, DoesNotFit\n"
        "from adaptive.families import traits_of\n"
        "assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules), 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
