"""`adaptive.enable(pipe)`: the pipeline's own call, decoded in chunks, with the same frames."""

from typing import Any

import pytest
import torch

from adaptive.pipelines.enable import enable


@pytest.mark.parametrize(
    ("policy", "strategy"),
    [({}, "batched"), ({"frames_per_chunk": 2}, "chunked"), ({"strategy": "per_frame"}, "per_frame")],
)
def test_an_enabled_pipeline_gives_the_frames_it_gave_before(
    pipe: Any, request_arguments: dict[str, Any], policy: dict[str, Any], strategy: str
) -> None:
    expected = pipe(**request_arguments, output_type="pt").frames
    attachment = enable(pipe, **policy)
    request_arguments["generator"].manual_seed(7)
    frames = pipe(**request_arguments, output_type="pt").frames
    assert (frames - expected).abs().max() < 1e-4
    assert attachment.report.strategy == strategy
    assert attachment.report.video_frames == 17


def test_enabling_again_replaces_the_policy_and_detaching_ends_it(
    pipe: Any, request_arguments: dict[str, Any]
) -> None:
    first = enable(pipe, strategy="per_frame")
    second = enable(pipe, frames_per_chunk=2)
    pipe(**request_arguments)
    assert second.report.strategy == "chunked"
    with pytest.raises(RuntimeError):
        _ = first.report
    second.detach()
    assert "decode" not in pipe.vae.__dict__
    first.detach()
    assert torch.is_tensor(pipe.vae.decode(torch.zeros(1, 16, 1, 2, 2)).sample)


def test_an_unknown_policy_is_refused(pipe: Any) -> None:
    with pytest.raises(TypeError, match="frames_per_chnk"):
        enable(pipe, frames_per_chnk=2)
    assert "decode" not in pipe.vae.__dict__
