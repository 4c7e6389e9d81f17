"""Makes room for a denoise that ran out of memory: one step down after another, the cheapest first.

Owns the order: release caches, the branches of guidance one after the other, smaller slices, weights off the
device, the denoiser on the CPU where that is allowed, and at last a bounded wait for a neighbour's memory. No
step of the denoise is lost by it. `adaptive.denoise` repeats the failed call; `app.worker.loaded_model` moves
weights. Must not know the job table.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from adaptive.denoise.retries import MissingMemory, Retries
from adaptive.denoise.smaller_steps import can_slice, slice_denoiser, whole_denoiser
from adaptive.denoise.watch import denoisers_of
from app.jobs import Json
from app.models.denoiser_memory import CALLS
from app.worker.decoding import OnEvent
from app.worker.loaded_model import LoadedModel

log = logging.getLogger(__name__)

MIB = 2**20
RELEASED = "released_caches"
TWO_PASSES = "guidance_in_two_passes"
SLICES = "slices"
ON_HOST = "cpu"
WAITED = "waited_for_memory"
# These change the order in which numbers are added; where weights are does not.
CHANGES_ARITHMETIC = frozenset({TWO_PASSES, SLICES, ON_HOST})


@dataclass(frozen=True, slots=True)
class Limits:
    """What a job allows: the CPU in place of the device, and a wait until so many bytes are free.

    `wait_for(needed_bytes)` returns whether that many are free now and were not before.
    """

    may_use_cpu: bool
    wait_for: Callable[[int], bool]


class DenoiseRoom:
    """The steps down of one job's denoise. `fallbacks` are those taken, as JSON."""

    def __init__(
        self,
        model: LoadedModel,
        limits: Limits,
        on_event: OnEvent,
        keep_steps: Callable[[], None],
        *,
        least_bytes: int,
    ) -> None:
        self.retries = Retries(self.make)
        self.fallbacks: list[Json] = []
        self.step = 0
        self._model = model
        self._limits = limits
        self._on_event = on_event
        self._keep_steps = keep_steps
        self._least_bytes = least_bytes
        self._sliced: list[nn.Module] = []
        self._released: set[object] = set()  # what has failed in this step, and again with empty caches
        self._failed_at = -1
        self._is_spent = False
        self._now = str(model.placement["kind"])
        self.missing_bytes = 0

    @property
    def same_arithmetic(self) -> bool:
        """Whether nothing has changed the order in which numbers are added."""
        return not any(each["to"] in CHANGES_ARITHMETIC for each in self.fallbacks)

    def make(self, missing: MissingMemory) -> bool:
        """Take the next step down. Returns False if there is none left."""
        if self._failed_at != self.step:
            self._failed_at, self._released, self._is_spent = self.step, set(), False
        if self._is_spent:  # the error of a call ends its pipeline's call, too
            return False
        model = self._model
        model.release()
        free_bytes = model.memory().free_bytes
        if not missing.is_refusal:
            self._on_event("oom", {"stage": "denoising", "step": self.step, "free_bytes": free_bytes})
        if missing.module not in self._released:
            self._released.add(missing.module)
            return self._took(RELEASED, missing)
        for name in self._steps_down(missing):
            return self._took(name, missing)
        free_bytes = model.memory().free_bytes
        least_bytes = self._least_bytes + model.missing_weight_bytes
        self.missing_bytes = max(least_bytes, free_bytes + max(missing.asked_bytes, MIB))
        if missing.module is not None and not missing.is_refusal:
            model.learn_failure(least_bytes=self._least_bytes)
        self._keep_steps()
        if self._limits.wait_for(self.missing_bytes):
            return self._took(WAITED, missing)
        self._is_spent = True
        return False

    def _steps_down(self, missing: MissingMemory) -> Iterator[str]:
        """Take the first step that is left and yield its name."""
        module = missing.module
        if missing.splits and _is_guidance(module) and not self.retries.splits_batch:
            self.retries.splits_batch = True
            yield TWO_PASSES
        if module is not None and module not in self._sliced and can_slice(module):
            slice_denoiser(module)
            self._sliced.append(module)
            yield SLICES
        leaner = self._model.place_leaner()
        if leaner is not None:
            yield leaner
        if self._limits.may_use_cpu and not self.retries.on_host and module is not None:
            self._model.denoisers_to_host()
            self.retries.on_host = True
            yield ON_HOST

    def _took(self, name: str, missing: MissingMemory) -> bool:
        reading = self._model.memory()
        data: Json = {
            "from": self._now,
            "to": name,
            "step": self.step,
            "needed_bytes": missing.asked_bytes or None,
            "free_bytes": reading.free_bytes,
        }
        if name not in (RELEASED, WAITED):
            self._now = name
        self.fallbacks.append(data)
        self._on_event("denoise_fallback", data)
        log.info("denoise_fallback from=%s to=%s step=%d", data["from"], name, self.step)
        return True

    def close(self) -> None:
        """Undo what belongs to this job alone; the next job places the weights anew."""
        for module in denoisers_of(self._model.pipe).values():
            if module in self._sliced:
                whole_denoiser(module)
        self._sliced.clear()

    def report(self) -> Json:
        """For the job's history: {} if nothing was missing."""
        if not self.fallbacks:
            return {}
        return {
            "fallbacks": self.fallbacks,
            "retries": len(self.fallbacks),
            "same_arithmetic": self.same_arithmetic,
        }


def _is_guidance(module: nn.Module | None) -> bool:
    """Whether an even batch of that denoiser holds the two branches of guidance, each for itself."""
    call = CALLS.get(type(module).__name__)
    return call is not None and call.guidance_in_batch
