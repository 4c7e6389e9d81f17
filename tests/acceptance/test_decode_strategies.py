"""Four memory budgets, four ways to decode, one video: in the job, the events, the metrics, the pixels."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from running_service import RunningService, StartService
from typer.testing import CliRunner
from waiting import wait_for

from adaptive.pipelines.recorded_call import load_calls
from adaptive.planning.planner import Policy, rungs
from adaptive.types import LatentShape, Strategy, VideoShape
from app.cli import app as command
from app.models import profiles
from app.models.entries import load_models

VIDEO = {"width": 256, "height": 256, "num_frames": 33, "num_inference_steps": 1, "seed": 5}


def budgets(service: RunningService) -> dict[str, int]:
    """For each strategy the bytes that are just enough for it and not for the next faster one."""
    profile = profiles.load(service.settings, load_models(service.settings)["tiny"])
    assert profile is not None
    shape: LatentShape = profile.traits.latent_shape(VideoShape(33, 256, 256))
    sizes = {"batched": 5, "chunked": 2, "per_frame": 1}
    found = {name: profile.estimate(shape, size).upper_bytes for name, size in sizes.items()}
    strips = [rung for rung in rungs(profile, shape, 0, Policy()) if rung.strategy is Strategy.TILED]
    return {**found, "tiled": strips[-1].predicted.upper_bytes}


@pytest.mark.parametrize("strategy", ["batched", "chunked", "per_frame", "tiled"])
def test_a_budget_chooses_the_strategy_and_the_frames_stay_the_same(
    start_service: StartService, strategy: str, tmp_path: Path
) -> None:
    service = start_service()  # one that has learned nothing yet: margins are those that the budgets are from
    budget = budgets(service)[strategy]
    reason = "fastest" if strategy == "batched" else "fastest_that_fits"
    plans = partial(service.counted, "framefit_decode_strategy_total", reason=reason, strategy=strategy)
    before = plans()
    job_id = service.submit(**VIDEO, memory_budget_bytes=budget)["id"]
    job = service.finished(job_id)
    assert job["decode"]["strategy"] == strategy
    assert job["decode"]["exact"] is True
    (planned,) = [event for event in service.events(job_id) if event.kind == "plan"]
    assert planned.data["strategy"] == strategy
    assert planned.data["budget_bytes"] <= budget
    wait_for(lambda: plans() == before + 1, 120)

    previewed_before_decoding(service, job)
    latents = service.settings.jobs_dir / job_id / "latents.safetensors"
    # What the job has taught may be a larger margin than the budget was made for: most are asked for by name.
    options = ["--memory-budget", str(2 * budget)] if strategy == "batched" else ["--strategy", strategy]
    frames = redecoded(service, latents, tmp_path / "frames.safetensors", options)
    (call,) = load_calls(latents)
    with torch.no_grad():
        expected = load_vae(service).decode(call.latents, *call.args, **call.kwargs, return_dict=False)[0]
    assert (frames - expected).abs().max() < 1e-4


def previewed_before_decoding(service: RunningService, job: dict[str, Any]) -> None:
    """First, last and frames between, as many as time allowed, were shown before the first chunk was decoded;
    a thumbnail remains.
    """
    kinds = service.kinds(job["id"])
    assert kinds.index("chunk") > max(index for index, kind in enumerate(kinds) if kind == "preview")
    told = [event.data["frame"] for event in service.events(job["id"]) if event.kind == "preview"]
    assert set(told) <= {0, 1, 9, 17, 25}
    assert told[:2] == [0, 25][: len(told)]
    for link in (*job["links"]["previews"], job["links"]["thumbnail"]):
        assert service.http.get(link).raise_for_status().content.startswith(b"\xff\xd8")


def redecoded(service: RunningService, latents: Path, out: Path, options: list[str]) -> torch.Tensor:
    """The job's latents decoded again by `framefit decode`."""
    from safetensors.torch import load_file

    arguments = ["decode", str(latents), "-o", str(out), *options, "--model", "tiny"]
    result = CliRunner().invoke(command, [*arguments, "--data-dir", str(service.data_dir)])
    assert result.exit_code == 0, result.output
    return load_file(out)["frames"]


def load_vae(service: RunningService) -> Any:
    from diffusers import AutoencoderKLLTXVideo

    return AutoencoderKLLTXVideo.from_pretrained(service.data_dir / "models" / "tiny", subfolder="vae").eval()
