"""How one attempt's saved steps get into the job table, and when the job goes back with them: as the worker
stops, or for a job of higher priority.
"""

from collections.abc import Callable

from app.attempts import DENOISED
from app.jobs import Claim, Json
from app.store import JobStore
from app.worker.job.control import JobControl, JobYielded, WorkerStopping
from app.worker.job.giving_way import GivingWay


class StepsOfJob:
    """The surroundings of `app.worker.denoise.checkpoints` for a claimed job.

    `require_lease` raises if the store did not write.
    """

    def __init__(
        self,
        store: JobStore,
        claim: Claim,
        control: JobControl,
        require_lease: Callable[[bool], None],
        giving_way: GivingWay,
    ) -> None:
        self._store = store
        self._giving_way = giving_way
        self._job_id, self._token = claim.job.id, claim.token
        self._control = control
        self._require_lease = require_lease

    def goes_back(self) -> bool:
        """Whether the job is to go back to the queue at this step."""
        return self._control.goes_back

    def gives_way(self, step: int, total: int) -> bool:
        """Whether it is to go back for a job of higher priority."""
        return self._giving_way.is_wanted(step, total)

    def saved(self, step: int, total: int, data: Json) -> None:
        """Record that the steps up to `step` are on disk: progress that sets earlier setbacks to zero."""
        self._giving_way.save_seconds = data["seconds"]
        # The last step is not the latents yet.
        reached = DENOISED * step / (max(step, total) + 1)
        self._require_lease(self._store.steps_saved(self._job_id, self._token, data, reached=reached))

    def gives_back(self) -> None:
        """Raise `WorkerStopping`, or `JobYielded` with a job of higher priority.

        Return if that job is gone meanwhile.
        """
        if not self._control.goes_back:
            claim = self._giving_way.give_way()
            if claim is not None:
                raise JobYielded(claim)
            return
        self._control.interrupt(WorkerStopping)
        self._control.check()
