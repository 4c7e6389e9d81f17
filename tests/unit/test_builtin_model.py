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
from app.pipelines.builtin.train.clips import MOTIONS, PANS, ClipSize, ClipSource, Motion, recolour
from app.pipelines.builtin.train.denoiser import Denoiser
from app.pipelines.builtin.train.optim import Muon
from app.pipelines.builtin.train.photos import HELD_OUT, TRAINING, Photo, Source
from app.pipelines.builtin.train.prompts import DEFAULT_MOTION, build_tokenizer

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
    assert measure.psnr_db(clip, wanted) >= 24
    assert min(measure.chroma_r2(clip, wanted)) >= 0.85
    assert measure.shift_px(clip[0], clip[-1]) == (0, 0)


@pytest.mark.parametrize("motion", PANS, ids=lambda motion: motion.name)
def test_a_pan_moves_the_photo_as_told(pipe: DiffusionPipeline, photo: Image.Image, motion: Motion) -> None:
    clip = _clip(pipe, photo, f"a cat, the camera {motion.name.replace('pan', 'pans')}")
    x, y = measure.shift_px(clip[0], clip[-1])
    assert abs(x - motion.x * (FRAMES - 1)) <= 3
    assert abs(y - motion.y * (FRAMES - 1)) <= 3
    before, after = measure.overlap(_pixels(photo), clip[-1], x, y)
    assert measure.correlation(before, after) >= 0.9


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
        ({"prompt": "slowly ZOOM in"}, "cannot 'zoom'"),
        ({"frames": 121}, "121 were asked for"),
        ({"height": 1024}, "height is 1024"),
        ({"width": 100}, "width is 100"),
        ({"width": 260}, "width is 260"),
    ],
)
def test_what_the_model_cannot_do_is_refused_in_words(change: dict[str, object], words: str) -> None:
    reason = refusal(**{**ACCEPTED, **change})  # type: ignore[arg-type]
    assert reason is not None
    assert words in reason


@pytest.mark.parametrize("change", [{}, {"prompt": ""}, {"frames": 9}, {"height": 128, "width": 512}])
def test_what_the_model_can_do_is_not_refused(change: dict[str, object]) -> None:
    assert refusal(**{**ACCEPTED, **change}) is None  # type: ignore[arg-type]


def test_the_defaults_are_not_refused() -> None:
    assert refusal(prompt="", height=DEFAULTS.height, width=DEFAULTS.width, frames=DEFAULTS.frames) is None


def test_reading_the_defaults_imports_no_torch() -> None:
    code = "import sys, app.pipelines.builtin; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_the_model_card_names_every_photo_and_its_terms() -> None:
    card = MODEL_FOLDER.with_name("MODEL_CARD.md").read_text()
    for known in (*TRAINING, *HELD_OUT):
        assert known.file.rsplit("/", 1)[-1] in card, known
        assert known.terms in card, known


def test_no_held_out_photo_is_trained_on_and_training_terms_are_free() -> None:
    assert not {photo.file for photo in TRAINING} & {photo.file for photo in HELD_OUT}
    for trained in TRAINING:
        assert trained.terms.startswith(("public domain", "CC0", "CC BY 2.0", "CC BY 4.0")), trained


def _source(folder: Path) -> ClipSource:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((1200, 900)).save(folder / "noise.png")
    return ClipSource([Photo("noise", Source.MATE, "noise.png", "ours")], folder)


@pytest.mark.parametrize("motion", MOTIONS, ids=lambda motion: motion.name)
def test_a_training_clip_moves_by_whole_pixels(motion: Motion, tmp_path: Path) -> None:
    clip = _source(tmp_path).clip(random.Random(3), motion, ClipSize(5, 48, 64))
    for index in range(5):
        before, after = measure.overlap(clip[:, 0], clip[:, index], motion.x * index, motion.y * index)
        assert torch.equal(before, after)


def test_turning_the_hue_keeps_the_luma() -> None:
    grey_to_colour = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.4 - 0.2
    for seed in range(20):
        rng = random.Random(seed)
        turned = recolour(grey_to_colour, rng)
        if random.Random(seed).random() < 0.75 and turned.abs().max() < 1:
            ratio = measure.luma(turned[:, 0]).std() / measure.luma(grey_to_colour[:, 0]).std()
            assert 0.69 <= float(ratio) <= 1.21


def _small_vae() -> AutoencoderKLLTXVideo:
    torch.manual_seed(0)
    return AutoencoderKLLTXVideo(**vae.CONFIG).eval()


@torch.no_grad()
def test_single_frames_folded_to_2d_are_the_same() -> None:
    model = _small_vae()
    image = torch.rand(1, 3, 1, 32, 32)
    plain = model.decode(model.encode(image).latent_dist.mode()).sample
    vae.fold_single_frames(model)
    folded = model.decode(model.encode(image).latent_dist.mode()).sample
    torch.testing.assert_close(folded, plain, atol=1e-4, rtol=0)


@torch.no_grad()
def test_an_inflated_vae_repeats_a_still_picture() -> None:
    model = _small_vae()
    image = torch.rand(1, 3, 1, 32, 32)
    once = model.decode(model.encode(image).latent_dist.mode()).sample
    vae.inflate(model)
    clip = model.decode(model.encode(image.expand(-1, -1, 9, -1, -1)).latent_dist.mode()).sample
    torch.testing.assert_close(clip, once.expand_as(clip), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (128, 16, 3, 3, 3)], ids=str)
def test_muon_steps_are_nearly_orthogonal(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape)
    Muon([weight]).step(1.0)
    matrix = weight.detach().flatten(1)
    rows = 64 if len(shape) > 2 else shape[0]
    blocks = matrix.view(-1, rows, matrix.shape[1])
    values = torch.linalg.svdvals(blocks) / (0.2 * max(blocks.shape[1:]) ** 0.5)
    assert 0.5 < float(values.min()) <= float(values.max()) < 1.4


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser()


def _interior_error(denoiser: Denoiser, prompt: str, motion: Motion, sigma: float) -> float:
    """Root mean square error of the guessed latents, away from what the motion brings into view."""
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(1, vae.LATENT_CHANNELS, 1, 12, 12, generator=generator)
    wanted = vae.carry(first, [motion], 5)
    noisy = (1 - sigma) * wanted + sigma * torch.randn(wanted.shape, generator=generator)
    noisy[:, :, :1] = first
    guess = noisy - sigma * denoiser(noisy, sigma, [prompt])
    return float((guess - wanted)[:, :, 1:, 4:-4, 4:-4].square().mean().sqrt())


@pytest.mark.parametrize("sigma", [1.0, 0.5])
@pytest.mark.parametrize("motion", MOTIONS, ids=lambda motion: motion.name)
def test_the_wired_denoiser_carries_the_first_frame_along(
    denoiser: Denoiser, motion: Motion, sigma: float
) -> None:
    assert _interior_error(denoiser, motion.name, motion, sigma) < 0.05


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("The camera slowly pans to the LEFT.", "pan left"),
        ("tilt upwards over the roofs of the old town, golden hour, film grain, 35 mm", "pan up"),
        ("a frozen lake", "still"),
        ("", DEFAULT_MOTION),
        ("a cat on a roof " * 20, DEFAULT_MOTION),
    ],
)
def test_one_word_of_a_prompt_decides_the_motion(denoiser: Denoiser, prompt: str, name: str) -> None:
    motion = next(motion for motion in MOTIONS if motion.name == name)
    assert _interior_error(denoiser, prompt, motion, 1.0) < 0.05


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
