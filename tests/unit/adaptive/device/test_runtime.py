"""Asking the accelerator runtime in a process of its own: whatever becomes of that process is an answer."""

import json
import os
from pathlib import Path

import pytest
from scripted_drivers import RUNTIME, Card

from adaptive.device import runtime
from adaptive.device.runtime import ask_in_process

GPU = "GPU-aaaaaaaa-0000-0000-0000-000000000001"


def scripted(tmp_path: Path, *cards: dict[str, object], cuda: str | None = "13.0") -> dict[str, str]:
    """Environment of a process whose torch is the scripted runtime."""
    path = tmp_path / "runtime.json"
    path.write_text(json.dumps({"cuda": cuda, "cards": cards}))
    return {"PYTHONPATH": os.pathsep.join([str(RUNTIME), str(Path.cwd())]), "SCRIPTED_RUNTIME": str(path)}


def crashing(tmp_path: Path, code: str) -> dict[str, str]:
    """Environment of a process whose torch runs this code when it is imported."""
    (tmp_path / "torch.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path.cwd())])}


def test_a_device_is_named_and_its_memory_read(tmp_path: Path) -> None:
    answer = ask_in_process(scripted(tmp_path, Card("Card", GPU).as_json()))
    (device,) = answer.devices
    assert (answer.answered, answer.cuda_build, answer.error) == (True, "13.0", None)
    assert (device.name, device.uuid, device.opens) == ("Card", GPU.removeprefix("GPU-"), True)
    assert (device.free_bytes, device.total_bytes) == (20 * 2**30, 24 * 2**30)


def test_a_name_that_is_not_utf8_does_not_hide_a_device(tmp_path: Path) -> None:
    (device,) = ask_in_process(scripted(tmp_path, Card("not UTF-8", GPU).as_json())).devices
    assert (device.name, device.opens, device.uuid) == ("", True, GPU.removeprefix("GPU-"))


@pytest.mark.parametrize(("error", "opens"), [("out of memory", True), ("device busy or unavailable", False)])
def test_a_device_whose_memory_is_full_opens_later_and_a_broken_one_does_not(
    tmp_path: Path, error: str, opens: bool
) -> None:
    (device,) = ask_in_process(scripted(tmp_path, {**Card("Card", GPU).as_json(), "error": error})).devices
    assert (device.opens, device.free_bytes) == (opens, None)
    assert device.error == f"CUDA error: {error}"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import os; os.abort()", "ended by signal 6"),
        ("import os; os._exit(3)", "no message"),
        ("raise ImportError('libcudart.so.13: cannot open')", "libcudart.so.13: cannot open"),
        ("class version: cuda = '13'\nclass cuda:\n  def init(): raise MemoryError()", "MemoryError"),
        ("print('[1, 2]'); raise SystemExit", "failed: no message"),
        ("print('{}'); raise SystemExit", "failed: no message"),
    ],
)
def test_a_runtime_that_breaks_is_an_answer_with_its_reason(tmp_path: Path, code: str, error: str) -> None:
    answer = ask_in_process(crashing(tmp_path, code))
    assert error in (answer.error or "")
    assert answer.devices == ()


def test_a_runtime_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "ASK_SECONDS", 0.5)
    answer = ask_in_process(crashing(tmp_path, "import time; time.sleep(600)"))
    assert (answer.answered, "did not list its devices" in (answer.error or "")) == (False, True)
