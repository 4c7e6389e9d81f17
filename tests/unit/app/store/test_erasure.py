"""What a deleted job leaves: no byte of what its client sent, in the database, its log or the folder.

A job carries markers in everything that comes from its client or is made from it. The tests look for them in
every file of the data folder and, over PostgreSQL, in every row.
"""

import inspect
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scraped import total
from sqlalchemy import TextClause, text

from app.artifacts.local_folder import job_artifacts
from app.config import Settings
from app.jobs import JobError, JobSpec, JobStatus, Stage
from app.scheduling.eta import RunTimes
from app.service.disposal import Disposal
from app.service.exposition.metrics import ServiceMetrics
from app.store import JobDeleted, JobStore, NoSuchJob, StoreUnavailable, Submission
from app.store.deliveries import Attempt
from app.store.upkeep import deletion, retention
from app.store.upkeep.erased_events import COUNTED

OpenStore = Callable[..., JobStore]
MARKER = "m4rk3r-0f-a-cl13nt"
PICTURE = (MARKER.encode() + bytes(range(256))) * 2000  # on many pages of the database
JOB_TTL_SECONDS = 10_000.0


class Deleter:
    """A store, the folder of its jobs, and what deletes from both."""

    def __init__(self, store: JobStore, folder: Path, clock: Any, **settings: Any) -> None:
        self.store = store
        self.folder = folder
        self.clock = clock
        self.settings = Settings(data_dir=folder, **settings)
        self.disposal = Disposal(self.settings, store)

    def turn(self, seconds: float = deletion.GRACE_SECONDS + 1) -> None:
        """Let time pass, then do what is due."""
        self.clock.now += seconds
        self.disposal.turn()

    def submitted(self, spec: JobSpec, owner: str | None = None, key: str | None = None) -> str:
        spec = spec.model_copy(
            update={
                "prompt": f"{MARKER} sails by",
                "negative_prompt": MARKER,
                "webhook_url": f"https://example.org/{MARKER}",
                "image_size": "48x36",
            }
        )
        submission = Submission(
            spec,
            PICTURE,
            spec.fingerprint(PICTURE),
            PICTURE[::-1],
            plan={"detail": MARKER},
            idempotency_key=f"{MARKER}{key or ''}",
            owner=owner,
        )
        return self.store.submit(submission)[0].id

    def write_files(self, job_id: str) -> None:
        files = job_artifacts(self.settings.jobs_dir, job_id).make()
        for path in (files.latents, files.video, files.thumbnail, files.spritesheet, files.preview(0)):
            path.write_bytes(PICTURE)
        files.video.with_name("video.mp4.part").write_bytes(PICTURE)

    def begin(self, job_id: str) -> int:
        """Claim the job as a worker and report what names the marker; returns the token."""
        claim = self.store.claim("host/cpu/1")
        assert claim is not None
        assert claim.job.id == job_id
        report = {"path": MARKER, "strategy": "chunked", "reason": "fastest", "detail": MARKER}
        assert self.store.progress(
            job_id, claim.token, stage=Stage.DENOISING, progress=0.3, data={"x": MARKER}
        )
        assert self.store.event(job_id, claim.token, "plan", report)
        assert self.store.event(job_id, claim.token, "latents_unreadable", report)
        self.write_files(job_id)
        assert self.store.checkpoint(job_id, claim.token, f"jobs/{MARKER}", {"steps": 4, "exact": True})
        return claim.token

    def end(self, job_id: str, token: int, status: JobStatus = JobStatus.SUCCEEDED) -> None:
        assert self.store.finish(
            job_id,
            token,
            status=status,
            error=JobError("internal_error", MARKER) if status is JobStatus.FAILED else None,
            decode={"strategy": "chunked", "frames_per_chunk": 2, "seconds": 1.5, "detail": MARKER},
            result={"frames": 25, "video_path": MARKER},
            durations={"denoising": 2.0, "decoding": 1.5},
        )

    def left(self) -> list[str]:
        """Where the marker is still found."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        found = [str(path) for path in files if any(one in path.read_bytes() for one in MARKED_BYTES)]
        if self.store._database.writes.dialect.name == "postgresql":
            found += self._rows_left()
        return found

    def _rows_left(self) -> list[str]:
        with self.store._database.reading() as connection:
            tables = ("jobs", "job_pictures", "picture_bytes", "events", "new_events", "deliveries")
            return [
                table
                for table in tables
                for row in connection.execute(text(f"select * from {table}"))
                if any(one in repr(tuple(row)).encode() or one in _bytes_of(row) for one in MARKED_BYTES)
            ]


MARKED_BYTES = (MARKER.encode(), MARKER.encode()[::-1])


def _bytes_of(row: Any) -> bytes:
    return b"".join(bytes(value) for value in row if isinstance(value, bytes | memoryview))


@pytest.fixture
def deleter(store: JobStore, tmp_path: Path, clock: Any) -> Deleter:
    return Deleter(store, tmp_path, clock)


def test_the_search_finds_what_a_job_that_is_not_deleted_leaves(
    deleter: Deleter, make_spec: Callable[..., JobSpec]
) -> None:
    job_id = deleter.submitted(make_spec())
    deleter.end(job_id, deleter.begin(job_id))
    deleter.turn()
    assert len(deleter.left()) > 5


def test_a_job_that_has_ended_leaves_no_byte(deleter: Deleter, make_spec: Callable[..., JobSpec]) -> None:
    ends = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED)
    jobs = [deleter.submitted(make_spec(), key=status) for status in ends]
    for job_id, status in zip(jobs, ends, strict=True):
        deleter.end(job_id, deleter.begin(job_id), status)
        assert deleter.store.delete(job_id)
        assert not deleter.store.delete(job_id)
    deleter.turn()
    assert deleter.left() == []
    for job_id, status in zip(jobs, ends, strict=True):
        kept = deleter.store.get(job_id)
        assert (kept.status, kept.spec.model, kept.spec.width) == (status, "tiny", 256)
        assert (kept.delete_requested, kept.erased_at) == (True, deleter.clock.now)


def test_a_job_that_is_deleted_while_it_is_queued_leaves_no_byte_and_is_never_run(
    deleter: Deleter, make_spec: Callable[..., JobSpec]
) -> None:
    job_id = deleter.submitted(make_spec())
    assert deleter.store.delete(job_id)
    assert deleter.store.get(job_id).status is JobStatus.CANCELED
    assert deleter.store.claim("w") is None
    deleter.turn()
    assert deleter.left() == []


def test_a_job_that_is_deleted_while_it_runs_leaves_no_byte_once_it_has_ended(
    deleter: Deleter, make_spec: Callable[..., JobSpec]
) -> None:
    store = deleter.store
    for end in ("canceled", "succeeded", "worker lost"):
        job_id = deleter.submitted(make_spec())
        token = deleter.begin(job_id)
        assert store.delete(job_id)
        assert store.get(job_id).status is JobStatus.RUNNING
        assert store.heartbeat("host/cpu/1", device={}, job_id=job_id, token=token).cancel_requested
        deleter.turn()
        assert deleter.left() != [], "its worker still uses the files"
        assert store.event(job_id, token, "latents_unreadable", {"reason": MARKER}), "until it stops"
        if end == "worker lost":
            deleter.clock.now += 1000.0
            assert store.requeue_expired() == [job_id]
        else:
            deleter.end(job_id, token, JobStatus(end))
        assert store.take_delivery() is None, "no webhook for a deleted job"
        deleter.turn()
        assert deleter.left() == [], end
        assert store.get(job_id).status.is_terminal
        assert store.claim("w") is None


def test_a_job_whose_result_was_deleted_before_leaves_no_byte(
    deleter: Deleter, make_spec: Callable[..., JobSpec]
) -> None:
    job_id = deleter.submitted(make_spec())
    deleter.end(job_id, deleter.begin(job_id))
    assert deleter.store.discard(job_id)
    deleter.turn(retention.GRACE_SECONDS + 1)
    assert not job_artifacts(deleter.settings.jobs_dir, job_id).folder.exists()
    assert deleter.left() != [], "the prompt stays"
    assert deleter.store.delete(job_id)
    deleter.turn()
    assert deleter.left() == []


class Crash(BaseException):
    """The end of the process at this point."""


def before_the_files(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Disposal, "_remove_files", crash)


def among_the_files(patch: pytest.MonkeyPatch) -> None:
    def remove_some(disposal: Disposal, job_id: str) -> None:
        job_artifacts(disposal._jobs_dir, job_id).video.unlink()
        raise Crash

    patch.setattr(Disposal, "_remove_files", remove_some)


def after_the_files(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(JobStore, "_erase", crash)


def after_the_row(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(JobStore, "drop_erased_bytes", crash)


def crash(*_arguments: object, **_more: object) -> None:
    raise Crash


CRASHES = (before_the_files, among_the_files, after_the_files, after_the_row)


def test_the_next_process_ends_a_deletion_that_was_interrupted(
    deleter: Deleter,
    make_spec: Callable[..., JobSpec],
    tmp_path_factory: pytest.TempPathFactory,
    database_url: str,
) -> None:
    for plant in CRASHES:
        job_id = deleter.submitted(make_spec())
        deleter.end(job_id, deleter.begin(job_id))
        deleter.store.delete(job_id)
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            with pytest.raises(Crash):
                deleter.turn()
        folder, url = deleter.folder, database_url
        if url.startswith("sqlite"):
            # The files as a killed process leaves them: a store that is closed empties the log itself.
            folder = Path(shutil.copytree(folder, tmp_path_factory.mktemp("crashed") / "data"))
            assert (folder / "jobs.sqlite3-wal").stat().st_size
            url = f"sqlite:///{folder / 'jobs.sqlite3'}"
        store = JobStore(url, clock=deleter.clock)
        after = Deleter(store, folder, deleter.clock)
        assert after.left() or (plant is after_the_row and url == database_url)
        after.turn()
        assert after.left() == [], plant.__name__
        assert store.get(job_id).erased_at is not None
        store.close()
        deleter.turn()


def test_files_that_cannot_be_deleted_are_tried_again_and_the_job_is_not_settled(
    deleter: Deleter, make_spec: Callable[..., JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, other = (deleter.submitted(make_spec(), key=key) for key in "ab")
    for job_id in (stuck, other):
        deleter.end(job_id, deleter.begin(job_id))
        deleter.store.delete(job_id)
    remove = Disposal._remove_files

    def refuse(disposal: Disposal, job_id: str) -> None:
        if job_id == stuck:
            raise PermissionError("read-only")
        remove(disposal, job_id)

    with monkeypatch.context() as patched:
        patched.setattr(Disposal, "_remove_files", refuse)
        deleter.turn()
    erased = [deleter.store.get(job_id).erased_at is not None for job_id in (stuck, other)]
    assert erased == [False, True]
    deleter.turn()
    assert deleter.left() == []


def test_a_folder_that_a_lost_worker_makes_after_the_deletion_is_swept(
    deleter: Deleter, make_spec: Callable[..., JobSpec]
) -> None:
    job_id, alive = (deleter.submitted(make_spec(), key=key) for key in "ab")
    deleter.store.delete(job_id)
    deleter.turn()
    for name in (job_id, alive, "0" * 32):
        deleter.write_files(name)
    Disposal(deleter.settings, deleter.store).turn()
    folders = {path.name for path in deleter.settings.jobs_dir.iterdir()}
    assert folders == {alive, "0" * 32}, "a job of another database may have that folder"


def test_counters_and_estimates_count_an_erased_job_as_before(
    deleter: Deleter, make_spec: Callable[..., JobSpec]
) -> None:
    def counted() -> tuple[bytes, object]:
        metrics, times = ServiceMetrics({"tiny": "AutoencoderKLLTXVideo"}), RunTimes()
        events = deleter.store.events_after(0)
        metrics.apply(events)
        times.apply(events)
        lines = [line for line in metrics.render().splitlines() if line.startswith(b"framefit_")]
        return b"\n".join(lines), times.expected("tiny")

    for number, status in enumerate((JobStatus.SUCCEEDED, JobStatus.FAILED)):
        job_id = deleter.submitted(make_spec(), key=str(number))
        token = deleter.begin(job_id)
        for kind, data in EVENTS_THAT_COUNT:
            assert deleter.store.event(job_id, token, kind, {**data, "detail": MARKER})
        deleter.end(job_id, token, status)
    before = counted()
    assert total(before[0].decode() + "\n", "framefit_oom_total", stage="decoding") == 2
    for job in deleter.store.page():
        deleter.store.delete(job.id)
    deleter.turn()
    assert deleter.left() == []
    assert counted() == before


EVENTS_THAT_COUNT: list[tuple[str, dict[str, Any]]] = [
    ("fallback", {"from": "batched", "to": "chunked"}),
    ("oom", {"stage": "decoding"}),
    ("nonfinite", {"stage": "latents"}),
    ("spill", {"sign": "slow_chunk"}),
]


def test_an_erased_job_cannot_run_again_and_its_key_makes_a_new_job(
    deleter: Deleter, make_spec: Callable[..., JobSpec]
) -> None:
    job_id = deleter.submitted(make_spec(), owner="a")
    deleter.store.delete(job_id)
    with pytest.raises(JobDeleted):
        deleter.store.queue_again(job_id)
    assert deleter.submitted(make_spec(), owner="a") != job_id
    assert deleter.submitted(make_spec(num_frames=9), owner="b") != job_id
    deleter.turn()
    with pytest.raises(JobDeleted):
        deleter.store.queue_again(job_id, why="retry")
    with pytest.raises(NoSuchJob):
        deleter.store.delete("nonesuch")


def test_jobs_older_than_the_operator_keeps_are_removed_and_counters_stay(
    store: JobStore, tmp_path: Path, clock: Any, make_spec: Callable[..., JobSpec]
) -> None:
    # Ids hold their time and grow within a process, and other tests have made some.
    clock.now = 1.0 + (int(store.add(make_spec(), b"first").id, 16) >> 80) / 1000
    store.cancel(store.page()[0].id)
    deleter = Deleter(store, tmp_path, clock, job_ttl_seconds=JOB_TTL_SECONDS)
    old = deleter.submitted(make_spec(), key="old")
    deleter.end(old, deleter.begin(old))
    again = deleter.submitted(make_spec(), key="again")
    deleter.end(again, deleter.begin(again))
    deleter.turn(JOB_TTL_SECONDS - 100)
    store.queue_again(again)
    deleter.end(again, deleter.begin(again))
    waiting = store.add(make_spec(), b"another")
    deleter.turn(200)
    assert store.get(old).delete_requested, "as if its client had deleted it"
    for _ in range(2):
        deleter.turn()
    with pytest.raises(NoSuchJob):
        store.get(old)
    assert not job_artifacts(deleter.settings.jobs_dir, old).folder.exists()
    assert [store.get(job_id).delete_requested for job_id in (again, waiting.id)] == [False, False]
    assert sum(store.counts().values()) == 2, "the jobs of the table, without those that are removed"
    finished = [event for event in store.events_after(0, job_id=old) if event.kind == "finished"]
    assert [event.data["outcome"] for event in finished] == ["succeeded"], "counted again at each start"
    store.delete(again)
    deleter.turn()
    assert deleter.left() == []


def test_what_a_receiver_answered_goes_with_the_job_and_comes_back_by_no_late_attempt(
    deleter: Deleter, make_spec: Callable[..., JobSpec]
) -> None:
    store = deleter.store
    job_id = deleter.submitted(make_spec())
    deleter.end(job_id, deleter.begin(job_id))
    first = store.take_delivery()
    assert first is not None
    store.settle_delivery(first.id, Attempt(f"no answer: {MARKER}", retry_seconds=1.0))
    deleter.clock.now += 2
    late = store.take_delivery()
    assert late is not None
    store.delete(job_id)
    store.settle_delivery(late.id, Attempt(f"no answer: {MARKER}"))
    deleter.turn()
    assert deleter.left() == []
    store.settle_delivery(late.id, Attempt(f"no answer: {MARKER}"))
    assert store.get(job_id).webhook is None
    assert deleter.left() == []


def test_every_kind_of_event_that_metrics_count_survives_an_erasure() -> None:
    source = inspect.getsource(ServiceMetrics._apply)
    counted = {kind for line in re.findall(r"case (.*):", source) for kind in re.findall(r'"(\w+)"', line)}
    assert counted >= {"held", "webhook", "finished"}
    assert counted <= COUNTED.keys()


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (deletion.TO_ERASE, "jobs_to_erase"),
        (text("select id from jobs where deleted_at is null order by id desc limit 5"), "jobs_served"),
        (deletion.FORGET_DELIVERIES, "deliveries_of_job"),
    ],
)
def test_what_is_done_every_two_seconds_costs_the_same_with_a_million_ended_jobs(
    query: TextClause, index: str, open_store: OpenStore, make_spec: Callable[..., JobSpec]
) -> None:
    store = open_store()
    store.add(make_spec(), b"x")
    with store._database.reading() as connection:
        if connection.dialect.name == "postgresql":
            return  # it plans by what the table holds
        wanted = dict.fromkeys(query.compile().params, 1)
        steps = connection.execute(text(f"explain query plan {query}"), wanted).mappings().all()
    told = [step["detail"] for step in steps]
    assert index in told[0], told
    assert not any("TEMP B-TREE" in detail for detail in told)


def test_a_database_that_was_removed_is_not_made_anew_by_the_deletion_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    store = JobStore(f"sqlite:///{path}")
    store.migrate()
    path.rename(tmp_path / "away")
    with pytest.raises(StoreUnavailable):
        store._database.drop_erased_bytes()
    assert not path.exists()
    store.close()
