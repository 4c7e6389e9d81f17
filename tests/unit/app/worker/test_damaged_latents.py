"""Saved latents that were changed, or are not the job's, are told and made anew; they give no other video."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import tiny_pipelines
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from served_model import ServedModel, served_model

from adaptive.pipelines.recorded_call import RecordedClip, load_clip, save_calls

LTX = "LTXImageToVideoPipeline"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    folder = tmp_path_factory.mktemp("served")
    tiny_pipelines.build(LTX).save_pretrained(folder / "model")
    with served_model(folder / "data", folder / "model") as running:
        yield running


def frames_of(video: bytes) -> NDArray[np.float64]:
    with av.open(io.BytesIO(video)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]).astype(float)


def flip_a_byte(path: Path, _good: RecordedClip) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # the last bits of a number: a video that looks almost the same
    path.write_bytes(content)


def flip_a_byte_of_the_header(path: Path, _good: RecordedClip) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"0.latents", b"0.latentz"))
    assert path.read_bytes() != content


def cut_off(path: Path, _good: RecordedClip) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def of_another_model(path: Path, good: RecordedClip) -> None:
    latents = good.calls[0].latents
    save_calls([replace(good.calls[0], latents=torch.cat([latents, latents], 1))], path)


def of_another_size(path: Path, good: RecordedClip) -> None:
    latents = good.calls[0].latents
    save_calls([replace(good.calls[0], latents=torch.cat([latents, latents], 4))], path)


def of_another_length(path: Path, good: RecordedClip) -> None:
    latents = good.calls[0].latents
    save_calls([replace(good.calls[0], latents=torch.cat([latents, latents], 2), keep=None)], path)


def without_a_call(path: Path, _good: RecordedClip) -> None:
    save_calls([], path)


def with_arguments_that_the_decode_does_not_take(path: Path, good: RecordedClip) -> None:
    save_calls([replace(good.calls[0], kwargs={**good.calls[0].kwargs, "nonesuch": torch.ones(3)})], path)


DAMAGES = [
    flip_a_byte,
    flip_a_byte_of_the_header,
    cut_off,
    of_another_model,
    of_another_size,
    of_another_length,
    without_a_call,
    with_arguments_that_the_decode_does_not_take,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=[one.__name__ for one in DAMAGES])
def test_latents_that_are_not_the_jobs_are_denoised_again(
    damage: Callable[[Path, RecordedClip], None], served: ServedModel
) -> None:
    job_id = served.submit(decode_strategy="batched")  # chunks of other sizes may round other bits
    served.run_next()
    assert served.job(job_id)["status"] == "succeeded"
    video = frames_of(served.http.get(f"/jobs/{job_id}/video").content)
    path = served.settings.jobs_dir / job_id / "latents.safetensors"
    good = load_clip(path)
    damage(path, good)
    before = len(served.events("latents_unreadable"))

    assert served.http.post(f"/jobs/{job_id}/redecode").status_code == 202
    served.run_next()
    job = served.job(job_id)
    assert job["status"] == "succeeded", job["error"]
    assert len(served.events("latents_unreadable")) == before + 1
    assert torch.equal(load_clip(path).calls[0].latents, good.calls[0].latents), "denoised again"
    # Not compared byte for byte: a rare decode of the same latents rounds a few pixels to the next of 255
    # shades.
    again = frames_of(served.http.get(f"/jobs/{job_id}/video").content)
    assert np.abs(again - video).mean() < 3


def test_latents_of_an_earlier_version_have_no_checksum_and_are_decoded(served: ServedModel) -> None:
    job_id = served.submit()
    served.run_next()
    path = served.settings.jobs_dir / job_id / "latents.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    assert len(metadata.pop("sha256")) == 64
    save_file(load_file(path), path, metadata)
    before = len(served.events("latents_unreadable"))
    assert served.http.post(f"/jobs/{job_id}/redecode").status_code == 202
    served.run_next()
    assert served.job(job_id)["status"] == "succeeded"
    assert len(served.events("latents_unreadable")) == before
