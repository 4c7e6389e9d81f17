"""Tiny models whose entries take components from files: a base folder, and what a file's model equals."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import tiny_pipelines
import torch
from PIL import Image
from torch import Tensor

from adaptive.families import traits_of
from adaptive.memory.profile import Curve, MemoryProfile
from adaptive.memory.traced_vae import config_digest
from adaptive.testing import ScriptedProbe
from app.config import Settings
from app.models import profiles
from app.models.components import components_of
from app.models.entries import ModelEntry, load_models
from app.models.loading import PlacedPipeline, load_pipeline
from app.pipelines.calls import call_form

SEED = 5
CPU = torch.device("cpu")
# Rows of whole K-quant blocks.
WIDE = {"num_attention_heads": 2, "attention_head_dim": 128}
TRANSFORMERS = {
    "LTXImageToVideoPipeline": {**WIDE, "cross_attention_dim": 256, "caption_channels": 32},
    "WanImageToVideoPipeline": {**WIDE, "ffn_dim": 256, "freq_dim": 256},
}
VAES = {"LTXImageToVideoPipeline": "AutoencoderKLLTXVideo", "WanImageToVideoPipeline": "AutoencoderKLWan"}
ENTRY = """
[models.small]
pipeline = "{pipeline}"
base = "{base}"
dtype = "{dtype}"
vae_class = "{vae_class}"
size_multiple = 32
temporal_ratio = {ratio}
first_frame_alone = true
{lines}

[models.small.defaults]
width = 64
height = 64
num_frames = 9
fps = 8
num_inference_steps = 2
guidance_scale = 2.0

[models.small.limits]
max_pixels = 65536
max_frames = 64
max_steps = 10
"""


@dataclass(frozen=True)
class Base:
    """A model in a folder, and its transformer's weights by diffusers' names."""

    pipeline: str
    folder: Path

    @property
    def transformer_class(self) -> str:
        return type(self.transformer).__name__

    @property
    def transformer(self) -> Any:
        return self.component("transformer")

    def component(self, name: str) -> Any:
        index = diffusers.DiffusionPipeline.load_config(self.folder)
        library, class_name = index[name]
        import transformers

        owner = transformers if library == "transformers" else diffusers
        return getattr(owner, class_name).from_pretrained(self.folder / name)

    def entry(
        self, folder: Path, lines: dict[str, object], dtype: str = "float32"
    ) -> tuple[Settings, ModelEntry]:
        """Settings and an entry with this base; `lines` are its keys for components."""
        text = ENTRY.format(
            pipeline=self.pipeline,
            base=self.folder,
            dtype=dtype,
            vae_class=VAES[self.pipeline],
            ratio=8 if self.pipeline.startswith("LTX") else 4,
            lines="\n".join(f'{key} = "{value}"' for key, value in lines.items()),
        )
        folder.mkdir(exist_ok=True)
        (folder / "models.toml").write_text(text)
        settings = Settings(data_dir=folder / "data", models_file=folder / "models.toml", reserve_bytes=0)
        return settings, load_models(settings)["small"]

    @contextmanager
    def with_weights(
        self, name: str, weights: dict[str, Tensor], dtype: torch.dtype = torch.float32
    ) -> Iterator[Any]:
        """The pipeline as diffusers loads it, with these weights in one component for the block's time."""
        pipe = _reference(self.pipeline, self.folder, dtype)
        before = {key: each.clone() for key, each in pipe.components[name].state_dict().items()}
        assert weights.keys() == before.keys()
        pipe.components[name].load_state_dict(weights)
        try:
            yield pipe
        finally:
            pipe.components[name].load_state_dict(before)


@cache
def _reference(pipeline: str, folder: Path, dtype: torch.dtype) -> Any:
    pipe = getattr(diffusers, pipeline).from_pretrained(folder, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    call_form(pipe).prepare(pipe)
    return pipe


def make_base(pipeline: str, folder: Path) -> Base:
    """The tiny pipeline with a transformer that is wide enough for blocks of 256."""
    pipe = tiny_pipelines.build(pipeline)
    config = {**pipe.transformer.config, **TRANSFORMERS[pipeline]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12)
        wide = type(pipe.transformer).from_config(config).eval().requires_grad_(False)
        for parameter in wide.parameters():  # constants would hide what comes before them
            if parameter.numel() > 1 and parameter.min() == parameter.max():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    pipe.register_modules(transformer=wide)
    if pipeline == "LTXImageToVideoPipeline":
        pipe.register_modules(text_encoder=_wide_t5())
    pipe.save_pretrained(folder)
    return Base(pipeline, folder)


def keep_profile(settings: Settings, entry: ModelEntry) -> MemoryProfile:
    """Store a profile of round numbers for the model's VAE: bytes a latent pixel. Tracing takes seconds."""
    vae = components_of(entry, settings)["vae"]
    streamed = {1: Curve((1,), (1024.0,)), 2: Curve((1,), (2048.0,))}
    batched = Curve((1, 5), (1024.0, 5120.0))
    traits = traits_of(vae.class_name, vae.config)
    profile = MemoryProfile(traits, entry.decode_dtype, config_digest(vae.config), batched, streamed)
    settings.data_dir.mkdir(exist_ok=True)
    profiles.save(settings, entry, profile)
    return profile


def _wide_t5() -> Any:
    """A text encoder whose rows are whole blocks of 32."""
    from tiny_pipelines.shared import t5_config
    from transformers import T5Config, T5EncoderModel

    config = t5_config(T5Config)
    config.d_model, config.d_kv = 32, 16
    return T5EncoderModel(config).eval().requires_grad_(False)


def loaded(settings: Settings, entry: ModelEntry, device: torch.device = CPU) -> PlacedPipeline:
    """The model as a worker loads it, on a device with room for all."""
    return load_pipeline(entry, settings, device, ScriptedProbe([2**40]).read())


def frames_of(pipe: Any) -> Tensor:
    """What the pipeline makes of a fixed request, in float32."""
    torch.manual_seed(SEED)
    with torch.inference_mode():
        output = pipe(
            image=Image.open(io.BytesIO(picture())),
            prompt="a bear",
            height=32,
            width=32,
            num_frames=9,
            num_inference_steps=2,
            guidance_scale=2.0,
            generator=torch.Generator().manual_seed(SEED),
            output_type="pt",
        )
    frames: Tensor = output.frames[0].float()
    return frames


def picture() -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()
