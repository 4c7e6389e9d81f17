"""How one attempt's saved steps get into the job table, and when the job goes back with them."""

from collections.abc import Callable

from app.attempts import DENOISED
from app.jobs import Claim, Json
from app.store import JobStore
from app.worker.job.control import JobControl, WorkerStopping


class StepsOfJob:
    """The surroundings of `app.worker.denoise.checkpoints` for a claimed job.

    `require_lease` raises if the store did not write.
    """

    def __init__(
        self, store: JobStore, claim: Claim, control: JobControl, require_lease: Callable[[bool], None]
    ) -> None:
        self._store = store
        self._job_id, self._token = claim.job.id, claim.token
        self._control = control
        self._require_lease = require_lease

    def goes_back(self) -> bool:
        """Whether the job is to go back to the queue at this step."""
        return self._control.goes_back

    def saved(self, step: int, total: int, data: Json) -> None:
        """Record that the steps up to `step` are on disk: progress that sets earlier setbacks to zero."""
        # The last step is not the latents yet.
        reached = DENOISED * step / (max(step, total) + 1)
        self._require_lease(self._store.steps_saved(self._job_id, self._token, data, reached=reached))

    def gives_back(self) -> None:
        """Raise `WorkerStopping`."""
        self._control.interrupt(WorkerStopping)
        self._control.check()
