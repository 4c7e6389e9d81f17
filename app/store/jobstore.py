"""`JobStore`: the interface to the job table.

Its methods are the functions of the other files in this package. Each gets a read connection or a
transaction.

Longer than 300 lines because each operation of the store has its line here.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import URL, Connection, TextClause
from sqlalchemy.exc import ArgumentError

from app.artifacts.data_folder import DataFolder
from app.config import PREFIX, ConfigError, Settings
from app.jobs import Claim, Job, JobSpec, Json, WorkerRow
from app.loops import Loop
from app.store import backfill, claims, deliveries, intake, leases, queries
from app.store import workers as workforce
from app.store.database import open_database, revision_of
from app.store.errors import DataFolderUnusable, QueueFull
from app.store.pictures.foresight import Foresight, repeated_job
from app.store.pictures.job_pictures import JobPictures
from app.store.pictures.move import move_blobs
from app.store.pictures.place import place_of_pictures
from app.store.roles.waiting import decodes_of, next_denoises
from app.store.rows import fetch_events, fetch_job
from app.store.transaction import Rules, Transaction
from app.store.upkeep import counters, deletion, event_retention, retention
from app.store.upkeep.expiry import ExpiryWatch

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


def _reads(query: Callable[Concatenate[Connection, P], T]) -> Callable[Concatenate["JobStore", P], T]:
    @functools.wraps(query)
    def method(store: "JobStore", /, *args: P.args, **kwargs: P.kwargs) -> T:
        with store._database.reading() as connection:
            return query(connection, *args, **kwargs)

    return method


def _reads_events(query: Callable[Concatenate[Connection, P], T]) -> Callable[Concatenate["JobStore", P], T]:
    read = _reads(query)

    @functools.wraps(query)
    def method(store: "JobStore", /, *args: P.args, **kwargs: P.kwargs) -> T:
        store._database.publish_events()
        return read(store, *args, **kwargs)

    return method


def _writes(operation: Callable[Concatenate[Transaction, P], T]) -> Callable[Concatenate["JobStore", P], T]:
    @functools.wraps(operation)
    def method(store: "JobStore", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return store._database.run(lambda transaction: operation(transaction, *args, **kwargs))

    return method


def _stores(operation: Callable[Concatenate[Transaction, P], T]) -> Callable[Concatenate["JobStore", P], T]:
    """As `_writes`, for jobs whose files must have a place."""
    write = _writes(operation)

    @functools.wraps(operation)
    def method(store: "JobStore", /, *args: P.args, **kwargs: P.kwargs) -> T:
        store.require_folder()
        return write(store, *args, **kwargs)

    return method


def _writes_at_once(
    operation: Callable[Concatenate[Transaction, P], T],
) -> Callable[Concatenate["JobStore", P], T]:
    """As `_writes`, for an operation that writes with one statement on PostgreSQL."""

    @functools.wraps(operation)
    def method(store: "JobStore", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return store._database.run_statement(lambda tx: operation(tx, *args, **kwargs))

    return method


class JobStore:
    """Jobs, events and workers in one database; safe to use from many threads and many processes.

    Methods that change something return when the change is durable; a heartbeat on PostgreSQL is durable soon
    after. Methods raise `StoreUnavailable` if the database refuses and `NoSuchJob` for an unknown id.
    """

    def __init__(
        self,
        database_url: URL | str,
        *,
        clock: Callable[[], float] | None = None,
        rules: Rules | None = None,
        folder: DataFolder | None = None,
    ) -> None:
        """Open the database. `clock` replaces the database's own time (seconds since the epoch). `folder` is
        where the jobs' files will lie; by default that of an SQLite database.

        Raises `ValueError` for an in-memory database, a path too long for SQLite or a missing PostgreSQL
        driver.
        """
        rules = rules or Rules()
        self._database = open_database(database_url, rules, clock)
        self._folder = folder
        self._foresight = Foresight(rules)
        self._place = place_of_pictures(self._database, None if folder is None else folder.path)
        self._pictures = JobPictures(self._database, self._place, folder)
        self._expiry = ExpiryWatch(rules.heartbeat_seconds, lease_seconds=rules.lease_seconds)
        self._bytes_to_drop = True  # a process before this one may have ended between erasing and dropping

    @property
    def loops(self) -> tuple[Loop, ...]:
        """The threads of the database."""
        return self._database.loops

    def migrate(self, *, must_write: bool = False) -> None:
        """Create or upgrade the schema; safe in several processes at once.

        `must_write`: write even if the schema is the newest, to see that this is possible. Raises
        `NewerSchema`, or `CannotOpen` with what to do.
        """
        self._database.migrate(must_write=must_write)
        move_blobs(self._database, self._place)

    def has_schema(self) -> bool:
        """Whether a service has ever used the database. Raises `StoreUnavailable`."""
        with self._database.reading() as connection:
            return revision_of(connection) is not None

    def check(self) -> None:
        """Raise `StoreUnavailable` unless a job could be stored now."""
        self.require_folder()
        self._database.check()

    def require_folder(self) -> None:
        """Raise `DataFolderUnusable` if the files of a job could not be stored now."""
        fault = None if self._folder is None else self._folder.fault()
        if self._folder is not None and fault is not None:
            raise DataFolderUnusable(self._folder.path, fault)

    def close(self) -> None:
        """Finish pending writes and close every connection."""
        self._database.close()

    def time(self) -> float:
        """The database's time, which leases and heartbeats are measured with (seconds since the epoch)."""
        return self._database.time()

    def on_queued(self, wake: Callable[[], None]) -> bool:
        """Call `wake` whenever a job is queued, by whichever process; False if the database cannot tell."""
        return self._database.on_queued(wake)

    # Changes that clients request.
    cancel = _writes(intake.cancel)
    finish_early = _writes(intake.finish_early)
    fail_queued = _writes(intake.fail_queued)
    queue_again = _stores(intake.queue_again)
    discard = _writes(retention.discard)
    delete = _writes(deletion.delete)

    def submit_all(self, submissions: Sequence[intake.Submission]) -> list[tuple[Job, bool]]:
        """Store the pictures of several jobs, then the jobs, as `intake.submit_all`."""
        self.require_folder()
        try:
            if self._foresight.may_tell(submissions):
                with self._database.reading() as connection:
                    if (known := self._foresight.of(connection, submissions)) is not None:
                        return known
            with self._pictures.published(submissions) as publication:
                added = self._database.run(lambda tx: intake.submit_all(tx, submissions, publication.taken()))
        except QueueFull:
            self._foresight.note_full()
            raise
        old = [own for own, (_, is_new) in zip(publication.pictures, added, strict=True) if not is_new]
        self._pictures.discard([picture.key for own in old for picture in own])
        return added

    def submit(self, submission: intake.Submission) -> tuple[Job, bool]:
        """As `submit_all`, for one job."""
        return self.submit_all([submission])[0]

    def add(
        self, spec: JobSpec, image: bytes, *, plan: Json | None = None, needed_bytes: int | None = None
    ) -> Job:
        """Queue a job. Raises `QueueFull`."""
        submission = intake.Submission(
            spec, image, spec.fingerprint(image), plan=plan, needed_bytes=needed_bytes
        )
        return self.submit(submission)[0]

    # Read-only queries.
    get = _reads(fetch_job)
    repeated_job = _reads(repeated_job)
    page = _reads(queries.page)
    search = _reads(queries.search)
    owners = _reads(queries.owners)
    counts = _reads(queries.counts)
    queued_models = _reads(queries.queued_models)
    queued_beyond = _reads(queries.queued_beyond)
    urgent = _reads(backfill.urgent)
    running = _reads(backfill.running)
    decodes = _reads(decodes_of)
    next_denoises = _reads(next_denoises)
    events_after = _reads_events(fetch_events)
    is_finish_early_requested = _reads_events(queries.is_finish_early_requested)
    last_event = _reads_events(queries.last_event)

    def image(self, job_id: str) -> bytes:
        """As `JobPictures.image`."""
        return self._pictures.image(job_id)

    def last_image(self, job_id: str) -> bytes | None:
        """As `JobPictures.last_image`."""
        return self._pictures.last_image(job_id)

    def keyframes(self, job_id: str) -> list[bytes]:
        """As `JobPictures.keyframes`."""
        return self._pictures.keyframes(job_id)

    def keyframe(self, job_id: str, number: int) -> bytes | None:
        """As `JobPictures.keyframe`."""
        return self._pictures.keyframe(job_id, number)

    def workers(self, *, within_seconds: float = 60.0) -> list[WorkerRow]:
        """Return workers whose last heartbeat is at most `within_seconds` old."""
        since = self.time() - within_seconds
        with self._database.reading() as connection:
            return workforce.select_workers(connection, since)

    def oldest_queued_seconds(self) -> float:
        """How long the longest waiting job has been queued; 0 if none waits."""
        with self._database.reading() as connection:
            since = queries.oldest_queued_at(connection)
        return 0.0 if since is None else max(0.0, self.time() - since)

    # Operations of workers and on workers.
    register_worker = _writes(workforce.register_worker)
    forget_worker = _writes(workforce.forget_worker)
    touch_worker = _writes(workforce.touch_worker)
    heartbeat = _writes_at_once(workforce.heartbeat)
    pause_worker = _writes(workforce.pause_worker)
    enroll = _writes(workforce.enroll)
    instance_of = _reads(workforce.instance_of)
    progress = _writes(leases.progress)
    event = _writes(leases.event)
    steps_saved = _writes(leases.steps_saved)
    checkpoint = _writes(leases.checkpoint)
    finish = _writes(leases.finish)
    release = _writes(leases.release)
    preempt = _writes(backfill.preempt)
    hand_over = _writes(backfill.hand_over)
    give_decode_back = _writes(backfill.give_decode_back)
    _yield_to_smaller = _writes(backfill.yield_to_smaller)
    _claim = _writes_at_once(claims.claim)
    _requeue_expired = _writes(leases.requeue_expired)

    def claim(self, worker_id: str, **wanted: Any) -> Claim | None:
        """As `claims.claim`, but polling takes no write lock while no job is queued for this worker."""
        if self._database.polls_take_locks:
            with self._database.reading() as connection:
                if not claims.any_for(connection, worker_id, self.time(), **wanted):
                    return None
        return self._claim(worker_id, **wanted)

    def yield_to_smaller(self, job_id: str, token: int, worker_id: str, **wanted: Any) -> Claim | None:
        """As `backfill.yield_to_smaller`, but takes no write lock while no job is queued."""
        if not self._any(leases.ANY_QUEUED):
            return None
        return self._yield_to_smaller(job_id, token, worker_id, **wanted)

    def requeue_expired(self) -> list[str]:
        """Requeue every job whose lease has expired; return their ids.

        Call it every few seconds. After a jump of time live workers get a heartbeat's time to renew first.
        """
        now = self.time()
        if not self._expiry.may_requeue(now):
            return []
        return self._requeue_expired(looked_at=now) if self._any(leases.ANY_EXPIRED) else []

    # Stored counters, and events that were counted.
    counter_snapshot = _reads(counters.load)
    save_counters = _writes(counters.save)
    exporters = _reads(counters.exporters)
    hold_exports = _writes(counters.hold)
    give_up_exports = _writes(counters.give_up)
    retire_events = _writes(event_retention.retire)
    last_retired_event = _reads(event_retention.last_retired)

    # Webhooks and expiry, run by background threads.
    settle_delivery = _writes(deliveries.settle)
    _take_delivery = _writes(deliveries.take)
    _mark_expired = _writes(retention.mark_expired)
    _marked = _reads(retention.marked)
    _settle_expired = _writes(retention.settle)
    _to_erase = _reads(deletion.to_erase)
    _erase = _writes(deletion.erase)
    _request_old = _writes(deletion.request_old)
    _remove_old = _writes(deletion.remove_old)
    without_files = _reads(deletion.without_files)

    def take_delivery(self) -> deliveries.Delivery | None:
        """Return the next due webhook, reserved for the caller for a while, or None."""
        return self._take_delivery() if self._any(deliveries.ANY_DUE) else None

    def expire_results(self, remove: Callable[[str], None]) -> list[str]:
        """Mark results past their expiry time; return their ids.

        Calls `remove(job_id)`, outside any transaction, to delete the files of results marked at least a
        minute ago, then deletes their images. After an `OSError` the job is tried again at the next call.
        """
        if not self._any(retention.ANY_DUE):
            return []
        marked = self._mark_expired()
        for job_id in self._without_files(self._marked(now=self.time()), remove):
            self._settle_expired(job_id)
            self._bytes_to_drop = True
        return marked

    def erase_deleted(self, remove: Callable[[str], None]) -> list[str]:
        """Erase deleted jobs that have ended: their files by `remove`, as `expire_results`; then their rows.

        Returns their ids. `drop_erased_bytes` ends the work.
        """
        erased = []
        # One transaction a job: overwriting the content of many in one would keep other writers waiting.
        for job_id in self._without_files(self._to_erase(now=self.time()), remove):
            self._bytes_to_drop = True
            if self._erase(job_id):
                erased.append(job_id)
        return erased

    def remove_old_jobs(self, ttl_seconds: float) -> list[str]:
        """Remove whole jobs that ended longer ago than `ttl_seconds`, up to a number; return their ids.

        They are deleted as by their clients first: `erase_deleted` erases them, a later call removes them.
        """
        if not self._any(deletion.ANY_OLD, **deletion.older(self.time(), ttl_seconds)):
            return []
        self._request_old(ttl_seconds)
        removed = self._remove_old(ttl_seconds)
        self._bytes_to_drop |= bool(removed)
        return removed

    def drop_erased_bytes(self) -> bool:
        """Let erased bytes leave the database's files as far as it can; False if it has to be tried again."""
        if self._bytes_to_drop and self._database.drop_erased_bytes():
            self._bytes_to_drop = False
        return not self._bytes_to_drop

    def sweep_pictures(self) -> None:
        """Delete what submissions have left that were interrupted before their jobs were stored."""
        if count := self._pictures.sweep():
            log.warning("leftover_pictures_deleted count=%d", count)

    def _without_files(self, job_ids: Sequence[str], remove: Callable[[str], None]) -> list[str]:
        """Return the jobs whose files `remove` has deleted, and whose images are deleted, too."""
        gone = []
        for job_id in job_ids:
            try:
                remove(job_id)
                self._pictures.remove(job_id)
            except OSError as error:
                log.warning("files_not_deleted job_id=%s reason=%s", job_id, error)
            else:
                gone.append(job_id)
        return gone

    def _any(self, query: TextClause, **parameters: Any) -> bool:
        now = {"now": self.time()} if "now" in query.compile().params else {}
        with self._database.reading() as connection:
            return connection.execute(query, {**now, **parameters}).first() is not None


def open_store(settings: Settings) -> JobStore:
    """Return the job table that the settings describe. Raises `ConfigError` for an unusable database URL."""
    rules = Rules(
        max_queued=settings.max_queued,
        max_queued_of_owner=settings.max_queued_per_key
        or max(1, int(settings.max_queued * settings.client_share)),
        max_attempts=settings.max_attempts,
        max_skips=settings.max_skips,
        priority_seconds=settings.priority_seconds,
        result_ttl_seconds=settings.result_ttl_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
        lease_seconds=settings.lease_seconds,
    )
    url = settings.resolved_database_url
    try:
        return JobStore(url, rules=rules, folder=DataFolder(settings.data_dir))
    except (ValueError, ArgumentError) as error:
        where = "" if settings.database_url is None else f"{PREFIX}DATABASE_URL: "
        raise ConfigError(f"{where}{error}") from None
    except OSError as error:
        raise ConfigError(f"the folder of the database cannot be made: {error}") from None
