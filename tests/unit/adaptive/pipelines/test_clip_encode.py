"""A pipeline that encodes a clip before it denoises: encoded in chunks, with the pipeline's own latents."""

from functools import partialmethod
from typing import Any

import pytest
import tiny_pipelines
import torch
from PIL import Image

from adaptive import AdaptiveEncoder, DoesNotFit, Policy, capture, enable
from adaptive.decoding.one_encode import OneEncode
from adaptive.pipelines.encode_call import AdaptiveEncodeCall

FRAMES = 17
CLIP = (1, 3, FRAMES, 32, 32)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipelines.build("WanImageToVideoPipeline")


def latents_of(pipe: Any, encode: AdaptiveEncodeCall | None = None) -> torch.Tensor:
    with capture(pipe, encode) as calls:
        pipe(
            image=Image.linear_gradient("L").resize((32, 32)).convert("RGB"),
            prompt="a bear",
            height=32,
            width=32,
            num_frames=FRAMES,
            num_inference_steps=1,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(2),
        )
    return calls[0].latents


def test_the_conditioning_clip_is_encoded_in_chunks_that_fit(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = latents_of(pipe)
    # Wan's own call cuts the clip itself, so hardly any memory lies between its ways at this size: the plan
    # is told which it may not take.
    encoder = AdaptiveEncoder(pipe.vae)
    monkeypatch.setattr(OneEncode, "plan", partialmethod(OneEncode.plan, below=FRAMES))
    encode = AdaptiveEncodeCall(pipe.vae, encoder)
    assert (latents_of(pipe, encode) - expected).abs().max() < 1e-4
    assert encode.plan is not None
    assert 1 <= encode.plan.frames_per_chunk < FRAMES
    assert "encode" not in pipe.vae.__dict__


def test_a_clip_that_fits_in_no_chunk_is_refused_before_denoising(pipe: Any) -> None:
    nothing = AdaptiveEncoder(pipe.vae, policy=Policy(budget_bytes=1))
    with pytest.raises(DoesNotFit, match="encoding"):
        latents_of(pipe, AdaptiveEncodeCall(pipe.vae, nothing))
    assert "encode" not in pipe.vae.__dict__


def test_an_enabled_pipeline_encodes_its_clip_by_plan_until_it_is_detached(pipe: Any) -> None:
    clip = torch.rand(CLIP) * 2 - 1
    with torch.no_grad():
        expected = pipe.vae.encode(clip).latent_dist.parameters
        attachment = enable(pipe)
        assert attachment.encode_plan is None
        image = pipe.vae.encode(clip[:, :, :1]).latent_dist
        assert attachment.encode_plan is None  # one image is no clip
        (found,) = pipe.vae.encode(clip, return_dict=False)
    assert image.mean.shape[2] == 1
    assert (found.parameters - expected).abs().max() < 1e-5
    assert attachment.encode_plan is not None
    assert attachment.encode_plan.video_frames == FRAMES
    attachment.detach()
    assert not {"encode", "decode"} & vars(pipe.vae).keys()


def test_a_vae_that_cannot_encode_in_chunks_is_left_to_its_own_way() -> None:
    vae = tiny_pipelines.build("HunyuanVideoImageToVideoPipeline").vae
    encode = AdaptiveEncodeCall(vae, AdaptiveEncoder(vae, policy=Policy(budget_bytes=1)))
    clip = torch.rand(1, 3, 5, 32, 32)
    with torch.no_grad():
        assert torch.equal(encode(clip).latent_dist.mean, vae.encode(clip).latent_dist.mean)
    assert encode.plan is None
