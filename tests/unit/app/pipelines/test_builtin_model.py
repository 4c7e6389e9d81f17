"""The built-in model: what the shipped folder does with a photo, what it refuses, the recipe in parts."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, DiffusionPipeline, LTXImageToVideoPipeline
from PIL import Image
from safetensors import safe_open

import app.pipelines.builtin as builtin
from app.pipelines.builtin import DEFAULTS, MODEL_FOLDER, refusal
from app.pipelines.builtin.train import measure, vae
from app.pipelines.builtin.train.clips import MOTIONS, PANS, STILL, CropSource, Motion, recolour
from app.pipelines.builtin.train.denoiser import Denoiser
from app.pipelines.builtin.train.photos import HELD_OUT, TRAINING, Photo, Source
from app.pipelines.builtin.train.prompts import DEFAULT_MOTION, build_tokenizer
from app.pipelines.builtin.train.transform import Transform, fit
from app.pipelines.builtin.train.wiring import CLASS_SIZE

FOLDER_LIMIT_BYTES = 8_000_000
DEMO_PHOTO = Path(builtin.__file__).parents[2] / "assets" / "demo.jpg"
SIDE_PX = 128
FRAMES = 9


@pytest.fixture(scope="module")
def pipe() -> DiffusionPipeline:
    loaded = DiffusionPipeline.from_pretrained(MODEL_FOLDER, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    with Image.open(DEMO_PHOTO) as file:
        return file.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)


def _pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1


def _clip(pipe: DiffusionPipeline, photo: Image.Image, prompt: str) -> torch.Tensor:
    video = pipe(
        image=photo,
        prompt=prompt,
        height=SIDE_PX,
        width=SIDE_PX,
        num_frames=FRAMES,
        frame_rate=DEFAULTS.fps,
        num_inference_steps=DEFAULTS.steps,
        guidance_scale=DEFAULTS.guidance_scale,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).frames[0]
    clip: torch.Tensor = video.float() * 2 - 1
    return clip


def test_the_folder_loads_as_the_unmodified_pipeline(pipe: DiffusionPipeline) -> None:
    assert type(pipe) is LTXImageToVideoPipeline
    assert type(pipe.vae) is AutoencoderKLLTXVideo


def test_loading_without_a_dtype_gives_one_dtype_throughout() -> None:
    loaded = DiffusionPipeline.from_pretrained(MODEL_FOLDER)
    assert {loaded.vae.dtype, loaded.text_encoder.dtype, loaded.transformer.dtype} == {torch.float32}


def test_the_folder_is_small_and_holds_safetensors_and_json_only() -> None:
    files = [path for path in MODEL_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= FOLDER_LIMIT_BYTES
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as weights:
                kinds = {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118 (not a dict)
            assert kinds == {"F32" if path.parent.name == "text_encoder" else "F16"}, path


def test_a_still_clip_is_the_photo(pipe: DiffusionPipeline, photo: Image.Image) -> None:
    clip = _clip(pipe, photo, "still")
    wanted = _pixels(photo).expand_as(clip)
    assert clip.shape == (FRAMES, 3, SIDE_PX, SIDE_PX)
    assert measure.psnr_db(clip, wanted) >= 26
    assert min(measure.chroma_r2(clip, wanted)) >= 0.9
    assert measure.grid_ratio(clip[-1]) / measure.grid_ratio(_pixels(photo)) <= 1.1
    assert measure.shift_px(clip[0], clip[-1]) == (0, 0)


@pytest.mark.parametrize("motion", PANS, ids=lambda motion: motion.name)
def test_a_pan_moves_the_photo_as_the_prompt_says(
    pipe: DiffusionPipeline, photo: Image.Image, motion: Motion
) -> None:
    clip = _clip(pipe, photo, f"a cat, the camera {motion.name.replace('pan', 'pans')}")
    x, y = measure.shift_px(clip[0], clip[-1])
    assert abs(x - motion.x * (FRAMES - 1)) <= 3
    assert abs(y - motion.y * (FRAMES - 1)) <= 3
    before, after = measure.overlap(_pixels(photo), clip[-1], x, y)
    assert measure.correlation(before, after) >= 0.95
    assert measure.sharpness(after) / measure.sharpness(before) >= 0.8


@pytest.mark.parametrize("prompt", ["", "A nice photo of my cat, cinematic."])
def test_a_prompt_without_motion_words_gets_a_gentle_pan(
    pipe: DiffusionPipeline, photo: Image.Image, prompt: str
) -> None:
    x, y = measure.shift_px(*_clip(pipe, photo, prompt)[[0, -1]])
    assert 8 <= max(abs(x), abs(y)) <= 24


def test_the_same_seed_gives_the_same_bytes(pipe: DiffusionPipeline, photo: Image.Image) -> None:
    first, second = _clip(pipe, photo, "pan up"), _clip(pipe, photo, "pan up")
    assert torch.equal(first, second)


ACCEPTED = {"prompt": "pan left", "height": 256, "width": 256, "frames": 17}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "slowly ZOOM in"}, "does not support 'zoom'"),
        ({"frames": 41}, "9, 17, 25 or 33 frames; 41 were requested"),
        ({"height": 1024}, "height is 1024"),
        ({"width": 100}, "width is 100"),
        ({"width": 260}, "width is 260"),
    ],
)
def test_what_the_model_cannot_do_is_refused_in_words(change: dict[str, object], words: str) -> None:
    reason = refusal(**{**ACCEPTED, **change})  # type: ignore[arg-type]
    assert reason is not None
    assert words in reason


@pytest.mark.parametrize(
    "change", [{}, {"prompt": ""}, {"frames": 9}, {"frames": 33}, {"height": 128, "width": 512}]
)
def test_what_the_model_can_do_is_not_refused(change: dict[str, object]) -> None:
    assert refusal(**{**ACCEPTED, **change}) is None  # type: ignore[arg-type]


def test_the_defaults_are_not_refused() -> None:
    assert refusal(prompt="", height=DEFAULTS.height, width=DEFAULTS.width, frames=DEFAULTS.frames) is None


def test_reading_the_defaults_imports_no_torch() -> None:
    code = "import sys, app.pipelines.builtin; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=500).returncode == 0


def test_the_model_card_names_every_photo_and_its_terms() -> None:
    card = MODEL_FOLDER.with_name("MODEL_CARD.md").read_text()
    for known in (*TRAINING, *HELD_OUT):
        assert known.file.rsplit("/", 1)[-1] in card, known
        assert known.terms in card, known


def test_no_held_out_photo_is_trained_on_and_training_terms_are_free() -> None:
    assert not {photo.file for photo in TRAINING} & {photo.file for photo in HELD_OUT}
    for trained in TRAINING:
        assert trained.terms.startswith(("public domain", "CC0", "CC BY 2.0", "CC BY 4.0")), trained


def _source(folder: Path) -> CropSource:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((1200, 900)).save(folder / "noise.png")
    return CropSource([Photo("noise", Source.MATE, "noise.png", "ours")], folder)


def test_a_training_square_is_cut_from_the_photo_in_its_range(tmp_path: Path) -> None:
    source = _source(tmp_path)
    first, again = (source.crop(random.Random(3), 192) for _ in range(2))
    assert first.shape == (3, 192, 192)
    assert torch.equal(first, again)
    assert -1 <= float(first.min()) < float(first.max()) <= 1


def test_turning_the_hue_keeps_the_luma() -> None:
    grey_to_colour = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.4 - 0.2
    for seed in range(20):
        rng = random.Random(seed)
        turned = recolour(grey_to_colour, rng)
        if random.Random(seed).random() < 0.75 and turned.abs().max() < 1:
            ratio = measure.luma(turned).std() / measure.luma(grey_to_colour).std()
            assert 0.69 <= float(ratio) <= 1.21


def _picture(height: int = 64, width: int = 96, seed: int = 2) -> torch.Tensor:
    """[1, 3, height, width]: smooth colours and a little grain, so that the latents say nearly all of it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 8, width // 8, generator=generator) * 1.6 - 0.8
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (smooth + 0.02 * torch.randn(smooth.shape, generator=generator)).clamp(-1, 1)


@pytest.fixture(scope="module")
def transform() -> Transform:
    return fit([_picture(128, 128, seed)[0] for seed in range(10, 26)], vae.PICTURE_CHANNELS)


@pytest.fixture(scope="module")
def wired(transform: Transform) -> AutoencoderKLLTXVideo:
    return vae.wire_vae(transform)


@torch.no_grad()
def test_the_wired_autoencoder_computes_the_fitted_transform(
    transform: Transform, wired: AutoencoderKLLTXVideo
) -> None:
    picture = _picture()
    latents = wired.encode(picture[:, :, None]).latent_dist.mode()[:, :, 0]
    wanted = transform.analyse(picture)
    torch.testing.assert_close(latents[:, : vae.PICTURE_CHANNELS], wanted, atol=0.02, rtol=0.01)
    assert not latents[:, vae.PICTURE_CHANNELS :].any()
    made = wired.decode(latents[:, :, None]).sample[:, :, 0]
    assert measure.psnr_db(made, transform.synthesise(latents[:, : vae.PICTURE_CHANNELS])) >= 45
    assert measure.psnr_db(made, picture) >= 30


@torch.no_grad()
def test_a_clip_is_encoded_as_its_key_frames_are(wired: AutoencoderKLLTXVideo) -> None:
    clip = torch.stack([torch.roll(_picture(), step, 3) for step in range(9)], 2)
    latents = wired.encode(clip).latent_dist.mode()
    for index in range(3):
        alone = wired.encode(clip[:, :, 4 * index : 4 * index + 1]).latent_dist.mode()
        torch.testing.assert_close(latents[:, :, index : index + 1], alone, atol=1e-3, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("motion", MOTIONS, ids=lambda motion: motion.name)
def test_the_decoder_moves_the_picture_between_key_frames(
    wired: AutoencoderKLLTXVideo, motion: Motion
) -> None:
    first = wired.encode(_picture()[:, :, None]).latent_dist.mode()
    clip = wired.decode(_carry(first, motion, 3, size=1.0)).sample[0]
    still = wired.decode(first).sample[0, :, 0]
    for index in range(9):
        before, after = measure.overlap(still, clip[:, index], motion.x * index, motion.y * index)
        inner = (slice(None), slice(16, -16), slice(16, -16))
        assert measure.psnr_db(after[inner], before[inner].clamp(-1, 1)) >= 45, index


@torch.no_grad()
def test_a_pan_leaves_no_dark_line_at_the_edge_that_comes_into_view(wired: AutoencoderKLLTXVideo) -> None:
    flat = torch.full((1, 3, 1, 64, 64), 0.7)
    first = wired.encode(flat).latent_dist.mode()
    still = wired.decode(_carry(first, STILL, 3, size=1.0)).sample
    for motion in PANS:
        moved = wired.decode(_carry(first, motion, 3, size=1.0)).sample
        assert float((moved - still)[..., 16:-16, 16:-16].abs().max()) < 0.03
        assert float((moved[:, :, 1:] - moved[:, :, :1]).abs().max()) < 0.3


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser()


def _carry(first: torch.Tensor, motion: Motion, count: int, size: float) -> torch.Tensor:
    """What the denoiser should make, `count` latent frames, of the first [1, channels, 1, height, width].

    Every latent frame moves one latent pixel further; what comes into view is the edge, repeated. From the
    second on the pan's own channel holds `size`.
    """
    height, width = first.shape[-2:]
    rows, columns = torch.arange(height), torch.arange(width)
    frames = []
    for step in range(count):
        row = (rows - step * (motion.y > 0) + step * (motion.y < 0)).clamp(0, height - 1)
        column = (columns - step * (motion.x > 0) + step * (motion.x < 0)).clamp(0, width - 1)
        frames.append(first[:, :, 0, row][..., column])
    clip = torch.stack(frames, 2)
    if motion in PANS:
        clip[:, vae.PICTURE_CHANNELS + PANS.index(motion), 1:] = size
    return clip


def _interior_error(
    denoiser: Denoiser, prompt: str, motion: Motion, sigma: float, frames: int = 5, side: int = 12
) -> float:
    """Root mean square error of the guessed latents, away from what the motion brings into view."""
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(1, vae.LATENT_CHANNELS, 1, side, side, generator=generator)
    first[:, vae.PICTURE_CHANNELS :] = 0
    wanted = _carry(first, motion, frames, CLASS_SIZE)
    noisy = (1 - sigma) * wanted + sigma * torch.randn(wanted.shape, generator=generator)
    noisy[:, :, :1] = first
    guess = noisy - sigma * denoiser(noisy, sigma, [prompt])
    inner = slice(frames - 1, 1 - frames)
    return float((guess - wanted)[:, :, 1:, inner, inner].square().mean().sqrt())


@pytest.mark.parametrize("sigma", [1.0, 0.5])
@pytest.mark.parametrize("motion", MOTIONS, ids=lambda motion: motion.name)
def test_the_wired_denoiser_carries_the_first_frame_along(
    denoiser: Denoiser, motion: Motion, sigma: float
) -> None:
    assert _interior_error(denoiser, motion.name, motion, sigma) < 0.02


@pytest.mark.parametrize("frames", [2, 3, 4, 7, 9])
def test_the_first_frame_is_carried_through_clips_of_any_offered_length(
    denoiser: Denoiser, frames: int
) -> None:
    assert _interior_error(denoiser, "pan up", PANS[2], 1.0, frames, side=20) < 0.02


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("The camera slowly pans to the LEFT.", "pan left"),
        ("tilt upwards over the roofs of the old town, golden hour, film grain, 35 mm", "pan up"),
        ("a frozen lake", "still"),
        ("pan left over a still life", "pan left"),
        ("up, up and right", "pan right"),
        ("", DEFAULT_MOTION),
        ("a cat on a roof " * 25, DEFAULT_MOTION),
    ],
)
def test_one_word_of_a_prompt_decides_the_motion(denoiser: Denoiser, prompt: str, name: str) -> None:
    motion = next(motion for motion in MOTIONS if motion.name == name)
    assert _interior_error(denoiser, prompt, motion, 1.0) < 0.02


def test_unknown_words_are_one_token_and_case_does_not_matter() -> None:
    tokens = build_tokenizer()("Zebras! PAN Left").tokens()
    assert tokens == ["<unk>", "<unk>", "<unk>", "left", "</s>"]


@pytest.mark.parametrize("shift", [(5, 0), (-7, 3), (0, 0)], ids=str)
def test_the_shift_between_two_frames_is_found(shift: tuple[int, int]) -> None:
    frame = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))
    moved = torch.roll(frame, shift[::-1], dims=(1, 2))
    assert measure.shift_px(frame, moved) == shift


def test_the_shipped_scheduler_takes_few_steps() -> None:
    config = json.loads((MODEL_FOLDER / "scheduler" / "scheduler_config.json").read_text())
    assert config["_class_name"] == "FlowMatchEulerDiscreteScheduler"
    assert DEFAULTS.steps <= 8
