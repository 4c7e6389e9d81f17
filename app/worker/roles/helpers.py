"""Which other live workers decode for this one, and so which jobs it leaves to them.

Jobs of models that decode in place are left to nobody. Looks at the job table from time to time. Must not
know models or memory readings.
"""

import logging
import time
from collections.abc import Callable, Collection

from app.config import Settings
from app.fields.roles import Role
from app.jobs import WorkerRow
from app.scheduling.handover import capacity_of, may_decode
from app.store import JobStore, StoreUnavailable
from app.store.roles.parts import DENOISED_ONLY, WHOLE_QUEUE, Part, Share

log = logging.getLogger(__name__)
MISSED_HEARTBEATS = 3  # a worker that is silent for so long does not count


class Helpers:
    """The other workers that decode, as seen by one of `role`. `in_place`: models that decode in place."""

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        worker_id: str,
        role: Role,
        clock: Callable[[], float] = time.monotonic,
        in_place: Collection[str] = (),
    ) -> None:
        self._settings = settings
        self._store = store
        self._id = worker_id
        self.role = role
        self._clock = clock
        self._in_place = in_place
        self._looked_at = float("-inf")
        self._found: list[WorkerRow] = []

    def look(self, *, fresh: bool = False) -> list[WorkerRow]:
        """The live workers to which decodes may be left: read anew if `fresh`, else once a heartbeat."""
        now = self._clock()
        if self.role.denoises and (fresh or now - self._looked_at >= self._settings.heartbeat_seconds):
            within = MISSED_HEARTBEATS * self._settings.heartbeat_seconds
            try:
                workers = self._store.workers(within_seconds=within)
            except StoreUnavailable as error:  # the next look asks again
                log.warning("helpers_not_read worker_id=%s reason=%s", self._id, error)
                return self._found
            self._looked_at = now
            self._found = [each for each in workers if may_decode(each, own_id=self._id, own_role=self.role)]
        return self._found

    def part(self, models: list[str]) -> Part:
        """The part of the queue that this worker takes, of jobs of `models`."""
        if self.role is Role.DECODE:
            return DENOISED_ONLY
        room = self._room(models)
        if not room:
            return WHOLE_QUEUE
        # The least of the rooms, so that no job is left to nobody.
        return Part(Share.NOT_LEFT, tuple(room), min(room.values()))

    def left_models(self, models: list[str]) -> list[str]:
        """Those of the models whose decodes can be left to another worker."""
        return list(self._room(models))

    def claimable_bytes(self, models: list[str], own_bytes: int) -> int:
        """The most bytes that a decode may need for this worker to claim its job to denoise it."""
        room = self._room(models)
        if len(room) < len(models):
            return own_bytes
        return max(own_bytes, min(room.values(), default=own_bytes))

    def _room(self, models: list[str]) -> dict[str, int]:
        """Bytes of the largest decode that can be left to another worker, by model."""
        room: dict[str, int] = {}
        for worker in self.look():
            for model in worker.device.get("models") or models:
                if model in models and model not in self._in_place:
                    room[model] = max(room.get(model, 0), capacity_of(worker))
        return room
