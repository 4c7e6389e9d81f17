"""`JobStore`: the job table as its users see it. Gives each operation its transaction; the SQL is in the
files beside it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from app.jobs import Claim, Event, Heartbeat, Job, JobError, JobSpec, JobStatus, Json, Stage, WorkerRow
from app.store import deliveries, intake, leases, retention, workers
from app.store.database import Writer, migrate, open_engines
from app.store.errors import NoSuchJob
from app.store.rows import JOB_COLUMNS, fetch_events, fetch_job, job_of

_IMAGE = text("select data from images where job_id = :id")
_LAST_IMAGE = text("select last_data from images where job_id = :id")
_COUNTS = text("select status, count(*) from jobs group by status")
_ANY_DUE = text("select 1 from jobs where expires_at < :now limit 1")
_LAST_EVENT = text("select coalesce(max(seq), 0) from events")


class JobStore:
    """Jobs, events and workers in one database; safe to use from many threads and many processes.

    Methods that change something return when the change is durable. They raise `StoreUnavailable` where the
    database refuses, `NoSuchJob` where there is no such job.
    """

    def __init__(
        self,
        database_url: str,
        *,
        max_queued: int = 10_000,
        max_queued_of_owner: int | None = None,
        max_attempts: int = 3,
        max_skips: int = 4,
        priority_seconds: float = 600.0,
        result_ttl_seconds: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._writes, self._reads = open_engines(database_url)
        self._writer = Writer(self._writes)
        self._max_queued = max_queued
        self._max_queued_of_owner = max_queued_of_owner
        self._max_attempts = max_attempts
        self._max_skips = max_skips
        self._priority_seconds = priority_seconds
        self._ttl_seconds = result_ttl_seconds
        self._clock = clock

    def migrate(self) -> None:
        """Create the schema or bring it up to date; safe in several processes at once."""
        migrate(self._writes)

    def close(self) -> None:
        """Finish pending writes and close every connection."""
        self._writer.close()
        self._writes.dispose()
        self._reads.dispose()

    def add(
        self,
        spec: JobSpec,
        image: bytes,
        *,
        plan: Json | None = None,
        needed_bytes: int | None = None,
        idempotency_key: str | None = None,
        owner: str | None = None,
    ) -> Job:
        """Queue a job. Raises `QueueFull`, or `IdempotencyConflict` where the key was used for another
        request.
        """
        submission = intake.Submission(
            spec,
            image,
            spec.fingerprint(image),
            plan=plan,
            needed_bytes=needed_bytes,
            idempotency_key=idempotency_key,
            owner=owner,
        )
        return self.submit(submission)[0]

    def submit(self, submission: intake.Submission) -> tuple[Job, bool]:
        """As `add`; also tells whether the job is new (False: the same request had come before under its
        key).
        """
        return self._writer.run(
            lambda connection: intake.add(
                connection,
                submission,
                now=self._clock(),
                max_queued=self._max_queued,
                max_queued_of_owner=self._max_queued_of_owner,
                priority_seconds=self._priority_seconds,
            )
        )

    def get(self, job_id: str) -> Job:
        """The job of that id."""
        with self._reads.connect() as connection:
            return fetch_job(connection, job_id)

    def image(self, job_id: str) -> bytes:
        """The job's image, as it was stored."""
        with self._reads.connect() as connection:
            data = connection.execute(_IMAGE, {"id": job_id}).scalar()
        if data is None:
            raise NoSuchJob(job_id)
        return bytes(data)

    def last_image(self, job_id: str) -> bytes | None:
        """The image the job's video ends with, as it was stored; None where it has none."""
        with self._reads.connect() as connection:
            data = connection.execute(_LAST_IMAGE, {"id": job_id}).scalar()
        return None if data is None else bytes(data)

    def queue_position(self, job_id: str) -> int | None:
        """How many queued jobs run before this one, itself included; None where it is not queued."""
        return self.get(job_id).queue_position

    def page(
        self,
        *,
        status: JobStatus | None = None,
        model: str | None = None,
        owner: str | None = None,
        after: str | None = None,
        limit: int = 50,
        newest_first: bool = True,
    ) -> list[Job]:
        """Jobs by age; `after` is the last id of the page before."""
        filters = {"status": status, "model": model, "owner": owner}
        given = {name: value for name, value in filters.items() if value is not None}
        conditions = [f"j.{name} = :{name}" for name in given]
        if after is not None:
            conditions.append(f"j.id {'<' if newest_first else '>'} :after")
        order = "desc" if newest_first else "asc"
        where = f" where {' and '.join(conditions)}" if conditions else ""
        query = text(f"select {JOB_COLUMNS} from jobs j{where} order by j.id {order} limit :limit")
        with self._reads.connect() as connection:
            rows = connection.execute(query, {**given, "after": after, "limit": limit}).mappings()
            return [job_of(row) for row in rows]

    def counts(self) -> dict[JobStatus, int]:
        """How many jobs there are in each status."""
        with self._reads.connect() as connection:
            found = {JobStatus(row[0]): int(row[1]) for row in connection.execute(_COUNTS)}
        return {status: found.get(status, 0) for status in JobStatus}

    def cancel(self, job_id: str) -> Job:
        """Cancel a queued job, or ask a running one's worker to; `WrongState` where it has already ended."""
        return self._writer.run(
            lambda connection: intake.cancel(
                connection, job_id, now=self._clock(), ttl_seconds=self._ttl_seconds
            )
        )

    def queue_again(
        self,
        job_id: str,
        *,
        changes: Mapping[str, Any] | None = None,
        plan: Json | None = None,
        needed_bytes: int | None = None,
        why: str = "redecode",
    ) -> Job:
        """Queue an ended job once more, from its latents where it has them; `WrongState` where it has not
        ended.
        """
        return self._writer.run(
            lambda connection: intake.queue_again(
                connection,
                job_id,
                changes=changes or {},
                plan=plan,
                needed_bytes=needed_bytes,
                why=why,
                now=self._clock(),
                priority_seconds=self._priority_seconds,
            )
        )

    def register_worker(self, worker_id: str, device: Json) -> None:
        """Make a worker known; `device` as described in `app.store.workers`."""
        self._writer.run(lambda connection: workers.register(connection, worker_id, device, self._clock()))

    def forget_worker(self, worker_id: str, reason: str = "worker_lost") -> list[str]:
        """Drop a worker that has ended, and put what it was running back into the queue."""
        returned = self._give_back_all(leases.RUNNING_OF, {"worker_id": worker_id}, reason)
        self._writer.run(lambda connection: workers.forget(connection, worker_id))
        return returned

    def heartbeat(
        self,
        worker_id: str,
        *,
        device: Json,
        job_id: str | None = None,
        token: int | None = None,
        lease_seconds: float = 30.0,
    ) -> Heartbeat:
        """Say that a worker lives and prolong its job's lease; learn whether to cancel it or whether it was
        lost.
        """

        def run(connection: Connection) -> Heartbeat:
            now = self._clock()
            paused = workers.beat(connection, worker_id, device, job_id, now)
            if job_id is None or token is None:
                return Heartbeat(False, False, paused)
            return Heartbeat(*leases.extend(connection, job_id, token, now + lease_seconds), paused)

        return self._writer.run(run)

    def workers(self, *, within_seconds: float = 60.0) -> list[WorkerRow]:
        """Workers heard from in the last `within_seconds`."""
        with self._reads.connect() as connection:
            return workers.select_workers(connection, self._clock() - within_seconds)

    def pause_device(self, device_name: str, *, paused: bool) -> None:
        """Stop a device from claiming jobs, or let it claim again."""
        self._writer.run(lambda connection: workers.pause(connection, device_name, paused=paused))

    def claim(
        self,
        worker_id: str,
        *,
        models: Sequence[str] | None = None,
        loaded_model: str | None = None,
        capacity_bytes: int | None = None,
        lease_seconds: float = 30.0,
    ) -> Claim | None:
        """The best job for this worker, now leased to it, or None. `capacity_bytes`: only jobs that need no
        more.
        """
        with self._reads.connect() as connection:
            if connection.execute(leases.ANY_QUEUED).one_or_none() is None:
                return None  # an idle worker's poll takes no write lock
        return self._writer.run(
            lambda connection: leases.claim(
                connection,
                worker_id,
                models=models,
                loaded_model=loaded_model,
                capacity_bytes=capacity_bytes,
                now=self._clock(),
                lease_seconds=lease_seconds,
                max_skips=self._max_skips,
            )
        )

    def progress(
        self,
        job_id: str,
        token: int,
        *,
        stage: Stage,
        progress: float,
        kind: str = "progress",
        data: Mapping[str, Any] | None = None,
    ) -> bool:
        """Set a job's stage and progress (0 to 1) and add an event; False: the job is no longer the
        caller's.
        """
        return self._writer.run(
            lambda connection: leases.report(
                connection,
                job_id,
                token,
                stage=stage,
                progress=progress,
                kind=kind,
                data=data or {},
                now=self._clock(),
            )
        )

    def event(self, job_id: str, token: int, kind: str, data: Mapping[str, Any]) -> bool:
        """Add an event to a running job; False: it is no longer the caller's."""
        return self._writer.run(
            lambda connection: leases.add_event(connection, job_id, token, kind, data, self._clock())
        )

    def checkpoint(self, job_id: str, token: int, latents_path: str, data: Mapping[str, Any]) -> bool:
        """Note that denoising is done and its latents are on disk, synced; `data` says how. False: the job is
        no longer the caller's.
        """
        return self._writer.run(
            lambda connection: leases.checkpoint(connection, job_id, token, latents_path, data, self._clock())
        )

    def finish(
        self,
        job_id: str,
        token: int,
        *,
        status: JobStatus,
        error: JobError | None = None,
        decode: Json | None = None,
        result: Json | None = None,
        durations: Mapping[str, float] | None = None,
    ) -> bool:
        """End a job; `durations` are seconds by stage. False: the job is no longer the caller's."""
        return self._writer.run(
            lambda connection: leases.finish(
                connection,
                job_id,
                token,
                status=status,
                error=None if error is None else error.as_json(),
                decode=decode,
                result=result,
                durations=durations or {},
                now=self._clock(),
                ttl_seconds=self._ttl_seconds,
            )
        )

    def release(self, job_id: str, token: int, reason: str, *, refund: bool = False) -> bool:
        """Give a running job back at once. It fails with `too_many_attempts` where they are used up; `refund`
        takes this attempt back."""
        return self._writer.run(
            lambda connection: leases.give_back(
                connection,
                job_id,
                token,
                reason,
                refund=refund,
                now=self._clock(),
                max_attempts=self._max_attempts,
                ttl_seconds=self._ttl_seconds,
            )
        )

    def requeue_expired(self, now: float | None = None) -> list[str]:
        """Give back every job whose lease has ended; their ids."""
        at = self._clock() if now is None else now
        return self._give_back_all(leases.EXPIRED, {"now": at}, "lease_expired")

    def _give_back_all(self, query: Any, parameters: Json, reason: str) -> list[str]:
        with self._reads.connect() as connection:
            if not connection.execute(query, parameters).all():
                return []

        def run(connection: Connection) -> list[str]:
            ids = [str(row.id) for row in connection.execute(query, parameters).all()]
            for job_id in ids:
                leases.give_back(
                    connection,
                    job_id,
                    fetch_job(connection, job_id).token,
                    reason,
                    refund=False,
                    now=self._clock(),
                    max_attempts=self._max_attempts,
                    ttl_seconds=self._ttl_seconds,
                )
            return ids

        return self._writer.run(run)

    def discard(self, job_id: str) -> bool:
        """Let an ended job's result expire now; False where the job has not ended."""
        return self._writer.run(lambda connection: retention.discard(connection, job_id, self._clock()))

    def expire_results(self, remove: Callable[[str], None]) -> list[str]:
        """Mark results that are past their time, and `remove(job_id)` the files of those marked a while ago.

        Returns the ids that were marked.
        """
        now = self._clock()
        with self._reads.connect() as connection:
            if connection.execute(_ANY_DUE, {"now": now}).one_or_none() is None:
                return []
        marked = self._writer.run(lambda connection: retention.mark_expired(connection, now))
        self._writer.run(lambda connection: retention.remove_expired(connection, now, remove))
        return marked

    def take_delivery(self) -> deliveries.Delivery | None:
        """The next webhook that is due, held for the caller for a while; None where none is."""
        now = self._clock()
        with self._reads.connect() as connection:
            if connection.execute(deliveries.DUE, {"now": now}).one_or_none() is None:
                return None
        return self._writer.run(lambda connection: deliveries.take(connection, now))

    def settle_delivery(self, delivery_id: int, retry_seconds: float | None) -> None:
        """Remove a webhook from the outbox, or try it again after `retry_seconds`."""
        retry_at = None if retry_seconds is None else self._clock() + retry_seconds
        self._writer.run(lambda connection: deliveries.settle(connection, delivery_id, retry_at))

    def events_after(self, seq: int, limit: int = 1000, job_id: str | None = None) -> list[Event]:
        """Events with a greater number, oldest first."""
        with self._reads.connect() as connection:
            return fetch_events(connection, seq, limit, job_id)

    def last_event(self) -> int:
        """The highest event number so far; 0 where there is none."""
        with self._reads.connect() as connection:
            return int(connection.execute(_LAST_EVENT).scalar_one())
