"""The gauges of hosts that have devices of one name: one series a device, and a lost worker shows."""

import socket
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaptive.device.nvml import GpuInfo, NvmlState
from app.jobs import JobSpec
from app.service.exposition.live_gauges import Duties, LiveGauges
from app.store import JobStore

MARGIN = {
    "observations": 3,
    "too_little_ratio": None,
    "workspace_ratio": 0.1,
    "fragmentation_ratio": 0.1,
    "upper_ratio": 0.2,
}
LEARNED = {"margins": {"ltx/float32/chunked": MARGIN}}


def samples(store: JobStore, data_dir: Path) -> dict[tuple[str, ...], float]:
    """Every sample of a device by its name, host, GPU, device and, of margins, part."""
    gauges = LiveGauges(store, lambda: [], alive_seconds=15, data_dir=data_dir)
    named = ("host", "gpu", "device", "part")
    found = [
        ((sample.name, *(sample.labels[name] for name in named if name in sample.labels)), sample.value)
        for family in gauges.collect()
        for sample in family.samples
        if "gpu" in sample.labels
    ]
    assert max(Counter(labels for labels, _ in found).values()) == 1, "Prometheus drops samples that repeat"
    return dict(found)


def cpu(free_bytes: int) -> dict[str, Any]:
    return {"name": "cpu", "free_bytes": free_bytes, "total_bytes": 100, "learned": LEARNED}


def test_devices_of_one_name_are_told_apart_by_host_and_keep_their_labels_when_another_host_joins(
    store: JobStore, tmp_path: Path, clock: Any
) -> None:
    store.register_worker("a/cpu/1", cpu(10))
    store.register_worker("a/GPU-1/1", {"name": "cuda:0", "uuid": "GPU-1", "free_bytes": 30})
    before = samples(store, tmp_path)
    assert before["framefit_worker_up", "a", "cpu", "cpu"] == 1
    assert before["framefit_gpu_memory_free_bytes", "a", "cpu", "cpu"] == 10
    store.register_worker("b/cpu/2", cpu(20))
    found = samples(store, tmp_path)
    assert before.items() <= found.items()
    assert found["framefit_gpu_memory_free_bytes", "b", "cpu", "cpu"] == 20
    assert found["framefit_gpu_memory_free_bytes", "a", "GPU-1", "cuda:0"] == 30
    assert found["framefit_decode_margin_ratio", "b", "cpu", "cpu", "upper"] == 0.2
    clock.now += 60
    store.heartbeat("a/cpu/1", device=cpu(10))
    found = samples(store, tmp_path)
    up = {labels[1:]: value for labels, value in found.items() if labels[0] == "framefit_worker_up"}
    assert up == {("a", "cpu", "cpu"): 1, ("b", "cpu", "cpu"): 0, ("a", "GPU-1", "cuda:0"): 0}


def test_two_services_of_one_host_share_the_series_of_their_cpu(store: JobStore, tmp_path: Path) -> None:
    store.register_worker("a/cpu/1", cpu(10))
    store.register_worker("a/cpu/2", cpu(10))
    assert samples(store, tmp_path)["framefit_worker_up", "a", "cpu", "cpu"] == 1


def test_a_gpu_that_two_containers_number_differently_has_one_name(
    store: JobStore, tmp_path: Path, clock: Any
) -> None:
    store.register_worker("a/GPU-1/1", {"name": "cuda:0", "uuid": "GPU-1"})
    clock.now += 1
    store.register_worker("a/GPU-1/2", {"name": "cuda:3", "uuid": "GPU-1"})
    names = {labels[1:] for labels in samples(store, tmp_path)}
    assert names == {("a", "GPU-1", "cuda:3")}


def test_a_gpu_counts_as_reported_only_while_the_driver_tells_its_memory(
    store: JobStore, tmp_path: Path
) -> None:
    store.register_worker("a/cpu/1", cpu(10))
    gpu = GpuInfo("GPU-1", 0, "card", 100, 50, 50, 0.5, (), NvmlState.OK)
    lost = replace(gpu, uuid="GPU-2", state=NvmlState.GPU_LOST)
    gauges = LiveGauges(store, lambda: [gpu, lost], alive_seconds=15, data_dir=tmp_path, host="a")
    (family,) = (one for one in gauges.collect() if one.name == "framefit_gpu_reported")
    assert [sample.labels["gpu"] for sample in family.samples] == ["GPU-1"]


def test_the_oldest_queued_job_is_shown_with_its_age(
    store: JobStore, tmp_path: Path, clock: Any, make_spec: Callable[..., JobSpec]
) -> None:
    gauges = LiveGauges(store, lambda: [], alive_seconds=15, data_dir=tmp_path)

    def age() -> float:
        (family,) = (one for one in gauges.collect() if one.name == "framefit_jobs_oldest_queued_seconds")
        return family.samples[0].value

    assert age() == 0
    store.add(make_spec(), b"image")
    clock.now += 40
    store.add(make_spec(priority=5), b"image")
    assert age() == 40
    assert store.claim("a/cpu/1") is not None, "the one of higher priority"
    assert age() == 40
    assert store.claim("a/cpu/2") is not None
    assert age() == 0


def test_each_gpu_is_exported_by_one_api_process_of_several(store: JobStore, tmp_path: Path) -> None:
    here = socket.gethostname()
    for host in (here, "other-with-api", "other-without"):
        store.register_worker(f"{host}/GPU-of-{host}/1", {"uuid": f"GPU-of-{host}", "total_bytes": 100})
    seen_here = GpuInfo(f"GPU-of-{here}", 0, "card", 100, 50, 50, 0.5, (), NvmlState.OK)
    exporter = Duties(store=True, gpus=False, other_hosts=frozenset({here, "other-with-api"}))
    same_host = Duties(store=False, gpus=True, other_hosts=frozenset({"other-with-api"}))
    third = Duties(store=False, gpus=False, other_hosts=frozenset({here, "other-with-api"}))
    shown = defaultdict(float)
    for duties in (exporter, same_host, third):
        gauges = LiveGauges(
            store, lambda: [seen_here], alive_seconds=15, data_dir=tmp_path, duties=lambda one=duties: one
        )
        for family in gauges.collect():
            for sample in family.samples:
                shown[(sample.name, sample.labels["gpu"]) if "gpu" in sample.labels else (sample.name,)] += (
                    sample.value
                )
    assert shown["framefit_gpu_memory_total_bytes", f"GPU-of-{here}"] == 100
    assert shown["framefit_gpu_memory_total_bytes", "GPU-of-other-without"] == 100
    assert ("framefit_gpu_memory_total_bytes", "GPU-of-other-with-api") not in shown, "that host's shows it"
    assert (
        shown[("framefit_exporter",)],
        sum(v for k, v in shown.items() if k[0] == "framefit_worker_up"),
    ) == (1, 3)
