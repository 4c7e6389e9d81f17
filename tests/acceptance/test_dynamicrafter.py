"""A tiny DynamiCrafter over HTTP: from one image, between two, and in a loop, each way to decode."""

import io
from collections.abc import Iterator
from functools import cache
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from running_service import RunningService

from app.pipelines.dynamicrafter import build_tiny_pipeline

Frames = npt.NDArray[np.uint8]

ENTRY = """
[models.dynamicrafter]
pipeline = "DynamiCrafterPipeline"
source = "{folder}"
dtype = "float32"
vae_class = "AutoencoderKL"
size_multiple = 64
temporal_ratio = 1
first_frame_alone = false
inputs = ["last_image", "loop", "fs"]

[models.dynamicrafter.defaults]
width = 64
height = 64
num_frames = 16
fps = 8
num_inference_steps = 2
guidance_scale = 7.5
fs = 24

[models.dynamicrafter.limits]
max_pixels = 16384
max_frames = 16
max_steps = 50

[models.dynamicrafter.call]
eta = 1.0
guidance_rescale = 0.7
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("dynamicrafter")
    build_tiny_pipeline(512).save_pretrained(folder / "model")
    models = folder / "models.toml"
    models.write_text(ENTRY.format(folder=folder / "model"))
    environ = {"FRAMEFIT_MODELS_FILE": str(models), "FRAMEFIT_MODEL": "dynamicrafter", "OMP_NUM_THREADS": "1"}
    running = RunningService(folder / "data", environ)
    yield running
    running.stop()


def photo(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((64, 64)).save(file, "PNG")
    return file.getvalue()


@cache
def made(service: RunningService, last: bytes | None = None, **fields: Any) -> tuple[dict[str, Any], Frames]:
    """The ended job, and the frames of its video; one job for all tests that ask the same."""
    job_id = service.submit(images={} if last is None else {"last_image": last}, seed=3, **fields)["id"]
    job = service.finished(job_id)
    video = service.http.get(job["links"]["video"]).raise_for_status().content
    with av.open(io.BytesIO(video)) as file:
        return job, np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


@pytest.mark.parametrize(("last", "fields"), [(None, {}), (photo(2), {"fs": 5})])
def test_every_way_to_decode_gives_the_same_video(
    service: RunningService, last: bytes | None, fields: dict[str, Any]
) -> None:
    videos = {}
    for strategy, chunk in (("batched", {}), ("chunked", {"frames_per_chunk": 5}), ("per_frame", {})):
        job, videos[strategy] = made(service, last, decode_strategy=strategy, **chunk, **fields)
        assert job["decode"]["strategy"] == strategy
        assert job["decode"]["exact"]
    assert videos["batched"].shape == (16, 64, 64, 3)
    assert videos["batched"].std() > 5, "a blank video proves nothing"
    for frames in videos.values():
        difference = np.abs(frames.astype(int) - videos["batched"])
        # The last bits of a frame depend on how many are computed together, and what H.264 makes of them on
        # all of it.
        assert difference.mean() < 0.1
        assert difference.mean((1, 2, 3)).max() < 1, "a frame is another one"


def test_the_last_image_changes_the_video_and_is_shown_with_the_job(service: RunningService) -> None:
    alone, frames = made(service)
    between, others = made(service, photo(2))
    assert not np.array_equal(frames, others)
    assert "last_image" not in alone["links"]
    assert service.http.get(between["links"]["last_image"]).content == photo(2)
    assert between["denoise"]["encode"]["strategy"] == "batched"
    assert "encode" not in alone["denoise"], "one image leaves nothing to decide"


def test_a_job_tells_how_it_was_denoised(service: RunningService) -> None:
    told = made(service)[0]["denoise"]
    assert (told["steps"], told["guidance_passes"], told["slices"]) == (2, 1, 1)
    assert 0 < told["predicted_bytes"] <= told["budget_bytes"]


def test_a_loop_has_one_frame_less(service: RunningService) -> None:
    job, frames = made(service, loop=True)
    assert len(frames) == job["result"]["frames"] == 15
    assert job["request"]["num_frames"] == 16
