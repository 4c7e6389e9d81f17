"""The counters of all events up to a number, and which API process exports them.

A snapshot and the number of the last event in it are one row, so no event is lost or counted twice: whoever
loads the snapshot goes on with the events after that number.

Of several API processes that share the database, one holds the duty of exporting the counters, and one a host
that of exporting the host's GPUs. A duty is held until a time of the database. Its holder asks again before
that time; another process gets it afterwards.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, text

from app.store.errors import DamagedSnapshot
from app.store.transaction import Locking, Transaction

COUNTERS = "counters"
LOAD = text("select seq, data, checksum from counter_snapshots where name = :name")
SAVE = text("""
    insert into counter_snapshots (name, seq, data, checksum, written_at)
    values (:name, :seq, :data, :checksum, :now)
    on conflict (name) do update set seq = excluded.seq, data = excluded.data, checksum = excluded.checksum,
        written_at = excluded.written_at
""")
HELD_BY = Locking.of("select 1 from exporters where duty = :duty and holder = :holder")
# A time much further ahead than any holder asks for comes from a clock that has been set back since. Two that
# ask at one moment differ by the time of their statements.
TAKE = text("""
    update exporters set holder = :holder, process = :process, held_until = :until
    where duty = :duty
        and (holder = :holder or held_until <= :now or held_until > :until + 60 or holder in :ended)
""").bindparams(bindparam("ended", expanding=True))
TAKE_FIRST = text("""
    insert into exporters (duty, holder, process, held_until) values (:duty, :holder, :process, :until)
    on conflict (duty) do nothing
""")
GIVE_UP = text("delete from exporters where holder = :holder")
SELECT = text("select duty, holder, process, held_until from exporters order by duty")
SELECT_HELD = text("select duty, holder from exporters where held_until > :now")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was counted of the events numbered up to `seq`, as text."""

    seq: int
    data: str


@dataclass(frozen=True, slots=True)
class Exporter:
    """A duty and its last holder, in the process that `app.service.identity` names so.

    `held_until` is a time of the database (seconds since the epoch).
    """

    duty: str
    holder: str
    process: str
    held_until: float


def load(connection: Connection) -> Snapshot | None:
    """Return the snapshot, or None if there is none. Raises `DamagedSnapshot`."""
    row = connection.execute(LOAD, {"name": COUNTERS}).one_or_none()
    if row is None:
        return None
    snapshot = Snapshot(int(row.seq), row.data)
    if _checksum(snapshot) != row.checksum:
        raise DamagedSnapshot("its checksum does not match")
    return snapshot


def save(tx: Transaction, snapshot: Snapshot, holder: str) -> bool:
    """Replace the snapshot; return False if `holder` no longer has the duty to export the counters."""
    if not is_held(tx, COUNTERS, holder):
        return False
    row = {"name": COUNTERS, "seq": snapshot.seq, "data": snapshot.data, "now": tx.now}
    tx.execute(SAVE, {**row, "checksum": _checksum(snapshot)})
    return True


def _checksum(snapshot: Snapshot) -> str:
    return hashlib.sha256(f"{snapshot.seq} {snapshot.data}".encode()).hexdigest()


def is_held(tx: Transaction, duty: str, holder: str) -> bool:
    """Return whether `holder` has the duty; if so, nobody else gets it before this transaction ends."""
    return tx.execute(HELD_BY, {"duty": duty, "holder": holder}).one_or_none() is not None


def hold(
    tx: Transaction,
    duties: Collection[str],
    holder: str,
    *,
    process: str,
    seconds: float,
    ended: Collection[str] = (),
) -> tuple[frozenset[str], frozenset[str]]:
    """Take or keep each duty for `seconds` from now if nobody else has it.

    Returns all duties that the holder has now, and all that others have. `process` names the holder's
    process. `ended`: holders whose processes are known to have ended.
    """
    for duty in sorted(duties):
        row = {"duty": duty, "holder": holder, "process": process, "until": tx.now + seconds}
        # SQLAlchemy needs a value for an empty list; no holder is named so.
        if not tx.execute(TAKE, {**row, "now": tx.now, "ended": [*ended] or [""]}).rowcount:
            tx.execute(TAKE_FIRST, row)
    rows = tx.execute(SELECT_HELD, {"now": tx.now}).all()
    held = {
        is_own: frozenset(row.duty for row in rows if (row.holder == holder) == is_own)
        for is_own in (True, False)
    }
    return held[True], held[False]


def give_up(tx: Transaction, holder: str) -> None:
    """End the holder's duties, so that another process gets them at once."""
    tx.execute(GIVE_UP, {"holder": holder})


def exporters(connection: Connection) -> list[Exporter]:
    """Return every duty with its last holder."""
    return [Exporter(row.duty, row.holder, row.process, row.held_until) for row in connection.execute(SELECT)]
