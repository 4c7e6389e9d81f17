"""Loads a model's pipeline onto a device: sizes first, then a placement, then the weights.

Owns the call to diffusers' loader, also for transformers in int8, and the translation of its errors. Loads
weights only after a placement is known to fit.

Longer than 300 lines: a pipeline, its VAE alone and components from files share dtypes, sources and errors.
"""

import importlib
import importlib.util
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adaptive.device.host import read_host
from adaptive.errors import DoesNotFit
from adaptive.memory.learned_costs import LearnedCosts
from adaptive.planning.planner import Placement
from adaptive.types import MemoryReading, VideoShape
from app.config import Settings
from app.fields.loras import LoraChoice
from app.jobs import JobSpec, Json
from app.models import profiles
from app.models.checks.model_folder import check_model
from app.models.components import OWN_PIPELINES, ModelUnavailable, components_of, local_files, required_files
from app.models.downloads.cached import stored_snapshot
from app.models.downloads.download import OnProgress, download, needs_download
from app.models.entries import ModelEntry
from app.models.hub import explain_hub_error
from app.models.parts.entry_parts import part_paths
from app.models.place_weights import place
from app.models.prompt_cache import PromptCache, encode_prompt_in
from app.models.requirements import ModelRequirements, choose_placement, placement_json
from app.models.weight_sizes import stored_requirements
from app.pipelines.calls import call_form
from app.pipelines.frames import FORMS, more_pictures
from app.pipelines.schedules import check_schedule, use_scheduler

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlacedJob:
    """What a placement depends on: the video, the guidance, and what was learned on the device.

    `host_bytes`: host memory that the model's weights take already. `cautious`: see `choose_placement`.
    `loras`: those that the job applies. `more_pictures`: how many it has beside that of the first frame.
    """

    video: VideoShape
    guided: bool
    costs: LearnedCosts | None = None
    host_bytes: int = 0
    cautious: bool = True
    loras: tuple[LoraChoice, ...] = ()
    more_pictures: int = 0

    @classmethod
    def of(cls, spec: JobSpec, costs: LearnedCosts | None = None) -> "PlacedJob":
        """The job of a request."""
        video = VideoShape(spec.num_frames, spec.height, spec.width)
        more = more_pictures(spec)
        return cls(video, spec.guidance_scale > 1, costs, loras=spec.loras, more_pictures=more)

    @classmethod
    def of_entry(cls, entry: ModelEntry) -> "PlacedJob":
        """A job with the entry's defaults."""
        given = entry.defaults
        video = VideoShape(given.num_frames, given.height, given.width)
        return cls(video, given.guidance_scale > 1)


@dataclass(frozen=True, slots=True)
class PlacedPipeline:
    """A pipeline whose weights are placed; call `return_to_host` after each run.

    `return_to_host` moves components that share the device by turns back to host memory.
    """

    pipe: Any
    kind: str
    plan: Placement | None
    return_to_host: Callable[[], None]

    @property
    def quantized(self) -> tuple[str, ...]:
        """Names of the components with int8 matrices; their output is approximate."""
        return () if self.plan is None else self.plan.quantized

    def moved(self, plan: Placement, device: torch.device) -> "PlacedPipeline":
        """The pipeline with its weights placed by `plan`; they move from where they are."""
        kind = plan.kind.value
        return PlacedPipeline(self.pipe, kind, plan, place(self.pipe, kind, device, plan.group_offloaded))

    def as_json(self) -> Json:
        """The placement for the job's history."""
        if self.plan is None:
            return {"kind": self.kind, "quantized": [], "exact": True}
        return {**placement_json(self.plan), "kind": self.kind}


def load_pipeline(
    entry: ModelEntry,
    settings: Settings,
    device: torch.device,
    reading: MemoryReading,
    *,
    exact_only: bool = True,
    job: PlacedJob | None = None,
) -> PlacedPipeline:
    """Load and place a model for the shape and guidance of `job`, by default for those of the entry.

    Without `exact_only`, loads transformers in int8 if they do not fit otherwise and the entry allows it.
    Raises `DoesNotFit` before reading any weight, and `ModelUnavailable` for missing files, a missing
    library or a pipeline that needs more inputs than a request has.
    """
    check_model(entry, settings)
    required_files(entry, settings)
    if needs_download(entry, settings):  # a job has downloaded it before
        download(entry, settings, lambda _progress: None, lambda: False)
    exact_only = exact_only or entry.quantize is None
    if not exact_only:
        _require_torchao(entry)
    budget_bytes = max(0, reading.free_bytes - settings.reserve_bytes)
    placement = placement_for(entry, settings, device, budget_bytes, exact_only=exact_only, job=job)
    _silence_progress_bars()
    quantized = () if placement is None else placement.quantized
    options = {"quantization_config": int8_configuration(quantized)} if quantized else {}
    parts = load_parts(entry, settings)
    pipe = _pretrained(_pipeline_class(entry.pipeline), entry, settings, **options, **parts)
    pipe.set_progress_bar_config(disable=True)
    call_form(pipe).prepare(pipe)
    _follow_recipe(pipe, entry)
    if entry.text_encoder_dtype not in (None, entry.dtype):
        encode_prompt_in(pipe, _dtype(entry.dtype))
    PromptCache().attach(pipe)
    kind = "resident" if placement is None else placement.kind.value
    if entry.placement != "auto":
        kind = entry.placement
    grouped = _grouped(entry, pipe, placement)
    log.info("model_loaded model=%s device=%s placement=%s", entry.name, device, kind)
    return PlacedPipeline(pipe, kind, placement, place(pipe, kind, device, grouped))


def _follow_recipe(pipe: Any, entry: ModelEntry) -> None:
    """Give the pipeline the scheduler of the entry's recipe. Raises `ModelUnavailable`."""
    recipe = entry.recipe
    try:
        use_scheduler(pipe, recipe.scheduler, recipe.shift)
        if recipe.schedule:
            check_schedule(pipe, "sigmas" if recipe.sigmas else "timesteps")
    except ValueError as error:
        raise ModelUnavailable(f"the recipe of model {entry.name} does not fit: {error}") from error


def load_parts(entry: ModelEntry, settings: Settings, *names: str) -> dict[str, Any]:
    """The components that the entry takes from files of their own, on the CPU; only `names` if given.

    Raises `ModelUnavailable`.
    """
    wanted = [name for name in part_paths(entry) if not names or name in names]
    if not wanted:
        return {}
    from app.models.parts.assembly import load_part

    components = components_of(entry, settings, parts=wanted)
    loaded = {}
    for name in wanted:
        found = components[name]
        assert found.part is not None
        try:
            loaded[name] = load_part(found.library, found.class_name, found.config, found.part)
        except ModelUnavailable as error:
            raise ModelUnavailable(f"model {entry.name} cannot be loaded: {error}") from error
        log.info("part_loaded model=%s part=%s format=%s", entry.name, name, found.part.label)
    return loaded


def import_pipeline(entry: ModelEntry) -> None:
    """Import the libraries of the model's pipeline, which takes seconds; reads no file of the model.

    Logs a failed import and returns: the model's first job fails with the error.
    """
    started = time.monotonic()
    try:
        _pipeline_class(entry.pipeline)
    except Exception as error:
        log.warning("pipeline_import_failed pipeline=%s reason=%s", entry.pipeline, error)
    else:
        log.info("pipeline_imported pipeline=%s seconds=%.1f", entry.pipeline, time.monotonic() - started)


def _require_torchao(entry: ModelEntry) -> None:
    if importlib.util.find_spec("torchao") is None:
        raise ModelUnavailable(
            f"model {entry.name} may be loaded in int8, and torchao is missing: "
            "pip install 'framefit[quantize]', take quantize out of its entry, or ask with exact_only=true"
        )


def int8_configuration(names: Sequence[str]) -> Any:
    """A diffusers configuration that loads these components with the matrices of linear layers in int8.

    Activations keep the model's dtype.
    """
    from diffusers import PipelineQuantizationConfig, TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    return PipelineQuantizationConfig(
        quant_mapping={name: TorchAoConfig(Int8WeightOnlyConfig(version=2)) for name in names}
    )


def placement_for(
    entry: ModelEntry,
    settings: Settings,
    device: torch.device,
    budget_bytes: int,
    *,
    exact_only: bool = True,
    job: PlacedJob | None = None,
) -> Placement | None:
    """The fastest placement for the job in `budget_bytes` of the device, its weights included.

    None if the entry names one itself, if no profile exists yet, and on a CPU, from which weights cannot
    move, unless quantization is allowed and makes them fit. Raises `DoesNotFit`.
    """
    on_host = device.type == "cpu"
    profile = profiles.load(settings, entry)
    if entry.placement != "auto" or profile is None or (on_host and exact_only):
        return None
    job = job or PlacedJob.of_entry(entry)
    added_frames = job.more_pictures if entry.pipeline in FORMS else 0
    requirements = _requirements(settings, entry, profile.traits.latent_channels)
    try:
        return choose_placement(
            requirements.with_loras(job.loras).with_frames(added_frames),
            entry,
            profile,
            job.video,
            device_budget_bytes=budget_bytes,
            host_budget_bytes=read_host().free_bytes + job.host_bytes,
            exact_only=exact_only,
            on_host=on_host,
            guided=job.guided,
            costs=job.costs,
            cautious=job.cautious,
        )
    except DoesNotFit:
        if on_host:  # the system may swap
            return None
        raise


def _requirements(settings: Settings, entry: ModelEntry, latent_channels: int) -> ModelRequirements:
    known = profiles.load_requirements(settings, entry)
    if known is not None and None not in known.denoise:
        return known
    return stored_requirements(settings, entry, components_of(entry, settings), latent_channels)


def _grouped(entry: ModelEntry, pipe: Any, placement: Placement | None) -> tuple[str, ...]:
    if placement is not None:
        return placement.group_offloaded
    if entry.placement != "group_offload":
        return ()
    return tuple(
        name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module) and name != "vae"
    )


def load_vae(entry: ModelEntry, settings: Settings, on_progress: OnProgress = lambda _progress: None) -> Any:
    """The model's VAE with its weights, on the CPU; downloads it alone if it is not here, and tells how far.

    Raises `ModelUnavailable`.
    """
    files = required_files(entry, settings)
    if files is not None and files.is_file():
        return _pretrained(_pipeline_class(entry.pipeline), entry, settings).vae
    if entry.vae is not None:
        return load_parts(entry, settings, "vae")["vae"]
    if needs_download(entry, settings, "vae"):
        download(entry, settings, on_progress, lambda: False, only="vae")
    vae_class = getattr(importlib.import_module("diffusers"), entry.vae_class)
    return _pretrained(vae_class, entry, settings, dtype=_dtype(entry.decode_dtype), subfolder="vae")


def where_weights_are(entry: ModelEntry, settings: Settings) -> str | None:
    """Where the model's files are on this machine, for people; None if they are not downloaded yet."""
    if entry.is_builtin:
        return "built in"
    files = local_files(entry, settings)
    if files is not None or entry.resolution is not None:
        return None if files is None else str(files)
    found = stored_snapshot(entry)
    return None if found is None else str(found.folder)


def _dtype(name: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, name)
    return found


def _dtypes(entry: ModelEntry) -> torch.dtype | dict[str, torch.dtype]:
    """The dtype of a pipeline's components; as diffusers takes it, by name if some have their own."""
    names = ("vae", "text_encoder", "text_encoder_2")
    own = {name: _dtype(entry.dtype_of(name)) for name in names if entry.dtype_of(name) != entry.dtype}
    return {**own, "default": _dtype(entry.dtype)} if own else _dtype(entry.dtype)


def _pretrained(
    loaded_class: Any, entry: ModelEntry, settings: Settings, *, dtype: Any = None, **options: Any
) -> Any:
    """A pipeline, or with `dtype` a component, with its weights."""
    files = required_files(entry, settings)
    if files is None and (stored := stored_snapshot(entry, options.get("subfolder"))) is not None:
        files = stored.folder  # whole: nothing of it is asked of the hub again
    dtype = _dtypes(entry) if dtype is None else dtype
    try:
        if files is not None and files.is_file():
            return loaded_class.from_single_file(files, entry.resolution, torch_dtype=dtype)
        return loaded_class.from_pretrained(
            entry.source if files is None else str(files),
            dtype=dtype,
            revision=entry.revision,
            variant=_variant_in(files, entry, options.get("subfolder")),
            local_files_only=files is not None,
            **options,
        )
    except (OSError, ValueError) as error:  # diffusers and the hub client raise these if anything is missing
        why = (
            explain_hub_error(error, entry.source, entry.revision)
            if files is None
            else f"{entry.source}: {error}"
        )
        raise ModelUnavailable(f"model {entry.name} cannot be loaded: {why}") from error


def _variant_in(folder: Path | None, entry: ModelEntry, component: str | None) -> str | None:
    """The entry's variant, unless none of the files to be loaded is of it, which diffusers refuses.

    A component may have none, and the only ones may be of components that come from elsewhere.
    """
    if folder is None or (component is None and not entry.parts):
        return entry.variant
    return entry.variant if any(folder.glob(f"{component or '*'}/*.{entry.variant}*")) else None


def _silence_progress_bars() -> None:
    """Switch off progress bars, which would fill the service's log."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _pipeline_class(name: str) -> Any:
    found = getattr(importlib.import_module(OWN_PIPELINES.get(name, "diffusers")), name, None)
    if found is None:
        raise ModelUnavailable(f"diffusers has no pipeline {name!r}: correct the entry's pipeline")
    return found
