"""Asks between two steps whether the job gives its device to one of higher priority, and hands it over.

`app.scheduling.preemption` decides. Must not know pipelines or how steps are saved.
"""

import logging
import time
from collections.abc import Callable, Mapping

from app.config import Settings
from app.jobs import Claim
from app.models.downloads.download import needs_download
from app.models.entries import ModelEntry
from app.scheduling.preemption import Switch, gives_way, others_free_in, own_left_seconds
from app.store import JobStore, StoreUnavailable
from app.store.backfill import MOST_PREEMPTIONS, Urgent, preemptions
from app.store.roles.parts import WHOLE_QUEUE, Part
from app.worker.engine import Engine

log = logging.getLogger(__name__)

ASK_SECONDS = 1.0  # the shortest time between two looks into the job table


class GivingWay:
    """The preemption of one claimed job by jobs of `models`."""

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        engine: Engine,
        claim: Claim,
        models: Mapping[str, ModelEntry],
        part: Callable[[list[str]], Part] = lambda _models: WHOLE_QUEUE,
    ) -> None:
        """`part` tells which part of the queue the worker takes."""
        self._part = part
        self._models = models
        self._settings = settings
        self._store = store
        self._engine = engine
        self._job, self._token = claim.job, claim.token
        self._times = preemptions(claim.job.preempted)
        self._asked_at = float("-inf")
        self._began: tuple[float, int] | None = None  # when, and after which step
        self._urgent: Urgent | None = None
        self._at = (0, 0)
        self.save_seconds = 0.0  # of the last checkpoint

    def is_wanted(self, step: int, steps: int) -> bool:
        """Whether the job is to give way after this step of `steps`; asks at most every `ASK_SECONDS`."""
        now = time.monotonic()
        if self._began is None:  # the speed of steps is not known yet
            self._began = now, step
            return False
        is_off = self._settings.preempt_after_seconds <= 0 or self._times >= MOST_PREEMPTIONS
        if is_off or step >= steps or now - self._asked_at < ASK_SECONDS:
            return False
        self._asked_at = now
        self._at = step, steps
        began_at, first = self._began
        self._urgent = self._wanted_by((now - began_at) / max(1, step - first))
        return self._urgent is not None

    def give_way(self) -> Claim | None:
        """Requeue the job, whose steps are saved; returns the claim of the urgent one, None if it is gone."""
        urgent, (step, steps) = self._urgent, self._at
        worker_id = self._job.worker_id
        self._urgent = None
        if urgent is None or worker_id is None:
            return None
        claim = self._store.preempt(
            self._job.id,
            self._token,
            worker_id,
            by=urgent.id,
            step=step,
            steps=steps,
            lease_seconds=self._settings.lease_seconds,
        )
        if claim is not None:
            log.info("job_preempted job_id=%s by=%s step=%d", self._job.id, claim.job.id, step)
        return claim

    def _wanted_by(self, step_seconds: float) -> Urgent | None:
        """The job that should have the device now."""
        try:
            urgent = self._urgent_here()
            if urgent is None:
                return None
            workers = self._store.workers(within_seconds=3 * self._settings.heartbeat_seconds)
            running, now = self._store.running(), self._store.time()
        except StoreUnavailable as error:  # the next step asks again
            log.warning("preemption_not_asked job_id=%s reason=%s", self._job.id, error)
            return None
        decode_seconds = (self._job.plan or {}).get("predicted_seconds")
        switch = Switch(
            waited_seconds=max(0.0, now - urgent.queued_at),
            own_left_seconds=own_left_seconds(step_seconds, *self._at, decode_seconds),
            others_free_in=others_free_in(urgent, self._job.worker_id or "", workers, running),
            load_seconds=self._load_seconds(urgent.model),
            save_seconds=self.save_seconds,
            preemptions=self._times,
        )
        return urgent if gives_way(switch, self._settings.preempt_after_seconds) else None

    def _urgent_here(self) -> Urgent | None:
        """The first job of higher priority whose model need not be downloaded first."""
        models = dict(self._models)
        while models:
            urgent = self._store.urgent(
                self._job.spec.priority,
                models=list(models),
                capacity_bytes=self._engine.claimable_bytes,
                part=self._part(list(models)),
            )
            if urgent is None or urgent.model == self._job.spec.model:  # which is loaded
                return urgent
            if not needs_download(models[urgent.model], self._settings):
                return urgent
            del models[urgent.model]
        return None

    def _load_seconds(self, model: str) -> float:
        own = self._job.spec.model
        if model == own:
            return 0.0
        return self._engine.load_seconds(model) + self._engine.load_seconds(own)
