"""What lasts from one call of a VAE to the next, by the device that the VAE is on: its probe, and its costs.

A VAE may be moved between calls. Owns which margins and speeds a call predicts with and adds to. It does not
know decodes, encodes or plans.
"""

from __future__ import annotations

import torch

from adaptive.device.probe import MemoryProbe, build_name, device_name, open_probe
from adaptive.memory.learned_costs import LearnedCosts, costs_of_process
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.speed import Speeds


class LiveDevices:
    """`probe` is used on every device; by default each device has its own.

    `residuals` and `speeds` are used on every device; by default each device has margins of its own. With
    `shares_costs`, they are those that all calls of this process on the device learn.
    """

    def __init__(
        self,
        probe: MemoryProbe | None,
        residuals: LearnedMargins | None,
        speeds: Speeds | None = None,
        *,
        shares_costs: bool,
    ) -> None:
        self._given_probe = probe
        self._probes: dict[str, MemoryProbe] = {}
        self._given_residuals = residuals
        self._residuals: dict[str, LearnedMargins] = {}
        self._speeds = speeds or Speeds()
        self._shares_costs = shares_costs

    def probe(self, device: torch.device) -> MemoryProbe:
        """The probe of a device. Raises `NoDevice` where torch has no such device."""
        if self._given_probe is not None:
            return self._given_probe
        name = str(device)
        if name not in self._probes:
            # What all calls of the process share comes with `enable`: the program has figures of its own.
            self._probes[name] = open_probe(name, resets_peaks=not self._shares_costs)
        return self._probes[name]

    def costs(self, device: torch.device) -> LearnedCosts:
        """Margins and speeds of a device, to predict with and to add to."""
        if self._shares_costs:
            return costs_of_process(device_name(device), build_name())
        name = str(device)
        residuals = self._given_residuals or self._residuals.setdefault(name, LearnedMargins(name))
        return LearnedCosts(device.type, build_name(), residuals, self._speeds)
