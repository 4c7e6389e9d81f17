"""The device at work: which model is on it, how much memory it has, what to let go of between jobs.

Owns the loaded model's place on the device and the readings of its memory. Knows jobs not at all; what is
done with the model is `app.worker.loaded_model`.
"""

import gc
import logging
import os
from typing import Any

import torch

from adaptive.device.gpu_processes import gpu_memory_users
from adaptive.device.host import freeze_garbage_collection, read_host
from adaptive.device.nvml import Nvml, NvmlState, cuda_visible_uuid
from adaptive.device.probe import open_probe
from adaptive.errors import DoesNotFit, NoDevice
from app.config import Settings
from app.models import profiles
from app.models.entries import ModelEntry
from app.models.loading import load_pipeline
from app.worker.decoding import DecodeContext, OnEvent, load_learned_costs, save_learned_costs
from app.worker.loaded_model import LoadedModel

log = logging.getLogger(__name__)


class Engine:
    """One device and the model on it. Raises `NoDevice` where torch cannot use the device."""

    def __init__(self, settings: Settings, device: str) -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            built = "torch was built without CUDA" if not torch.version.cuda else "CUDA cannot be initialised"
            raise NoDevice(device, built)
        self._settings = settings
        self._probe = open_probe(device)
        self._nvml = Nvml()
        self._uuid = cuda_visible_uuid(self.device.index or 0) if self.device.type == "cuda" else None
        self._learned_costs = load_learned_costs(settings, self.device)
        self._model: LoadedModel | None = None

    @property
    def loaded_model(self) -> str | None:
        """Name of the model that is on the device."""
        return None if self._model is None else self._model.entry.name

    @property
    def free_bytes(self) -> int:
        """What a new allocation could get now."""
        return self._probe.read().free_bytes

    @property
    def capacity_bytes(self) -> int:
        """The most a decode could ever use here: all of the device but the reserve and the VAE's weights."""
        weights = 0 if self._model is None else self._model.vae_weight_bytes
        return max(0, self._probe.read().total_bytes - self._settings.reserve_bytes - weights)

    @property
    def claimable_bytes(self) -> int:
        """The most a job's decode may need for this worker to take it: where allowed, the host's memory
        counts.
        """
        return max(self.capacity_bytes, self.host_capacity_bytes or 0)

    @property
    def host_capacity_bytes(self) -> int | None:
        """What a decode on the CPU could get; None where a device is not to be helped out by it."""
        if self.device.type == "cpu" or not self._settings.allow_cpu:
            return None
        return max(0, read_host().total_bytes - self._settings.reserve_bytes)

    def load(self, entry: ModelEntry, on_event: OnEvent, *, exact_only: bool = True) -> LoadedModel:
        """Bring a model onto the device, in place of the one that is there.

        With `exact_only` its weights are those published: one that was loaded in int8 is loaded anew. Raises
        `DoesNotFit` where no placement fits what is free now, `ModelUnavailable` where its files or a library
        cannot be had.
        """
        held = self._model
        if held is not None and held.entry == entry and (held.exact or not exact_only):
            return held
        self._model = held = None
        gc.unfreeze()  # the model that goes may hold itself in cycles
        self.clean_up()
        gc.freeze()  # `clean_up` has collected
        reading = self._probe.read()
        placed = load_pipeline(entry, self._settings, self.device, reading, exact_only=exact_only)
        around = DecodeContext(self._probe, profiles.load(self._settings, entry), self._learned_costs)
        model = LoadedModel(entry, placed, self._settings, self.device, around)
        freeze_garbage_collection()
        on_event("loaded", {"model": entry.name, "placement": placed.as_json()})
        model.check_streaming(on_event)
        model.calibrate(self._settings.calibrate_seconds)
        self._model = model
        return model

    def may_fit_later(self, refusal: DoesNotFit, job_budget_bytes: int | None = None) -> bool:
        """Whether memory that others hold now would be enough; a budget that the job brought itself never
        grows.
        """
        if job_budget_bytes is not None and refusal.needed_bytes > job_budget_bytes:
            return False
        return refusal.needed_bytes <= self.capacity_bytes

    def clean_up(self) -> None:
        """Keep what the last job taught; give back what it left in caches."""
        save_learned_costs(self._settings, self._learned_costs)
        if self._model is not None and self._model.host_experience is not None:
            save_learned_costs(self._settings, self._model.host_experience)
        self._probe.release()

    def memory_report(self) -> dict[str, Any]:
        """Free, own and others' bytes; on a GPU also who holds them (`adaptive.device.gpu_processes`)."""
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
        """What `app.store.workers` keeps of a device."""
        report: dict[str, Any] = {
            "name": str(self.device),
            "kind": self.device.type,
            "total_bytes": self._probe.read().total_bytes,
            **self.memory_report(),
            "capacity_bytes": self.capacity_bytes,
            "host_capacity_bytes": self.host_capacity_bytes,
            **({} if self._model is None else self._model.idle_report()),
            "loaded_model": self.loaded_model,
            "loaded_placement": None if self._model is None else self._model.placement,
            "state": "ok",
            "learned": self._learned_costs.summary(),
        }
        if self._uuid is not None:
            gpu = self._nvml.read(self._uuid)
            report |= {
                "name": f"cuda:{gpu.index}",
                "uuid": gpu.uuid,
                "index": gpu.index,
                "product": gpu.name,
                "utilization": gpu.utilization,
                "state": gpu.state.value,
            }
        return report
