"""A VAE of another dtype than the rest of its model: loaded, planned, told and used for encoding so."""

import io
import tomllib
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny_pipelines
import torch
from PIL import Image

from adaptive.device.probe import open_probe
from adaptive.memory import profile_trace
from adaptive.memory.profile import MemoryProfile
from adaptive.memory.traced_vae import TracedVae
from adaptive.types import VideoShape
from app.api.views import model_view
from app.config import ConfigError, Settings
from app.jobs import JobSpec
from app.models import profile_tracer, profiles
from app.models.components import components_of
from app.models.entries import ModelEntry, load_models
from app.models.loading import load_pipeline, load_vae
from app.models.weight_sizes import stored_requirements
from app.worker.decoding import DecodeContext, load_learned_costs
from app.worker.loaded_model import LoadedModel

CPU = torch.device("cpu")
ENTRIES = tomllib.loads((Path(__file__).parents[1] / "pipelines" / "tiny_models.toml").read_text())["models"]


def entry_for(name: str, folder: Path, **changes: Any) -> ModelEntry:
    table = {**ENTRIES[name], "dtype": "bfloat16", "vae_dtype": "float32", **changes}
    return ModelEntry(name=name, source=str(tiny_pipelines.save(name, folder)), **table)


def loaded(settings: Settings, entry: ModelEntry) -> LoadedModel:
    probe = open_probe("cpu")
    context = DecodeContext(probe, None, load_learned_costs(settings, CPU))
    return LoadedModel(entry, load_pipeline(entry, settings, CPU, probe.read()), settings, CPU, context)


def spec_for(entry: ModelEntry) -> JobSpec:
    fields = {**entry.defaults.model_dump(), "model": entry.name, "prompt": "a bear", "seed": 1}
    return JobSpec.model_validate(fields)


def photo() -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(file, "PNG")
    return file.getvalue()


# One whose encoder gets the image in the transformer's dtype, and one that encodes a whole clip.
@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")
@pytest.mark.parametrize("name", ["LTXImageToVideoPipeline", "WanImageToVideoPipeline"])
def test_such_a_model_encodes_denoises_and_decodes(tmp_path: Path, name: str) -> None:
    entry, settings = entry_for(name, tmp_path / name), Settings(data_dir=tmp_path)
    model = loaded(settings, entry)
    pipe = model._pipe
    denoiser = pipe.components.get("transformer") or pipe.components["unet"]
    assert (pipe.vae.dtype, denoiser.dtype) == (torch.float32, torch.bfloat16)
    inputs: list[torch.dtype] = []
    pipe.vae.encoder.register_forward_pre_hook(lambda _module, given: inputs.append(given[0].dtype))
    spec = spec_for(entry)
    clip = model.denoise(spec, photo(), on_step=lambda _done, _total: None)
    assert set(inputs) == {torch.float32}, "the image is encoded in the VAE's own dtype"
    for call in clip.calls:
        decoding = model.open_decode(call, spec, lambda _kind, _data: None)
        for frames in decoding.frames():
            assert frames.dtype == torch.float32
            assert frames.isfinite().all()
    assert load_vae(entry, settings).dtype == torch.float32


def test_plans_count_the_vae_in_its_own_dtype(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    mixed = entry_for("LTXImageToVideoPipeline", tmp_path / "m")
    plain = mixed.model_copy(update={"vae_dtype": None})
    components = components_of(mixed, settings)
    sizes = {}
    for entry in (plain, mixed):
        parts = stored_requirements(settings, entry, components, 8).components
        sizes[entry.vae_dtype] = {part.name: part for part in parts}
    assert sizes["float32"]["vae"].weight_bytes == 2 * sizes[None]["vae"].weight_bytes
    assert {**sizes["float32"], "vae": None} == {**sizes[None], "vae": None}
    assert profiles.profile_path(settings, plain) != profiles.profile_path(settings, mixed)
    same = plain.model_copy(update={"vae_dtype": "bfloat16"})
    assert profiles.profile_path(settings, plain) == profiles.profile_path(settings, same)


def test_the_memory_profile_is_traced_in_the_vae_s_dtype_and_no_shipped_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path)
    shipped = load_models(settings)["ltx-video"].model_copy(update={"vae_dtype": "float32"})
    assert profiles.load(settings, shipped) is None
    assert profiles.load_requirements(settings, shipped) is None

    def as_far_as_asked(vae_class: str, config: Any, dtype: str) -> MemoryProfile:
        return profile_trace.lazy_profile(TracedVae(getattr(diffusers, vae_class), config, dtype))

    monkeypatch.setattr(profile_trace, "trace_profile", as_far_as_asked)
    mixed = entry_for("I2VGenXLPipeline", tmp_path / "m")
    peaks = []
    for entry in (mixed.model_copy(update={"vae_dtype": None}), mixed):
        profile = profile_tracer._traced(settings, entry)
        assert profile.dtype == entry.decode_dtype
        peaks.append(profile.live_bytes(profile.traits.latent_shape(VideoShape(4, 64, 64)), 4))
    assert peaks[1] == 2 * peaks[0]


def test_the_entry_names_it_and_a_wrong_one_stops_the_start(tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    models.write_text('[models.ltx-video]\nvae_dtype = "float32"\n')
    settings = Settings(data_dir=tmp_path, models_file=models)
    entry = load_models(settings)["ltx-video"]
    shown = model_view(entry, is_default=False)
    assert (shown["dtype"], shown["vae_dtype"]) == ("bfloat16", "float32")
    assert model_view(load_models(settings)["ltx-2"], is_default=False)["vae_dtype"] == "bfloat16"
    models.write_text('[models.ltx-video]\nvae_dtype = "float64"\n')
    with pytest.raises(ConfigError, match=r"models\.ltx-video\.vae_dtype"):
        load_models(settings)
