"""The pipeline as its callers use it, on tiny models of all three kinds."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from PIL import Image

from adaptive import AdaptiveEncoder, Policy
from app.pipelines.dynamicrafter import DEFAULTS, DynamiCrafterPipeline, build_tiny_pipeline
from app.pipelines.dynamicrafter.defaults import SIZE_MULTIPLE
from app.pipelines.dynamicrafter.networks.attention import ImageCrossAttention

SIZE = {"height": 64, "width": 64}
# Of whole runs: untrained weights and a guidance of 7.5 amplify the last bits.
ROUNDING = 1e-3


def _photo(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def _run(pipeline: DynamiCrafterPipeline, **arguments: Any) -> torch.Tensor:
    settings: dict[str, Any] = {
        "image": _photo(),
        "prompt": "a bear",
        "num_inference_steps": 2,
        "output_type": "pt",
        "generator": torch.Generator().manual_seed(0),
    }
    frames = pipeline(**(settings | SIZE | arguments)).frames
    assert isinstance(frames, torch.Tensor)
    return frames


def _difference(first: torch.Tensor, second: torch.Tensor) -> float:
    assert first.shape == second.shape
    return float((first - second).abs().max())


@pytest.fixture
def contexts(tiny: DynamiCrafterPipeline) -> Iterator[list[dict[str, Any]]]:
    """Inputs of every call of the UNet."""
    seen: list[dict[str, Any]] = []

    def note(_module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(dict(zip(("sample", "timestep", "context"), positional, strict=True)) | named)

    handle = tiny.unet.register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    handle.remove()


@pytest.mark.parametrize("resolution", DEFAULTS)
def test_every_model_makes_sixteen_frames(resolution: int) -> None:
    pipeline = build_tiny_pipeline(resolution)
    pipeline.set_progress_bar_config(disable=True)
    frames = _run(pipeline)
    assert frames.shape == (1, 16, 3, 64, 64)
    assert torch.isfinite(frames).all()
    assert frames.std() > 0.01
    assert _difference(frames, _run(pipeline)) == 0
    assert _difference(frames, _run(pipeline, generator=torch.Generator().manual_seed(1))) > 0.01
    assert _difference(frames, _run(pipeline, prompt="a cat")) > 0
    assert _difference(frames, _run(pipeline, image=_photo(1))) > 0.01


def test_published_values_are_used_where_none_are_given(tiny: DynamiCrafterPipeline) -> None:
    explicit = {"num_frames": 16, "guidance_scale": 7.5, "guidance_rescale": 0.7, "fs": 24, "eta": 1.0}
    assert _difference(_run(tiny), _run(tiny, **explicit)) == 0
    for name, value in (("guidance_rescale", 0.0), ("fs", 10), ("eta", 0.0), ("guidance_scale", 3.0)):
        assert _difference(_run(tiny), _run(tiny, **(explicit | {name: value}))) > 0, name
    assert (tiny.defaults.width, tiny.defaults.height) == (512, 320)


def test_every_default_size_is_one_the_model_takes() -> None:
    for resolution, defaults in DEFAULTS.items():
        assert defaults.width == defaults.resolution == resolution
        assert defaults.width % SIZE_MULTIPLE == defaults.height % SIZE_MULTIPLE == 0
        assert defaults.fs_recommended[0] <= defaults.fs <= defaults.fs_recommended[1]


@pytest.mark.parametrize("chunk", [1, 3, 5, 16, 100])
@torch.no_grad()
def test_chunked_encoding_and_decoding_equal_batched(tiny: DynamiCrafterPipeline, chunk: int) -> None:
    images = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def encode(chunk_size: int | None) -> torch.Tensor:
        return tiny.encode_latents(images, torch.Generator().manual_seed(2), chunk_size)

    latents = encode(None)
    assert _difference(latents, encode(chunk)) < 1e-5
    clip = latents.transpose(0, 1)[None]
    assert _difference(tiny.decode_latents(clip), tiny.decode_latents(clip, chunk)) < 1e-5


@pytest.mark.parametrize("chunk", [1, 5])
def test_chunk_sizes_reach_every_call_of_the_vae(
    tiny: DynamiCrafterPipeline, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, list[int]] = {"encode": [], "decode": []}
    originals = {name: getattr(tiny.vae, name) for name in sizes}
    for name in sizes:

        def note(frames: torch.Tensor, name: str = name, **named: Any) -> Any:
            sizes[name].append(len(frames))
            return originals[name](frames, **named)

        monkeypatch.setattr(tiny.vae, name, note)
    _run(tiny, last_image=_photo(1), decode_chunk_size=chunk, encode_chunk_size=chunk)
    expected = {1: ([1, 1], [1] * 16), 5: ([2], [5, 5, 5, 1])}[chunk]
    assert (sizes["encode"], sizes["decode"]) == expected


def test_how_many_images_are_encoded_at_a_time_follows_the_memory_that_is_free(
    tiny: DynamiCrafterPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = tiny.vae.encode

    def note(frames: torch.Tensor, **named: Any) -> Any:
        sizes.append(len(frames))
        return original(frames, **named)

    monkeypatch.setattr(tiny.vae, "encode", note)
    images = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    encoder = AdaptiveEncoder(tiny.vae, policy=Policy(budget_bytes=2**40))
    latents = {}
    for strategy, below in (("batched", 17), ("chunked", 6), ("per_frame", 2)):
        needed = encoder.plan((1, 3, 16, 64, 64), below=below).predicted_peak_bytes
        monkeypatch.setattr(tiny, "_encode_policy", Policy(budget_bytes=needed))
        with torch.no_grad():
            latents[strategy] = tiny.encode_latents(images, torch.Generator().manual_seed(2))
        assert tiny.encode_plan is not None
        assert tiny.encode_plan.as_json()["strategy"] == strategy
    assert sizes == [16, 4, 4, 4, 4, *[1] * 16]
    assert _difference(latents["batched"], latents["chunked"]) < 1e-5
    assert _difference(latents["batched"], latents["per_frame"]) < 1e-5


def test_two_guidance_passes_give_the_same_frames(
    tiny: DynamiCrafterPipeline, contexts: list[dict[str, Any]]
) -> None:
    once = _run(tiny)
    assert [len(call["sample"]) for call in contexts] == [2, 2]
    contexts.clear()
    twice = _run(tiny, guidance_passes=2)
    assert [len(call["sample"]) for call in contexts] == [1, 1, 1, 1]
    assert _difference(once, twice) < ROUNDING


@pytest.mark.parametrize("slices", ["auto", "max", 3, 1000])
def test_attention_slices_give_the_same_frames(tiny: DynamiCrafterPipeline, slices: str | int) -> None:
    whole = _run(tiny)
    tiny.enable_attention_slicing(slices)
    sliced = _run(tiny)
    assert _difference(whole, sliced) < ROUNDING
    tiny.disable_attention_slicing()
    assert _difference(whole, _run(tiny)) == 0


@pytest.mark.parametrize("slices", ["most", 0, -1])
def test_impossible_attention_slices_are_refused(tiny: DynamiCrafterPipeline, slices: str | int) -> None:
    with pytest.raises(ValueError, match=f"attention slice is {slices!r}"):
        tiny.enable_attention_slicing(slices)


def test_guidance_compares_with_no_prompt_and_a_grey_image_but_the_same_image_latent(
    tiny: DynamiCrafterPipeline, contexts: list[dict[str, Any]]
) -> None:
    _run(tiny, num_inference_steps=1)
    call = contexts[0]
    uncond, cond = call["context"]
    with torch.no_grad():
        empty = tiny.encode_prompt("")[0]
        grey = tiny.encode_image(torch.zeros(1, 3, 64, 64))[0]
        prompt = tiny.encode_prompt("a bear")[0]
    torch.testing.assert_close(uncond, torch.cat([empty, grey]))
    torch.testing.assert_close(cond[:77], prompt)
    assert _difference(cond[77:], grey) > 0
    assert torch.equal(*call["sample"])
    latents = call["sample"][0, 4:]
    assert all(torch.equal(latents[:, 0], latents[:, frame]) for frame in range(16))
    assert call["fs"].tolist() == [24, 24]


def test_without_guidance_the_unconditional_prediction_is_not_made(
    tiny: DynamiCrafterPipeline, contexts: list[dict[str, Any]]
) -> None:
    _run(tiny, guidance_scale=1.0)
    assert [len(call["sample"]) for call in contexts] == [1, 1]


def test_interpolation_shows_the_model_the_two_images_in_the_outer_frames_only(
    tiny: DynamiCrafterPipeline, contexts: list[dict[str, Any]]
) -> None:
    frames = _run(tiny, last_image=_photo(1), generator=None, latents=torch.zeros(1, 4, 16, 8, 8))
    assert frames.shape[1] == 16
    latents = contexts[0]["sample"][0, 4:]
    assert latents[:, 0].abs().sum() > 0
    assert not latents[:, 1:15].any()
    assert _difference(latents[:, 0], latents[:, 15]) > 1e-3
    assert contexts[0]["fs"].tolist() == [5, 5]
    with torch.no_grad():
        first = tiny.encode_image(torch.from_numpy(np.array(_photo())).permute(2, 0, 1)[None] / 127.5 - 1)
    torch.testing.assert_close(contexts[0]["context"][1, 77:], first[0])


@pytest.mark.parametrize(("resolution", "alone", "between"), [(256, 3, 3), (512, 24, 5), (1024, 10, 10)])
def test_every_model_gets_its_own_frame_rate(resolution: int, alone: int, between: int) -> None:
    pipeline = build_tiny_pipeline(resolution)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.config.default_fs == alone
    told: list[list[int]] = []
    pipeline.unet.register_forward_pre_hook(
        lambda _module, _inputs, named: told.append(named["fs"].tolist()), with_kwargs=True
    )
    _run(pipeline, num_inference_steps=1, guidance_scale=1.0)
    _run(pipeline, num_inference_steps=1, guidance_scale=1.0, last_image=_photo(1))
    assert told == [[alone], [between]]


def test_a_loop_ends_where_it_began_and_shows_that_once(
    tiny: DynamiCrafterPipeline, contexts: list[dict[str, Any]]
) -> None:
    assert _run(tiny, loop=True).shape == (1, 15, 3, 64, 64)
    latents = contexts[0]["sample"][0, 4:]
    assert torch.equal(latents[:, 0], latents[:, 15])
    assert latents[:, 0].abs().sum() > 0
    assert not latents[:, 1:15].any()


def test_several_prompts_make_several_videos_each_with_its_own_generator(tiny: DynamiCrafterPipeline) -> None:
    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    images = [_photo(1), _photo(2)]
    settings = {"last_image": _photo(3), "num_inference_steps": 1}
    both = _run(tiny, image=images, prompt=["a bear", "a cat"], generator=generators(5, 6), **settings)
    assert both.shape[:2] == (2, 16)
    second = _run(tiny, image=images[1], prompt="a cat", generator=generators(6), **settings)
    assert _difference(both[1:], second) < ROUNDING


def test_prompts_can_be_encoded_beforehand(tiny: DynamiCrafterPipeline) -> None:
    expected = _run(tiny, negative_prompt="blurry")
    with torch.no_grad():
        embeds, negative = tiny.encode_prompt("a bear"), tiny.encode_prompt("blurry")
    tiny.text_encoder = None
    found = _run(tiny, prompt="", prompt_embeds=embeds, negative_prompt_embeds=negative)
    assert _difference(expected, found) == 0
    with pytest.raises(TypeError):
        _run(tiny)


def test_more_frames_than_the_projector_has_queries_share_all_image_tokens(
    tiny: DynamiCrafterPipeline, contexts: list[dict[str, Any]]
) -> None:
    assert _run(tiny, num_frames=8).shape[1] == 8
    assert contexts[0]["context"].shape[1] == 77 + 256


def test_image_tokens_are_shared_out_frame_by_frame(tiny: DynamiCrafterPipeline) -> None:
    context = torch.randn(2, 77 + 256, 16)
    found = tiny.unet._frame_context(context, 16)
    assert found.shape == (32, 93, 16)
    for video in range(2):
        for frame in range(16):
            tokens = context[video, 77 + 16 * frame : 77 + 16 * (frame + 1)]
            assert torch.equal(found[16 * video + frame], torch.cat([context[video, :77], tokens]))


@pytest.mark.parametrize("alpha", [None, 0.0, 0.8, -2.0])
def test_the_image_part_of_attention_is_weighted_by_one_plus_tanh_alpha(alpha: float | None) -> None:
    unet = build_tiny_pipeline(512 if alpha is None else 256).unet
    attn = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    processor = attn.processor
    assert isinstance(processor, ImageCrossAttention)
    if alpha is not None:
        processor.alpha.data.fill_(alpha)
    pixels, context = torch.randn(3, 5, 8), torch.randn(3, 77 + 16, 16)

    def attend(key: torch.nn.Linear, value: torch.nn.Linear, tokens: torch.Tensor) -> torch.Tensor:
        parts = [part.view(3, -1, 2, 4) for part in (attn.to_q(pixels), key(tokens), value(tokens))]
        query, keys, values = (part.double() for part in parts)
        weights = (torch.einsum("bihd,bjhd->bhij", query, keys) / 4**0.5).softmax(dim=-1)
        return torch.einsum("bhij,bjhd->bihd", weights, values).flatten(2)

    scale = 1.0 if alpha is None else 1 + np.tanh(alpha)
    text = attend(attn.to_k, attn.to_v, context[:, :77])
    image = attend(processor.to_k_ip, processor.to_v_ip, context[:, 77:])
    expected = attn.to_out[0]((text + scale * image).float())
    torch.testing.assert_close(attn(pixels, encoder_hidden_states=context), expected)


def test_the_frame_rate_moves_the_time_embedding_as_the_time_does(tiny: DynamiCrafterPipeline) -> None:
    """Equal to the sum of two embeddings of the same sinusoids, cosines first."""
    unet, count = tiny.unet, 8
    frequencies = torch.exp(-np.log(10000) * torch.arange(count // 2) / (count // 2))

    def embed(value: int, layers: Any) -> torch.Tensor:
        angles = value * frequencies
        hidden = layers.linear_1(torch.cat([angles.cos(), angles.sin()])[None])
        return layers.linear_2(torch.nn.functional.silu(hidden))

    expected = embed(321, unet.time_embedding) + embed(7, unet.fps_embedding)
    for fs in (7, torch.tensor([7])):
        torch.testing.assert_close(unet._embed(321, fs, 1, torch.zeros(1)), expected)
    default = embed(321, unet.time_embedding) + embed(24, unet.fps_embedding)
    torch.testing.assert_close(unet._embed(torch.tensor(321), None, 1, torch.zeros(1)), default)


@pytest.mark.parametrize("frames_back", ["as many", "one"])
@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("loop", [False, True])
def test_a_captured_decode_gets_all_latents_and_may_return_placeholders(
    tiny: DynamiCrafterPipeline,
    frames_back: str,
    output_type: str,
    loop: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = _run(tiny, loop=loop)
    calls: list[torch.Tensor] = []

    def record(z: torch.Tensor, return_dict: bool = True) -> Any:
        calls.append(z)
        placeholder = torch.zeros(len(z) if frames_back == "as many" else 1, 3, 1, 1)
        return DecoderOutput(sample=placeholder) if return_dict else (placeholder,)

    with monkeypatch.context() as patch:
        patch.setattr(tiny.vae, "decode", record)
        settings = {"image": _photo(), "prompt": "a bear", "num_inference_steps": 2, "loop": loop}
        frames = tiny(
            **settings, **SIZE, generator=torch.Generator().manual_seed(0), output_type=output_type
        ).frames
    assert len(frames) == 1
    (latents,) = calls
    assert latents.shape == (15 if loop else 16, 4, 8, 8)
    with torch.no_grad():
        decoded = (tiny.vae.decode(latents).sample.clamp(-1, 1) + 1) / 2
    assert _difference(decoded[None], expected) == 0


def test_a_callback_sees_and_may_change_every_step(tiny: DynamiCrafterPipeline) -> None:
    seen: list[tuple[int, int]] = []

    def note(
        pipe: DynamiCrafterPipeline, index: int, time: torch.Tensor, given: dict[str, Any]
    ) -> dict[str, Any]:
        seen.append((index, int(time)))
        assert pipe.num_timesteps == 4
        return {"latents": torch.zeros_like(given["latents"])}

    latents = _run(tiny, num_inference_steps=4, callback_on_step_end=note, output_type="latent")
    assert seen == [(0, 999), (1, 749), (2, 499), (3, 249)]
    assert not latents.any()
    with pytest.raises(ValueError, match="noise"):
        _run(tiny, callback_on_step_end=note, callback_on_step_end_tensor_inputs=["noise"])


def test_a_callback_may_end_the_denoising(tiny: DynamiCrafterPipeline) -> None:
    seen: list[int] = []

    def stop(pipe: DynamiCrafterPipeline, index: int, _time: Any, _given: Any) -> dict[str, Any]:
        seen.append(index)
        pipe._interrupt = index == 1
        return {}

    _run(tiny, num_inference_steps=10, callback_on_step_end=stop)
    assert seen == [0, 1]
    assert _run(tiny).shape[1] == 16


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"height": 72}, "64x72: width and height must be multiples of 64"),
        ({"width": 100}, "100x64"),
        ({"loop": True, "last_image": _photo()}, "loop and last_image"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"num_frames": 1, "loop": True}, "num_frames is 1; it must be at least 2"),
        ({"guidance_passes": 4}, "guidance_passes is 4"),
        ({"output_type": "gif"}, "output_type is 'gif'"),
        ({"latents": torch.zeros(1, 4, 8, 8, 8)}, r"this call needs \(1, 4, 16, 8, 8\)"),
        ({"image": [_photo()] * 2, "prompt": ["a"] * 3}, "got 2 images or prompts for 3 prompts"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"eta": 2.0}, r"eta is 2\.0"),
    ],
)
def test_calls_that_cannot_be_met_are_refused(
    tiny: DynamiCrafterPipeline, arguments: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        _run(tiny, **arguments)


def test_a_saved_folder_loads_as_the_same_model(tmp_path: Path) -> None:
    pipeline = build_tiny_pipeline(256)
    pipeline.save_pretrained(tmp_path)
    loaded = DynamiCrafterPipeline.from_pretrained(tmp_path)
    for part in (pipeline, loaded):
        part.set_progress_bar_config(disable=True)
    assert loaded.defaults is DEFAULTS[256]
    assert loaded.unet.config.learnable_image_scale
    assert loaded.scheduler.config.prediction_type == "epsilon"
    # Loaded weights lie at other addresses, which changes the last bits of CPU convolutions.
    assert _difference(_run(pipeline), _run(loaded)) < ROUNDING
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) < 1_000_000


def test_half_precision_runs_in_half_precision(tiny: DynamiCrafterPipeline) -> None:
    frames = _run(tiny.to(torch.bfloat16))
    assert torch.isfinite(frames).all()
    assert frames.shape == (1, 16, 3, 64, 64)


def test_the_published_values_can_be_read_without_torch() -> None:
    code = (
        "import sys; from app.pipelines.dynamicrafter import DEFAULTS; "
        "assert DEFAULTS[1024].fs == 10; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=500)
