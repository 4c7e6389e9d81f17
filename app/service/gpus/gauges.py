"""The gauges of devices: memory and utilization of each, who they are, and how many GPUs have no worker.

They are read at each scrape from the driver, the workers' last reports, and what the service's parent
published of unused GPUs. A device is known by `host` and `gpu`: its UUID, or its name if it has none.
`device` is its name on the host, such as `cuda:0`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from adaptive.device.nvml import GpuInfo, NvmlState
from app.fields.roles import role_of
from app.jobs import WorkerRow
from app.service.gpus.unused import UnusedReason, published

CARD = ("gpu", "host", "device")


class Card(NamedTuple):
    """The labels of a device; the values of `CARD`."""

    gpu: str
    host: str
    device: str


def card_of(worker: WorkerRow) -> Card:
    """Return the labels of a worker's device."""
    name = str(worker.device.get("name", worker.id))
    return Card(str(worker.device.get("uuid") or name), worker.host, name)


def cards_of(workers: Iterable[WorkerRow]) -> dict[str, Card]:
    """Return the labels of each worker's device by the worker's id.

    Services in containers may number a host's GPUs differently: the name is that of the latest heartbeat, so
    that a GPU has one.
    """
    ordered = sorted(workers, key=lambda worker: worker.heartbeat_at)
    latest = {card.gpu + card.host: card for card in map(card_of, ordered)}
    return {worker.id: latest[card.gpu + card.host] for worker in ordered for card in [card_of(worker)]}


def device_info(cards: Iterable[Card], workers: Iterable[WorkerRow]) -> Metric:
    """Return the device behind each pair of `host` and `gpu`, which joins its names to other metrics."""
    told = {card_of(worker)[:2]: worker.device for worker in workers}
    family = GaugeMetricFamily(
        "framefit_device_info",
        "The name, kind and product of each device.",
        labels=[*CARD, "kind", "product"],
    )
    for card in dict.fromkeys(cards):
        report: Mapping[str, Any] = told.get(card[:2], {})
        family.add_metric([*card, str(report.get("kind") or ""), str(report.get("product") or "")], 1)
    return family


def worker_roles(alive: Iterable[WorkerRow], cards: Mapping[str, Card]) -> Metric:
    """Return what each device's worker does: 1 for its role."""
    text = "The role of a device's worker: both, denoise or decode."
    family = GaugeMetricFamily("framefit_worker_role", text, labels=[*CARD, "role"])
    for card, role in {cards[worker.id]: role_of(worker.device) for worker in alive}.items():
        family.add_metric([*card, role], 1)
    return family


def unused_gpus(data_dir: Path) -> Metric:
    """Return how many GPUs have no worker, for each reason."""
    family = GaugeMetricFamily("framefit_gpu_unused", "GPUs without a worker, by reason.", labels=["reason"])
    reasons = [gpu.reason for gpu in published(data_dir)]
    for reason in UnusedReason:
        family.add_metric([reason], reasons.count(reason))
    return family


def memory_gauges(
    found: Sequence[GpuInfo], alive: list[WorkerRow], cards: Mapping[str, Card], own_host: str
) -> Iterator[Metric]:
    """Yield the memory of this host's GPUs as the driver reports it now, of others as workers last did.

    `cards` are the labels of devices by worker.
    """
    named = {card.gpu: card for card in cards.values() if card.host == own_host}
    gpus: dict[Card, GpuInfo] = {}
    for gpu in found:
        if gpu.state is NvmlState.OK:
            name = gpu.uuid if gpu.is_mig else f"cuda:{gpu.index}"
            key = gpu.uuid or f"gpu{gpu.index}"
            gpus[named.get(key, Card(key, own_host, name))] = gpu
    own: dict[Card, float] = {}
    for worker in alive:
        card = cards[worker.id]
        own[card] = own.get(card, 0) + int(worker.device.get("own_bytes") or 0)
    free: dict[Card, float] = {card: gpu.free_bytes for card, gpu in gpus.items()}
    total: dict[Card, float] = {card: gpu.total_bytes for card, gpu in gpus.items()}
    other: dict[Card, float] = {card: max(0, gpu.used_bytes - own.get(card, 0)) for card, gpu in gpus.items()}
    for worker in (worker for worker in alive if cards[worker.id] not in gpus):
        report, card = worker.device, cards[worker.id]
        free[card], total[card] = report.get("free_bytes") or 0, report.get("total_bytes") or 0
        own[card], other[card] = report.get("own_bytes") or 0, report.get("other_bytes") or 0
    busy = {card: gpu.utilization for card, gpu in gpus.items() if gpu.utilization is not None}
    yield by_card("gpu_memory_free_bytes", "Free memory of the device.", free)
    yield by_card("gpu_memory_total_bytes", "Total memory of the device.", total)
    yield by_card(
        "gpu_memory_own_bytes",
        "Memory held by Framefit's workers.",
        {card: own.get(card, 0) for card in total},
    )
    yield by_card("gpu_memory_other_bytes", "Memory held by other programs.", other)
    yield by_card("gpu_utilization_ratio", "Share of time the GPU was busy, 0 to 1.", busy)
    yield by_card(
        "gpu_reported", "GPUs whose memory the driver reports; a lost one is absent.", dict.fromkeys(gpus, 1)
    )


def by_card(name: str, text: str, values: Mapping[Card, float]) -> Metric:
    """Return a gauge with a value for each device."""
    family = GaugeMetricFamily(f"framefit_{name}", text, labels=CARD)
    for card, value in values.items():
        family.add_metric(card, value)
    return family
