"""Calibrates a configured model's VAE on a device of this machine and saves the learned costs.

Owns the steps from a model's entry to its measurements. `adaptive.decoding.calibrate` decides what is
measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adaptive.decoding.calibrate import Measurement, as_markdown, calibrate, plot
from adaptive.device.probe import open_probe
from adaptive.memory.profile import MemoryProfile
from adaptive.memory.profile_trace import trace_profile
from app.config import Settings
from app.models import profiles
from app.models.components import build_component, components_of
from app.models.entries import ModelEntry
from app.models.loading import load_vae, where_weights_are
from app.service.data_folder import prepare_data_folder
from app.worker.decoding import learned_costs_path, load_learned_costs, save_learned_costs


@dataclass(frozen=True, slots=True)
class Calibration:
    """The measurements, and the file of learned costs that the planner reads.

    `times_kept`: whether the file has the times, too. Times of a single small shape do not predict others.
    """

    measurements: list[Measurement]
    times_kept: bool
    device: str
    title: str
    kept_in: Path

    def write_table(self, path: Path) -> None:
        """Write the measurements as a Markdown table."""
        path.write_text(as_markdown(self.measurements, self.title), encoding="utf-8")

    def write_plot(self, path: Path) -> None:
        """Write a PNG of memory against time. Raises `ModuleNotFoundError` without matplotlib."""
        plot(self.measurements, path, self.title)


def calibrate_model(
    settings: Settings,
    entry: ModelEntry,
    device: str,
    *,
    limit_seconds: float,
    on_measured: Callable[[Measurement], None],
) -> Calibration:
    """Measure on `device` ("auto": the first GPU, else the CPU), every strategy at least once.

    Raises `NoDevice`, `ModelUnavailable`, `DataFolderRefused`.
    """
    if device == "auto":
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    prepare_data_folder(settings.data_dir)  # the command may run before any service
    probe, where = open_probe(device), torch.device(device)
    vae = _vae(settings, entry).to(where)
    profile = profiles.load(settings, entry) or _traced(settings, entry)
    learned_costs = load_learned_costs(settings, where)
    found = calibrate(
        vae,
        profile,
        probe,
        learned_costs,
        limit_seconds=limit_seconds,
        every_strategy=True,
        on_measured=on_measured,
    )
    save_learned_costs(settings, learned_costs)
    what = f"{entry.vae_class}, {entry.decode_dtype}"
    title = f"{entry.name} ({what}) on {learned_costs.device}, {learned_costs.build}"
    times_kept = learned_costs.speeds.observations(profile) > 0
    return Calibration(found, times_kept, device, title, learned_costs_path(settings, learned_costs.device))


def _traced(settings: Settings, entry: ModelEntry) -> MemoryProfile:
    component = components_of(entry, settings)["vae"]
    profile = trace_profile(component.class_name, component.config, entry.decode_dtype)
    profiles.save(settings, entry, profile)
    return profile


def _vae(settings: Settings, entry: ModelEntry) -> Any:
    """The model's VAE, or one of the same configuration with random weights if its weights are not here."""
    if entry.vae is not None or where_weights_are(entry, settings) is not None:
        return load_vae(entry, settings)
    component = components_of(entry, settings)["vae"]
    torch.manual_seed(0)
    return build_component(component).eval().to(getattr(torch, entry.dtype))
