"""The memory of the last hour: readings of each worker, and the decodes that events tell of."""

from adaptive.device.nvml import GpuInfo, NvmlState
from app.jobs import Event, WorkerRow
from app.service.gpus import memory_history
from app.service.gpus.memory_history import Decode, MemoryHistory, Reading

GIB = 2**30


class Machine:
    """Workers and GPUs as they are read, at a time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.workers: list[WorkerRow] = []
        self.gpus: list[GpuInfo] = []
        self.history = MemoryHistory(lambda: self.workers, lambda: self.gpus, lambda: self.now)

    def worker(self, name: str, **device: object) -> None:
        self.workers.append(WorkerRow(name, {"name": "cuda:0", **device}, None, "active", 0.0, self.now))

    def event(self, kind: str, job_id: str = "a", **data: object) -> None:
        self.history.apply([Event(1, job_id, kind, self.now, data)])


def test_the_driver_s_reading_is_kept_where_it_has_one_and_the_worker_s_elsewhere() -> None:
    machine = Machine()
    machine.worker("host/cuda:0/1", uuid="GPU-1", total_bytes=8 * GIB, free_bytes=7 * GIB, own_bytes=GIB)
    machine.worker("host/cpu/1", total_bytes=4 * GIB, free_bytes=3 * GIB, own_bytes=9 * GIB)
    machine.worker("host/broken/1")
    machine.gpus = [GpuInfo("GPU-1", 0, "card", 10 * GIB, 6 * GIB, 4 * GIB, None, (), NvmlState.OK)]
    machine.history.turn()
    machine.gpus = [GpuInfo("GPU-1", 0, "card", 0, 0, 0, None, (), NvmlState.GPU_LOST)]
    machine.now += 4
    machine.history.turn()
    assert machine.history.readings(0) == {
        "host/cuda:0/1": [
            Reading(1000.0, 10 * GIB, 6 * GIB, GIB),
            Reading(1004.0, 8 * GIB, 7 * GIB, GIB),
        ],
        "host/cpu/1": [Reading(at, 4 * GIB, 3 * GIB, 4 * GIB) for at in (1000.0, 1004.0)],
    }
    assert [len(kept) for kept in machine.history.readings(1001.0).values()] == [1, 1]
    assert machine.history.readings(1005.0) == {}


def test_what_is_kept_is_bounded() -> None:
    machine = Machine()
    for number in range(memory_history.MOST_READINGS + 10):
        machine.workers.clear()
        machine.worker("stays", total_bytes=GIB)
        machine.worker(f"restarted {number}", total_bytes=GIB)
        machine.now += 4
        machine.history.turn()
    kept = machine.history.readings(0)
    assert len(kept) == memory_history.MOST_WORKERS
    assert len(kept["stays"]) == memory_history.MOST_READINGS
    for number in range(memory_history.MOST_DECODES + 10):
        machine.event("claimed", str(number), worker_id="w")
        machine.event("plan", str(number), predicted_peak_bytes=5)
        machine.event("stage", str(number), stage="decoding")
    assert len(machine.history.decodes(0)) == memory_history.MOST_DECODES
    for number in range(memory_history.MOST_DECODES + 10):
        machine.event("finished", str(number))
    assert len(machine.history.decodes(0)) == memory_history.MOST_DECODES


def test_a_decode_begins_with_its_stage_and_ends_with_the_writing_of_the_video() -> None:
    machine = Machine()
    machine.event("claimed", worker_id="host/cpu/1", attempt=1)
    machine.event("stage", stage="denoising")
    assert machine.history.decodes(0) == []
    machine.now = 1010.0
    machine.event("stage", stage="decoding")
    machine.event("plan", predicted_peak_bytes=5)
    machine.event("plan", predicted_peak_bytes=4)  # a smaller chunk, after an out-of-memory
    machine.event("stage", stage="decoding")  # the next of a clip's calls
    running = Decode("a", "host/cpu/1", 1010.0, None, 5, None)
    assert machine.history.decodes(2000.0) == [running]
    machine.now = 1020.0
    machine.event("stage", stage="encoding")
    machine.now = 1025.0
    machine.event("finished", decode={"predicted_peak_bytes": 6, "measured_peak_bytes": 4})
    assert machine.history.decodes(0) == [Decode("a", "host/cpu/1", 1010.0, 1020.0, 6, 4)]
    assert machine.history.decodes(1021.0) == []


def test_a_decode_whose_worker_ends_ends_too_and_the_next_attempt_is_another() -> None:
    machine = Machine()
    for worker in ("first", "second"):
        machine.event("claimed", worker_id=worker)
        machine.event("stage", stage="decoding")
        machine.now += 1
        machine.event("requeued", reason="lease_expired")
    machine.event("stage", stage="decoding")  # of a job whose claim was before this process
    assert [(one.worker_id, one.ended_at) for one in machine.history.decodes(0)] == [
        ("first", 1001.0),
        ("second", 1002.0),
    ]
