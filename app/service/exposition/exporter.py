"""Stored counters, and which of several API processes exports them. Knows neither HTTP nor SQL.

Every API process counts the events. It starts with the stored counters and reads the events after them. One
process, the exporter, stores the counters now and then and shows them in its /metrics; so sums over processes
are right, and counted events can be deleted. One process of each host exports the host's GPUs.

These duties are leases in the database, measured with the database's time. A holder believes in its lease by
its own clock, from before it asked on, so that it stops before another process begins, also after it was
suspended. A process that gets the lease first counts all events up to then: counters never go back. If the
clock of the database jumps, two processes may export until the first renews its lease.
"""

import json
import logging
import secrets
import socket
from collections.abc import Callable, Mapping
from typing import Protocol

from app.jobs import Json
from app.service.exposition.live_gauges import Duties
from app.service.identity import is_alive, this_process
from app.store import DamagedSnapshot, JobStore, StoreError
from app.store.upkeep.counters import COUNTERS, Snapshot
from app.store.upkeep.counters import Exporter as Holder
from app.store.upkeep.expiry import since_boot

log = logging.getLogger(__name__)

LEASE_SECONDS = 15.0
RENEWALS_A_LEASE = 3
LOOK_SECONDS = 2.0  # how often the others look whether the exporter has ended
SAVE_SECONDS = 30.0
SAVE_EVENTS = 20_000  # counting so many takes about a second
RETIRE_SECONDS = 60.0
RETIRE_AT_ONCE_SECONDS = 1.0
VERSION = 1
GPUS_OF = "gpus of "


class Counting(Protocol):
    """What is counted from events and belongs into the stored counters."""

    def state(self) -> Json:
        """Return what was counted, as JSON."""
        ...

    def restore(self, state: Json | None) -> None:
        """Count on from a state, from nothing if it is None. Raises `ValueError`, and is at nothing."""
        ...


class Exporter:
    """The counters' place in the events. `begin` and `turn` are called by the thread that counts."""

    def __init__(
        self,
        store: JobStore,
        parts: Mapping[str, Counting],
        *,
        keep_seconds: float,
        lease_seconds: float = LEASE_SECONDS,
        clock: Callable[[], float] = since_boot,
    ) -> None:
        """`keep_seconds`: how long events of ended jobs are kept."""
        self._store = store
        self._parts = dict(parts)
        self._keep_seconds = keep_seconds
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._holder = secrets.token_hex(8)
        self._process = this_process()
        self._own_gpus = GPUS_OF + socket.gethostname()
        self._held_until = {COUNTERS: 0.0, self._own_gpus: 0.0}  # by this process's clock
        self._other_hosts: frozenset[str] = frozenset()
        self._renew_at = 0.0
        self._caught_up = False
        self._settled = False
        self._seen_before: dict[str, float] = {}
        self._has_loaded = False
        self._must_check = False  # after the duty was gained, until the stored counters were looked at
        self._saved_seq = 0
        self._save_at = 0.0
        self._retire_at = 0.0
        self._retire_after = 0

    @property
    def starting(self) -> bool:
        """Whether this process counts past events, or waits for another's lease to end: it may be dead."""
        return not self._settled

    @property
    def exports_counters(self) -> bool:
        """Whether this process is the exporter and has counted every event of before it became that."""
        return self._caught_up and self._holds(COUNTERS)

    def shown(self) -> tuple[bool, bool]:
        """Return whether a scrape shows the counters, and whether it says that this process is starting.

        Both are of one moment: no scrape says that the counters are complete and misses them. An exporter
        that has followed another is starting, too, until it has counted what the other had.
        """
        starting = self.starting  # first: the thread that counts may end both in between
        counters = self.exports_counters
        return counters, not counters and (starting or self._holds(COUNTERS))

    def duties(self) -> Duties:
        """Return which gauges this process exports."""
        return Duties(self._holds(COUNTERS), self._holds(self._own_gpus), self._other_hosts)

    def _holds(self, duty: str) -> bool:
        return self._clock() < self._held_until[duty]

    def begin(self) -> int:
        """Load the stored counters; return the number of the last event in them."""
        self._renew()
        return self._load()

    def turn(self, seen: int, *, at_end: bool) -> int:
        """Renew the leases and store the counters if it is time; return the number to go on after.

        `seen` is the number of the last event that was counted. `at_end`: there was none after it, at a look
        since the last turn.
        """
        if at_end and self._holds(COUNTERS) and not self._must_check:
            self._caught_up = self._settled = True
        if self._clock() >= self._renew_at:
            held = self._holds(COUNTERS)
            self._renew()
            self._must_check = self._must_check or (self._holds(COUNTERS) and not held)
        if self._must_check and self._holds(COUNTERS):
            # What was deleted while another process exported may not have been counted here.
            at = self._load() if self._store.last_retired_event() > seen else seen
            self._must_check = False
            if at != seen:
                return at
        new = seen - self._saved_seq
        if self._holds(COUNTERS) and (new >= SAVE_EVENTS or (new > 0 and self._clock() >= self._save_at)):
            self._save(seen)
        return seen

    def close(self, seen: int) -> None:
        """Store the counters and let another process export them. `seen` as in `turn`."""
        try:
            if self._holds(COUNTERS) and seen > self._saved_seq:
                self._save(seen)
            self._store.give_up_exports(self._holder)
        except StoreError as error:  # the next process counts from the older state when the lease has ended
            log.warning("counters_not_stored reason=%s", error)
        self._held_until = dict.fromkeys(self._held_until, 0.0)

    def _renew(self) -> None:
        asked_at = self._clock()
        others = [one for one in self._store.exporters() if one.holder != self._holder]
        ended = [one.holder for one in others if is_alive(one.process) is False]
        held, others_hold = self._store.hold_exports(
            list(self._held_until),
            self._holder,
            process=self._process,
            seconds=self._lease_seconds,
            ended=ended,
        )
        if COUNTERS not in held:
            self._settled = self._settled or self._is_seen_alive(others)
        if COUNTERS not in held or not self._holds(COUNTERS):
            self._caught_up = False
        if (COUNTERS in held) != self._holds(COUNTERS):
            log.info("exporter_changed exports_counters=%s", COUNTERS in held)
        self._held_until = {
            duty: asked_at + self._lease_seconds if duty in held else 0.0 for duty in self._held_until
        }
        self._other_hosts = frozenset(
            duty.removeprefix(GPUS_OF) for duty in others_hold if duty.startswith(GPUS_OF)
        )
        wait = self._lease_seconds / RENEWALS_A_LEASE
        self._renew_at = asked_at + (wait if len(held) == len(self._held_until) else min(wait, LOOK_SECONDS))

    def _is_seen_alive(self, others: list[Holder]) -> bool:
        """Return whether the exporter's process is seen, or it has renewed its lease since the last look."""
        exporters = [one for one in others if one.duty == COUNTERS]
        before, self._seen_before = self._seen_before, {one.holder: one.held_until for one in exporters}
        return any(
            is_alive(one.process) or before.get(one.holder, one.held_until) != one.held_until
            for one in exporters
        )

    def _load(self) -> int:
        states: Json = {}
        seq = 0
        try:
            snapshot = self._store.counter_snapshot()
            if snapshot is not None:
                states, seq = _parts_of(snapshot), snapshot.seq
            for name, part in self._parts.items():
                if name in states or self._has_loaded:
                    part.restore(states.get(name))
        except (DamagedSnapshot, ValueError) as error:
            log.warning("counters_rebuilt reason=%s: they are counted from the events that are left", error)
            seq = 0
            for part in self._parts.values():
                part.restore(None)
        self._saved_seq = seq
        self._has_loaded = True
        return seq

    def _save(self, seen: int) -> None:
        parts = {name: part.state() for name, part in self._parts.items()}
        text = json.dumps({"version": VERSION, "parts": parts}, separators=(",", ":"), allow_nan=False)
        if self._store.save_counters(Snapshot(seen, text), self._holder):
            self._saved_seq = seen
            self._save_at = self._clock() + SAVE_SECONDS
        else:
            self._held_until[COUNTERS] = 0.0

    def retire_events(self) -> int:
        """Delete stored events that are counted and old, for about a second; return how many.

        Does nothing in a process that is not the exporter. Called by another thread than `turn`.
        """
        if not self.exports_counters or self._clock() < self._retire_at:
            return 0
        end = self._clock() + RETIRE_AT_ONCE_SECONDS
        deleted = 0
        while self._clock() < end:
            retired = self._store.retire_events(
                self._holder,
                counted=self._saved_seq,
                keep_seconds=self._keep_seconds,
                after=self._retire_after,
            )
            deleted += retired.deleted
            self._retire_after = retired.next_after or 0
            if retired.next_after is None:
                self._retire_at = self._clock() + RETIRE_SECONDS
                break
        return deleted


def _parts_of(snapshot: Snapshot) -> Json:
    """Return the states in stored counters. Raises `ValueError` if this version cannot read them."""
    stored = json.loads(snapshot.data)
    if not isinstance(stored, dict) or stored.get("version") != VERSION:
        raise ValueError(f"this version reads version {VERSION} of stored counters")
    parts: Json = stored["parts"]
    return parts
