"""Asks after a denoise whether another worker decodes the job, and hands it over.

`app.scheduling.handover` decides. Must not know pipelines or how latents are saved.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from app.config import Settings
from app.fields.roles import Role
from app.jobs import Claim, Job, Json
from app.models import profiles
from app.models.entries import ModelEntry
from app.scheduling.handover import NEVER, Choice, Elsewhere, Here, choose, decode_seconds, soonest
from app.store import JobStore
from app.worker.roles.helpers import Helpers

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OwnDevice:
    """What a decision needs of the worker's own device: its report, and the largest decode that it can do."""

    report: Callable[[], Json]
    claimable_bytes: Callable[[], int]


class HandingOver:
    """The handover of denoised jobs by a worker that runs `models`."""

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        helpers: Helpers,
        models: Mapping[str, ModelEntry],
        own: OwnDevice,
    ) -> None:
        self._settings = settings
        self._store = store
        self._helpers = helpers
        self._models = models
        self._own = own

    def decided(self, job: Job, denoise_seconds: float) -> tuple[bool, Json] | None:
        """Whether the denoised job is handed over, and the event's data; None where nobody could take it.

        A worker that only denoises tells why it decodes; for others nobody is expected to take it.
        `denoise_seconds` is what its denoise took.
        """
        workers = self._helpers.look(fresh=True)
        only_denoises = self._helpers.role is Role.DENOISE
        if job.kept_from_decoders or not workers:
            reason = "given_back" if job.kept_from_decoders else "no_worker_decodes"
            return (False, {"reason": reason}) if only_denoises else None
        profile = profiles.load(self._settings, self._models[job.spec.model])
        reserve_bytes, needed_bytes = self._settings.reserve_bytes, job.needed_bytes or 0

        def seconds_on(device: Json) -> float | None:
            return decode_seconds(job.spec, profile, device, reserve_bytes)

        fits_here = needed_bytes <= self._own.claimable_bytes()
        here_seconds = seconds_on(self._own.report()) if fits_here else NEVER
        known = [here_seconds, *(seconds_on(worker.device) for worker in workers)]
        usual_seconds = next((each for each in known if each and each < NEVER), denoise_seconds)
        there = soonest(
            job.spec,
            needed_bytes,
            workers,
            self._store.decodes(),
            profile,
            reserve_bytes,
            usual_seconds=usual_seconds,
        )
        if there is None:
            return False, {"reason": "fits_no_other_worker"}
        own = usual_seconds if here_seconds is None else here_seconds
        choice = choose(self._here(own, denoise_seconds), there)
        if only_denoises:
            return True, {"reason": "role", **_told(choice, there, own)}
        reason = "ends_earlier" if choice.elsewhere else "ends_earlier_here"
        if own == NEVER:
            reason = "does_not_fit_here"
        return choice.elsewhere, {"reason": reason, **_told(choice, there, own)}

    def hand_over(self, claim: Claim, data: Json, durations: Mapping[str, float]) -> bool:
        """Give the job back for another worker to decode; False if this one has lost it."""
        written = self._store.hand_over(claim.job.id, claim.token, data=data, durations=durations)
        log.info("job_handed_over job_id=%s to=%s", claim.job.id, data.get("to"))
        return written

    def _here(self, own_seconds: float, denoise_seconds: float) -> Here:
        models: Sequence[str] = list(self._models)
        after = self._store.next_denoises(models=models, capacity_bytes=self._own.claimable_bytes())
        if not after.count:
            return Here(own_seconds)
        return Here(own_seconds, after.denoise_seconds or denoise_seconds, after.count)


class Loads(Protocol):
    """A device and the model that it has loaded, as the engine is."""

    @property
    def loaded_model(self) -> str | None:
        """Name of the model on the device."""

    def load_seconds(self, model: str) -> float:
        """Seconds to load a model."""


def takes_waiting_decode(store: JobStore, helpers: Helpers, device: Loads) -> bool:
    """Whether a worker that has nothing to denoise would be through with the first waiting decode before
    another one."""
    workers = helpers.look()
    if helpers.role is not Role.BOTH or not workers:
        return False
    decodes = store.decodes()
    first = next((each for each in decodes if each.worker_id is None), None)
    if first is None:
        return False
    usual_seconds = first.seconds or 1.0
    busy = {each.worker_id: each.left * (each.seconds or usual_seconds) for each in decodes}
    free_in = min(busy.get(worker.id, 0.0) for worker in workers)
    loads = 0.0 if first.model == device.loaded_model else device.load_seconds(first.model)
    own_seconds = first.seconds_at_denoiser or usual_seconds
    return loads + own_seconds < free_in + usual_seconds


def _told(choice: Choice, there: Elsewhere, own_seconds: float) -> Json:
    def rounded(seconds: float) -> float | None:
        return None if seconds == NEVER else round(seconds, 3)

    return {
        "to": there.worker_id,
        "here_seconds": rounded(choice.here_seconds),
        "there_seconds": rounded(choice.there_seconds),
        "decode_seconds": rounded(there.decode_seconds),
        "decode_seconds_here": rounded(own_seconds),
    }
