"""The gauges of hosts that have devices of one name: one series a device, and a lost worker shows."""

import socket
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from adaptive.device.nvml import GpuInfo, NvmlState
from app.service.exposition.metrics import Duties, LiveGauges
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
    """Every sample of a device or a GPU by its name and labels."""
    gauges = LiveGauges(store, lambda: [], alive_seconds=15, data_dir=data_dir)
    found = [
        ((sample.name, *sample.labels.values()), sample.value)
        for family in gauges.collect()
        for sample in family.samples
        if sample.labels
    ]
    assert max(Counter(labels for labels, _ in found).values()) == 1, "Prometheus drops samples that repeat"
    return dict(found)


def cpu(free_bytes: int) -> dict[str, Any]:
    return {"name": "cpu", "free_bytes": free_bytes, "total_bytes": 100, "learned": LEARNED}


def test_a_device_has_its_name_and_its_host_only_where_another_host_has_one_of_that_name(
    store: JobStore, tmp_path: Path, clock: Any
) -> None:
    store.register_worker("a/cpu/1", cpu(10))
    store.register_worker("a/GPU-1/1", {"name": "cuda:0", "uuid": "GPU-1", "free_bytes": 30})
    found = samples(store, tmp_path)
    assert found["framefit_worker_up", "cpu"] == 1
    assert found["framefit_gpu_memory_free_bytes", "cpu"] == 10
    store.register_worker("b/cpu/2", cpu(20))
    found = samples(store, tmp_path)
    assert found["framefit_gpu_memory_free_bytes", "a/cpu"] == 10
    assert found["framefit_gpu_memory_free_bytes", "b/cpu"] == 20
    assert found["framefit_gpu_memory_free_bytes", "GPU-1"] == 30
    assert found["framefit_decode_margin_ratio", "b/cpu", "ltx", "float32", "chunked", "upper"] == 0.2
    clock.now += 60
    store.heartbeat("a/cpu/1", device=cpu(10))
    found = samples(store, tmp_path)
    up = {labels[1]: value for labels, value in found.items() if labels[0] == "framefit_worker_up"}
    assert up == {"a/cpu": 1, "b/cpu": 0, "cuda:0": 0}


def test_two_services_of_one_host_share_the_series_of_their_cpu(store: JobStore, tmp_path: Path) -> None:
    store.register_worker("a/cpu/1", cpu(10))
    store.register_worker("a/cpu/2", cpu(10))
    assert samples(store, tmp_path)["framefit_worker_up", "cpu"] == 1


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
                shown[sample.name, *sample.labels.values()] += sample.value
    assert shown["framefit_gpu_memory_total_bytes", f"GPU-of-{here}"] == 100
    assert shown["framefit_gpu_memory_total_bytes", "GPU-of-other-without"] == 100
    assert ("framefit_gpu_memory_total_bytes", "GPU-of-other-with-api") not in shown, "that host's shows it"
    assert (
        shown[("framefit_exporter",)],
        sum(v for k, v in shown.items() if k[0] == "framefit_worker_up"),
    ) == (1, 3)
