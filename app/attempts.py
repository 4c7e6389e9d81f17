"""The rule of attempts: what follows for a job from how an attempt at it ended.

The cap on attempts is for a job that ends its worker. Counted are deaths of the worker that the job may have
caused, and unclean stops of the whole service if the same job was running in each. An end by others (a signal
from outside, a lease that ran out, a database out of reach) costs no attempt; only very many of them without
any progress count. Durable progress beyond every earlier attempt sets all counts to zero.

A job that has used up its attempts is held: it waits behind the others and is tried once more, alone. If that
fails too, the job fails. This file is pure: it knows neither SQL nor processes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

# How far a job's durable results reach, from 0 to 1: of the steps of a job, only denoising is saved.
DENOISED = 1.0
# As many ends by others, for each counted attempt, use up a job's attempts, too: something that kills with
# signals (a memory guard in user space, an operator's script) may mean this job.
LOSSES_PER_ATTEMPT = 4
# How long newer jobs go before a held one. Where jobs never stop coming, it must be tried some time, too.
HELD_SECONDS = 24 * 3600.0


class Blame(StrEnum):
    """Who may have ended an attempt."""

    JOB = "job"
    SERVICE = "service"  # the whole service ended: this job counts only if it runs at the next such end, too
    OTHERS = "others"
    MEMORY = "memory"  # another program's memory; the worker bounds these
    NOBODY = "nobody"  # an orderly end


BLAME: Mapping[str, Blame] = {
    "worker_crashed": Blame.JOB,
    "worker_stalled": Blame.JOB,
    "out_of_memory_killer": Blame.JOB,
    "service_restarted": Blame.SERVICE,
    "service_killed": Blame.OTHERS,
    "worker_killed": Blame.OTHERS,
    "worker_hung": Blame.OTHERS,
    "worker_lost": Blame.OTHERS,
    "lease_expired": Blame.OTHERS,
    "database_unavailable": Blame.OTHERS,
    "memory_taken": Blame.MEMORY,
    "worker_stopped": Blame.NOBODY,
    "made_way_for_a_smaller_job": Blame.NOBODY,
    "preempted": Blame.NOBODY,
    "handed_over": Blame.NOBODY,
    "decode_given_back": Blame.NOBODY,
}


class Verdict(StrEnum):
    """What becomes of the job."""

    AGAIN = "again"  # it keeps its place in the queue
    LATER = "later"  # it goes behind the jobs that are queued now
    HELD = "held"  # it waits behind the others, and is tried once more when nothing else runs
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Stop:
    """An unclean stop of a whole service: the service's instance id, and which of its stops it was."""

    instance: str
    number: int


@dataclass(frozen=True, slots=True)
class Setbacks:
    """How attempts at a job ended since its last durable progress.

    `stops` are consecutive unclean stops of one service, the last of which was `last_stop`. `losses` are ends
    by others. `held`: the attempts are used up. `reached` is the furthest durable progress of all attempts,
    and `rank` the job's sort key before it was moved back in the queue.
    """

    deaths: int = 0
    stops: int = 0
    last_stop: Stop | None = None
    losses: int = 0
    memory_losses: int = 0
    held: bool = False
    reached: float = 0.0
    rank: float | None = None

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> "Setbacks":
        """Return what `as_json` stored; None stands for a job without setbacks."""
        known = {name: value for name, value in (stored or {}).items() if name in cls.__slots__}
        if known.get("last_stop") is not None:
            known["last_stop"] = Stop(**known["last_stop"])
        return cls(**known)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON to store; values at their defaults are left out."""
        plain = Setbacks()
        values = asdict(self)
        return {name: value for name, value in values.items() if value != getattr(plain, name)}

    @property
    def counted(self) -> int:
        """Attempts that count. One unclean stop of the service is chance; from the second on, all count."""
        return self.deaths + (self.stops if self.stops > 1 else 0)

    @property
    def attempts(self) -> int:
        """The number of attempts that users see, before the next one."""
        return self.counted + self.memory_losses

    def after_progress(self, reached: float) -> "Setbacks":
        """Return the setbacks after durable progress: none, if no earlier attempt came as far."""
        return self if reached <= self.reached else Setbacks(reached=reached)

    def after(self, blame: Blame, stop: Stop | None) -> "Setbacks":
        """Return the setbacks after one more end of an attempt."""
        match blame:
            case Blame.JOB:
                return replace(self, deaths=self.deaths + 1)
            case Blame.SERVICE:
                follows = stop is not None and self.last_stop == Stop(stop.instance, stop.number - 1)
                stops = self.stops + 1 if follows else 1
                losses = self.losses + (stops == 1)
                return replace(self, stops=stops, last_stop=stop, losses=losses)
            case Blame.OTHERS:
                return replace(self, losses=self.losses + 1)
            case Blame.MEMORY:
                return replace(self, memory_losses=self.memory_losses + 1)
            case Blame.NOBODY:
                return self


def judge(
    before: Setbacks, reason: str, *, max_attempts: int, refund: bool = False, stop: Stop | None = None
) -> tuple[Setbacks, Verdict]:
    """Return a job's setbacks after an attempt ended for `reason`, and what becomes of the job.

    An unknown reason is the job's. `refund`: the end was orderly, whatever its reason.
    """
    after = before.after(Blame.NOBODY if refund else BLAME.get(reason, Blame.JOB), stop)
    too_many_losses = after.losses >= LOSSES_PER_ATTEMPT * max_attempts
    if after.counted < max_attempts and not too_many_losses:
        is_suspect = after.deaths > max(before.deaths, 1)
        return replace(after, held=False), Verdict.LATER if is_suspect else Verdict.AGAIN
    speaks_against = after.counted > before.counted or (too_many_losses and after.losses > before.losses)
    if before.held and speaks_against:
        return after, Verdict.FAILED
    return replace(after, held=True), Verdict.HELD


def description(setbacks: Setbacks) -> str:
    """Return what the setbacks were, for people."""
    ends = [
        (setbacks.deaths, "its worker process died {}"),
        (setbacks.stops if setbacks.stops > 1 else 0, "the service died {} in a row"),
        (setbacks.losses, "its worker was killed or lost from outside {}"),
    ]
    return ", ".join(text.format("once" if n == 1 else f"{n} times") for n, text in ends if n)
