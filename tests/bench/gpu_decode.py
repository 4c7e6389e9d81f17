"""One process of `tests/bench/gpu.py`: one case decoded one way, several times, with its memory watched.

Arguments: case, way, device, dtype, repeats, bytes of the emulated card (on the CPU it limits this process'
address space; on a GPU another process already holds the rest). Prints one JSON object.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import threading
from types import TracebackType
from typing import Any, Self

import psutil
import torch
from gpu_cases import CASES, OURS, TINY_CASES, Case, build, ours, ways_of
from torch import Tensor

from adaptive.device.host import ResidentPeak, limit_heap_growth
from adaptive.device.nvml import Nvml
from adaptive.device.out_of_memory import is_out_of_memory
from adaptive.device.probe import open_probe, synchronized_seconds
from adaptive.planning.planner import RESERVE_BYTES

SAMPLE_SECONDS = 0.005


class DriverPeak(threading.Thread):
    """Highest use of the card that the driver reports during the block, above the use at its start."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(daemon=True)
        self._nvml = Nvml()
        told = getattr(torch.cuda.get_device_properties(device), "uuid", None)
        self._uuid = f"GPU-{told}" if not str(told).startswith(("GPU-", "MIG-")) else str(told)
        self._ended = threading.Event()
        self._first = self._highest = 0

    def _used(self) -> int:
        return self._nvml.read(self._uuid).used_bytes

    def run(self) -> None:
        """Sample until the block ends."""
        while not self._ended.wait(SAMPLE_SECONDS):
            self._highest = max(self._highest, self._used())

    def __enter__(self) -> Self:
        self._first = self._highest = self._used()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self.join()

    @property
    def growth_bytes(self) -> int:
        """Peak above the beginning."""
        return self._highest - self._first


def decode_once(way: Any, vae: Any, latents: Tensor) -> int:
    """Frames of one decode; each part is dropped as a consumer would that encodes it."""
    frames = 0
    with torch.no_grad():
        for part in way(vae, latents):
            frames += part.shape[2]
            del part
    return frames


def measured(way: Any, vae: Any, latents: Tensor, repeats: int) -> dict[str, Any]:
    """Seconds and peaks of a warm-up and `repeats` decodes."""
    device = latents.device
    seconds: list[float] = []
    on_gpu = device.type == "cuda"
    host = ResidentPeak()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        base = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    with DriverPeak(device) if on_gpu else host_watch(host) as watch:
        for _ in range(repeats + 1):
            started = synchronized_seconds(device)
            frames = decode_once(way, vae, latents)
            seconds.append(synchronized_seconds(device) - started)
    peaks = {
        "allocated_bytes": torch.cuda.max_memory_allocated(device) - base[0] if on_gpu else None,
        "reserved_bytes": torch.cuda.max_memory_reserved(device) - base[1] if on_gpu else None,
        "driver_bytes": watch.growth_bytes if on_gpu else None,
        "resident_bytes": None if on_gpu else watch.growth_bytes,
    }
    return {"frames": frames, "seconds": statistics.median(seconds[1:]), "first_seconds": seconds[0], **peaks}


class host_watch:  # noqa: N801 - a context manager used like a function
    """The resident set's high-water mark, in the form of `DriverPeak`."""

    def __init__(self, peak: ResidentPeak) -> None:
        self._peak = peak
        self.growth_bytes: int | None = None

    def __enter__(self) -> Self:
        self._peak.reset()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        growth = self._peak.growth()
        self.growth_bytes = None if growth is None else growth.total_bytes


def limit_host(card_bytes: int) -> None:
    """From here on this process can take `card_bytes` more of address space, as if that were the card."""
    held = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (held + card_bytes, resource.RLIM_INFINITY))


def run(case: Case, way_name: str, device: str, dtype: str, repeats: int, card_bytes: int) -> dict[str, Any]:
    """The row of one case and way; an allocation that fails is a result, too."""
    decoders: list[Any] = []
    reserve_bytes = 0 if device == "cpu" else RESERVE_BYTES  # tiny cards have none to spare
    way = ours(decoders, reserve_bytes) if way_name == OURS else ways_of(case)[way_name]
    vae = build(case, dtype)
    latents = torch.randn(case.latents, generator=torch.Generator().manual_seed(1)).to(vae.dtype)
    if device == "cpu":
        torch.set_num_threads(1)
        limit_heap_growth()
        limit_host(card_bytes)
    try:
        vae, latents = vae.to(device), latents.to(device)
        open_probe(device)  # the context is made before anything is counted
        row: dict[str, Any] = {"ok": True, **measured(way, vae, latents, repeats)}
    except Exception as error:
        fits = is_out_of_memory(error) or type(error).__name__ in ("DoesNotFit", "DecodeOutOfMemory")
        return {"ok": False, "error": "out_of_memory" if fits else f"{type(error).__name__}: {error}"}
    if decoders:
        row["plan"] = plan_of(decoders[-1].report)
    return row


def plan_of(report: Any) -> dict[str, Any]:
    """What ours decided and predicted."""
    return {
        "strategy": report.strategy.value,
        "frames_per_chunk": report.frames_per_chunk,
        "exact": report.exact,
        "detail": report.plan.detail,
        "live_bytes": report.plan.predicted.live_bytes,
        "expected_bytes": report.plan.predicted.expected_bytes,
        "upper_bytes": report.plan.predicted.upper_bytes,
        "measured_bytes": report.measured_peak_bytes,
        "retries": report.retries,
    }


if __name__ == "__main__":
    name, way_name, device, dtype, repeats, card_bytes = sys.argv[1:]
    found = {**CASES, **TINY_CASES}[name]
    print(json.dumps(run(found, way_name, device, dtype, int(repeats), int(card_bytes))))  # noqa: T201
