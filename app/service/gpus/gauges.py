"""The gauges of GPUs: memory and utilization of each, and how many have no worker; the label of a device.

They are read at each scrape from the driver, the workers' last reports, and what the service's parent
published of unused GPUs.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from adaptive.device.nvml import GpuInfo, NvmlState
from app.jobs import WorkerRow, host_of
from app.service.gpus.unused import UnusedReason, published


def device_labels(workers: Iterable[WorkerRow]) -> dict[str, str]:
    """Return the label of each worker's device by the worker's id.

    It is the device's name, with the host before it if several hosts have a device of that name.
    """
    names = {worker.id: str(worker.device.get("name", worker.id)) for worker in workers}
    hosts: defaultdict[str, set[str]] = defaultdict(set)
    for worker_id, name in names.items():
        hosts[name].add(host_of(worker_id))
    return {one: name if len(hosts[name]) == 1 else f"{host_of(one)}/{name}" for one, name in names.items()}


def unused_gpus(data_dir: Path) -> Metric:
    """Return how many GPUs have no worker, for each reason."""
    family = GaugeMetricFamily("framefit_gpu_unused", "GPUs without a worker, by reason.", labels=["reason"])
    reasons = [gpu.reason for gpu in published(data_dir)]
    for reason in UnusedReason:
        family.add_metric([reason], reasons.count(reason))
    return family


def memory_gauges(
    found: Sequence[GpuInfo], alive: list[WorkerRow], labels: Mapping[str, str]
) -> Iterator[Metric]:
    """Yield the memory of GPUs as the driver reports it now, of other devices as workers last did.

    `labels` are those of devices without a UUID.
    """
    gpus = {gpu.uuid or f"gpu{gpu.index}": gpu for gpu in found if gpu.state is NvmlState.OK}
    own: dict[str, float] = {}
    for worker in alive:
        uuid = str(worker.device.get("uuid") or "")
        own[uuid] = own.get(uuid, 0) + int(worker.device.get("own_bytes") or 0)
    free: dict[str, float] = {key: gpu.free_bytes for key, gpu in gpus.items()}
    total: dict[str, float] = {key: gpu.total_bytes for key, gpu in gpus.items()}
    other: dict[str, float] = {key: max(0, gpu.used_bytes - own.get(key, 0)) for key, gpu in gpus.items()}
    for worker in (worker for worker in alive if worker.device.get("uuid") not in gpus):
        report = worker.device
        name = str(report.get("uuid") or labels[worker.id])
        free[name], total[name] = report.get("free_bytes") or 0, report.get("total_bytes") or 0
        own[name], other[name] = report.get("own_bytes") or 0, report.get("other_bytes") or 0
    busy = {key: gpu.utilization for key, gpu in gpus.items() if gpu.utilization is not None}
    yield _by_gpu("memory_free_bytes", "Free memory of the device.", free)
    yield _by_gpu("memory_total_bytes", "Total memory of the device.", total)
    yield _by_gpu(
        "memory_own_bytes", "Memory held by Framefit's workers.", {gpu: own.get(gpu, 0) for gpu in total}
    )
    yield _by_gpu("memory_other_bytes", "Memory held by other programs.", other)
    yield _by_gpu("utilization_ratio", "Share of time the GPU was busy, 0 to 1.", busy)


def _by_gpu(name: str, text: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"framefit_gpu_{name}", text, labels=["gpu"])
    for gpu, value in values.items():
        family.add_metric([gpu], value)
    return family
