"""`enable(pipe, progress=True)`: a bar of the decode beside the pipeline's own bar of steps."""

import re
from typing import Any

import pytest

import adaptive.device.probe
from adaptive.pipelines.enable import enable
from adaptive.planning.policy import RESERVE_BYTES
from adaptive.testing import ScriptedProbe


@pytest.fixture(autouse=True)
def visible(pipe: Any) -> None:
    pipe.set_progress_bar_config(mininterval=0)


def bars(text: str) -> list[str]:
    """The last state of each bar of a decode that was drawn on the terminal."""
    return [line for line in re.split(r"[\r\n]", text) if line.startswith("Decoding")]


@pytest.mark.parametrize(
    ("policy", "title"),
    [({}, "Decoding"), ({"frames_per_chunk": 2}, "Decoding 2 latent frames at a time")],
)
def test_a_bar_counts_the_frames_that_are_decoded(
    pipe: Any,
    request_arguments: dict[str, Any],
    policy: dict[str, Any],
    title: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    enable(pipe, progress=True, **policy)
    for _ in range(2):
        pipe(**request_arguments)
        drawn = bars(capsys.readouterr().err)
        assert drawn[0].startswith("Decoding:   0%")
        assert drawn[-1].startswith(f"{title}: 100%")
        assert "17/17" in drawn[-1]


def test_a_bar_says_that_a_decode_ran_out_of_memory(
    pipe: Any,
    request_arguments: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = ScriptedProbe(lambda _reads: 2**40 + RESERVE_BYTES)
    monkeypatch.setattr(adaptive.device.probe, "CpuProbe", lambda: free)
    attachment = enable(pipe, progress=True)
    up_block = pipe.vae.decoder.up_blocks[-1]
    failures = iter([MemoryError("not enough memory")])

    def fail_once(*_: Any) -> None:
        for error in failures:
            raise error

    up_block.register_forward_pre_hook(fail_once)
    pipe(**request_arguments)
    assert attachment.report.retries == 1
    drawn = bars(capsys.readouterr().err)
    assert any("out of memory, continuing" in line for line in drawn)
    assert "17/17" in drawn[-1]


def test_the_pipelines_own_setting_hides_the_bar(
    pipe: Any, request_arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    enable(pipe, progress=True)
    pipe.set_progress_bar_config(disable=True)
    pipe(**request_arguments)
    assert not bars(capsys.readouterr().err)


def test_there_is_no_bar_unless_one_is_asked_for(
    pipe: Any, request_arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    enable(pipe)
    pipe(**request_arguments)
    assert not bars(capsys.readouterr().err)
