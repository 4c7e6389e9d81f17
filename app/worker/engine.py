"""One device: the model that is loaded on it, its memory, and the cleanup between jobs.

Owns loading and replacing the model, and the device reports. `app.worker.loaded_model` uses the model. Must
not know the job table.
"""

import gc
import logging
import os
import time
from typing import Any

import torch

from adaptive.device.gpu_processes import gpu_memory_users
from adaptive.device.host import freeze_garbage_collection, read_host
from adaptive.device.nvml import GpuInfo, Nvml, NvmlState
from adaptive.device.out_of_memory import is_out_of_memory, release_frames
from adaptive.device.probe import device_name, device_uuid, open_probe
from adaptive.errors import DoesNotFit, NoDevice
from adaptive.types import MemoryReading
from app.config import Settings
from app.fields.roles import Role
from app.jobs import JobSpec
from app.models import profiles
from app.models.entries import ModelEntry
from app.models.loading import PlacedJob, load_pipeline, load_vae
from app.models.parts.entry_parts import part_signatures
from app.worker.decoding import DecodeContext, OnEvent, load_learned_costs, save_learned_costs
from app.worker.denoise.pixel_maps import prepare_pixel_map
from app.worker.denoise.resumes import check_denoise_resumes
from app.worker.loaded_model import LoadedModel
from app.worker.roles.loaded_vae import LoadedVae

log = logging.getLogger(__name__)


class Engine:
    """One device and the model on it, of which a worker that only decodes loads the VAE alone.

    Raises `NoDevice` if torch cannot use the device.
    """

    def __init__(self, settings: Settings, device: str, role: Role = Role.BOTH) -> None:
        self.device = torch.device(device)
        self.role = role
        if self.device.type == "cuda" and not torch.cuda.is_available():
            built = "torch was built without CUDA" if not torch.version.cuda else "CUDA cannot be initialised"
            raise NoDevice(device, built)
        self._settings = settings
        self._probe = open_probe(device)
        self._nvml = Nvml()
        is_cuda = self.device.type == "cuda"
        self._uuid = device_uuid(self.device.index or 0, self._nvml) if is_cuda else None
        self._learned_costs = load_learned_costs(settings, self.device)
        self._model: LoadedVae | None = None
        self._parts: dict[str, str] = {}  # of the model: a signature of each file that its entry names
        self._load_seconds: dict[str, float] = {}  # the last measurement, by model

    @property
    def loaded_model(self) -> str | None:
        """Name of the model on the device; None before the first job."""
        return None if self._model is None else self._model.entry.name

    @property
    def name(self) -> str:
        """The device's name on this machine: a worker's own card is `cuda:0` for torch, whichever it is."""
        return str(self.device) if self._uuid is None else _name_of(self._nvml.read(self._uuid))

    @property
    def free_bytes(self) -> int:
        """Bytes that a new allocation could get now."""
        return self._probe.read().free_bytes

    @property
    def most_bytes(self) -> int:
        """Bytes of the device less this process' context and the reserve: more never become free."""
        reading = self._probe.read()
        return max(0, reading.total_bytes - reading.context_bytes - self._settings.reserve_bytes)

    @property
    def capacity_bytes(self) -> int:
        """The most bytes a decode could ever use here: `most_bytes` less the VAE's weights."""
        return max(0, self.most_bytes - (0 if self._model is None else self._model.vae_weight_bytes))

    @property
    def claimable_bytes(self) -> int:
        """The most bytes that a decode may need for this worker to claim its job: the device's or, if
        allowed, the host's.
        """
        return max(self.capacity_bytes, self.host_capacity_bytes or 0)

    @property
    def host_capacity_bytes(self) -> int | None:
        """Bytes that a decode on the CPU could get; None if the CPU may not stand in for this device."""
        if self.device.type == "cpu" or not self._settings.allow_cpu:
            return None
        return max(0, read_host().total_bytes - self._settings.reserve_bytes)

    def load(
        self, entry: ModelEntry, on_event: OnEvent, *, exact_only: bool = True, spec: JobSpec | None = None
    ) -> LoadedVae:
        """Load a model onto the device in place of the current one; returns the current one if it serves.

        It is a `LoadedModel`, unless this device only decodes.

        Its weights are placed for the job `spec`, by default for the entry's defaults. With `exact_only` the
        weights are those published: a model that was loaded in int8 is loaded again, as is one whose entry's
        files for components were replaced. Raises `DoesNotFit` if no placement fits the memory that is free
        now, or if the memory is taken while the model loads, and `ModelUnavailable` if its files or a library
        are missing.
        """
        held = self._model
        parts = part_signatures(entry)
        as_held = held is not None and held.entry == entry and self._parts == parts
        if held is not None and as_held and (held.exact or not exact_only):
            return held
        self._model = held = None
        self._parts = parts
        self._release_model()
        reading = self._probe.read()
        try:
            return self._load(entry, on_event, reading, exact_only=exact_only, spec=spec)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            release_frames(error)
        # Outside of the handler, whose error would keep what was loaded so far. The weights fitted into what
        # was free, so another program has taken some of it: that much must be free again.
        self._release_model()
        needed_bytes = max(0, min(reading.free_bytes - self._settings.reserve_bytes, self.capacity_bytes))
        left_bytes = max(0, self._probe.read().free_bytes - self._settings.reserve_bytes)
        raise DoesNotFit(f"loading model {entry.name}", needed_bytes=needed_bytes, budget_bytes=left_bytes)

    def _release_model(self) -> None:
        """Free the memory of a model that nothing refers to any more."""
        gc.unfreeze()  # it may be part of reference cycles
        self.clean_up()
        gc.freeze()  # `clean_up` has run the collector

    def _load(
        self,
        entry: ModelEntry,
        on_event: OnEvent,
        reading: MemoryReading,
        *,
        exact_only: bool,
        spec: JobSpec | None,
    ) -> LoadedVae:
        started = time.monotonic()
        if self.role is Role.DECODE:
            model = self._load_vae(entry, on_event, reading)
        else:
            model = self._load_whole(entry, on_event, reading, exact_only=exact_only, spec=spec)
        prepare_pixel_map(model, self._settings)
        on_event("loaded", {"model": entry.name, "placement": model.placement})
        self._load_seconds[entry.name] = time.monotonic() - started
        self._model = model  # before the calibration, which decides nothing
        model.calibrate(self._settings.calibrate_seconds)
        return model

    def _load_vae(self, entry: ModelEntry, on_event: OnEvent, reading: MemoryReading) -> LoadedVae:
        """The model's VAE alone. Raises `DoesNotFit` before its weights come to the device."""
        vae = load_vae(entry, self._settings)
        needed_bytes = sum(each.nbytes for each in (*vae.parameters(), *vae.buffers()))
        budget_bytes = max(0, reading.free_bytes - self._settings.reserve_bytes)
        if self.device.type != "cpu" and needed_bytes > budget_bytes:
            what = f"loading the VAE of model {entry.name}"
            raise DoesNotFit(what, needed_bytes=needed_bytes, budget_bytes=budget_bytes)
        context = DecodeContext(self._probe, profiles.load(self._settings, entry), self._learned_costs)
        model = LoadedVae(entry, vae.to(self.device), self._settings, self.device, context)
        freeze_garbage_collection()
        model.check_streaming(on_event)
        log.info("vae_loaded model=%s device=%s bytes=%d", entry.name, self.device, needed_bytes)
        return model

    def _load_whole(
        self,
        entry: ModelEntry,
        on_event: OnEvent,
        reading: MemoryReading,
        *,
        exact_only: bool,
        spec: JobSpec | None,
    ) -> LoadedModel:
        job = None if spec is None else PlacedJob.of(spec, self._learned_costs)
        placed = load_pipeline(entry, self._settings, self.device, reading, exact_only=exact_only, job=job)
        context = DecodeContext(self._probe, profiles.load(self._settings, entry), self._learned_costs)
        model = LoadedModel(entry, placed, self._settings, self.device, context)
        freeze_garbage_collection()
        model.check_streaming(on_event)
        check_denoise_resumes(model, on_event)
        return model

    def load_seconds(self, model: str) -> float:
        """Seconds to load a model: as measured; one that was never loaded here counts as the slowest."""
        return self._load_seconds.get(model, max(self._load_seconds.values(), default=0.0))

    def may_fit_later(self, refusal: DoesNotFit, job_budget_bytes: int | None = None) -> bool:
        """Whether waiting may help: the device could hold what was refused once other users free memory.

        A refusal over the job's own budget (`job_budget_bytes`) is final: that budget never grows.
        """
        if job_budget_bytes is not None and refusal.needed_bytes > job_budget_bytes:
            return False
        return refusal.needed_bytes <= self.capacity_bytes

    def clean_up(self) -> None:
        """Save what the last job taught about costs, and free cached memory."""
        host = None if self._model is None else self._model.host_learned_costs
        try:
            self._settings.data_dir.stat()  # one that was removed must not be made anew
            for costs in (self._learned_costs, *(() if host is None else (host,))):
                save_learned_costs(self._settings, costs)
        except OSError as error:  # the next job teaches it again
            log.warning("learned_costs_not_saved reason=%s", error)
        self._probe.release()

    def memory_report(self) -> dict[str, Any]:
        """Free, own and other bytes; on a GPU also its users (see `adaptive.device.gpu_processes`)."""
        reading = self._probe.read()
        report: dict[str, Any] = {
            "free_bytes": reading.free_bytes,
            "own_bytes": reading.own_bytes,
            "other_bytes": reading.other_bytes,
        }
        gpu = None if self._uuid is None else self._nvml.read(self._uuid)
        if gpu is not None and gpu.state is NvmlState.OK:
            found = gpu_memory_users(gpu, {os.getpid(): reading.own_bytes})
            report["holders"] = [each.as_json() for each in found]
        return report

    def device_report(self) -> dict[str, Any]:
        """The device report of a heartbeat, as `app.store.workers` stores it."""
        report: dict[str, Any] = {
            "name": str(self.device),
            "kind": self.device.type,
            "role": self.role.value,
            "load_seconds": {name: round(seconds, 3) for name, seconds in self._load_seconds.items()},
            "total_bytes": self._probe.read().total_bytes,
            **self.memory_report(),
            "capacity_bytes": self.capacity_bytes,
            "host_capacity_bytes": self.host_capacity_bytes,
            "host_total_bytes": read_host().total_bytes,
            **({} if self._model is None else self._model.idle_report()),
            "loaded_model": self.loaded_model,
            "loaded_placement": None if self._model is None else self._model.placement,
            "state": "ok",
            "learned": self._learned_costs.summary(),
        }
        if self._uuid is not None:
            gpu = self._nvml.read(self._uuid)
            report |= {
                "name": _name_of(gpu),
                "uuid": gpu.uuid,
                "index": gpu.index,
                "product": gpu.name or device_name(self.device).removeprefix("cuda "),
                "utilization": gpu.utilization,
                "state": gpu.state.value,
            }
        return report


def _name_of(gpu: GpuInfo) -> str:
    # A number names a whole card only: other workers may use the card's other instances.
    return f"cuda:{gpu.index}" if gpu.index >= 0 and not gpu.is_mig else gpu.uuid
