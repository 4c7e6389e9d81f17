"""The events of a job whose content is erased: what metrics and estimates count stays, everything else goes.

A starting process counts all events again, so a counter would go down if they went, too.
"""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import BindParameter, TextClause, bindparam, text

from app.jobs import Json
from app.store.rows import dump
from app.store.transaction import Transaction

# By kind, what stays of an event's data: numbers, and names out of fixed lists. No field may hold a text that
# was made from what a client sent, from a path or from another program.
COUNTED: Mapping[str, frozenset[str]] = {
    "accepted": frozenset({"model", "priority"}),
    "queued_again": frozenset({"model", "reason"}),
    "claimed": frozenset({"model", "attempt", "queued_seconds", "worker_id"}),
    "requeued": frozenset({"reason"}),
    "preempted": frozenset({"priority", "step", "steps"}),
    "handed_over": frozenset({"durations"}),
    "decode_kept": frozenset(),
    "decode_given_back": frozenset(),
    "plan": frozenset({"vae", "strategy", "reason", "stage"}),
    "downloaded": frozenset({"received_bytes"}),
    "checkpoint": frozenset({"steps_since_checkpoint"}),
    "resumed": frozenset({"step"}),
    "denoised": frozenset({"exact", "steps", "seconds", "steps_since_checkpoint"}),
    "denoise_fallback": frozenset({"from", "to"}),
    "fallback": frozenset({"from", "to"}),
    "oom": frozenset({"stage"}),
    "nonfinite": frozenset({"stage"}),
    "held": frozenset(),
    "webhook": frozenset({"state"}),
    "spill": frozenset({"sign"}),
    "finished": frozenset(
        {
            "outcome",
            "model",
            "queued_only",
            "duration_seconds",
            "durations",
            "earlier_durations",
            "decode",
            "denoise",
            "error",
            "video",
        }
    ),
}
DECODE = frozenset(
    {
        "strategy",
        "frames_per_chunk",
        "exact",
        "seconds",
        "retries",
        "regret_seconds",
        "predicted_peak_bytes",
        "measured_peak_bytes",
        "seam_score",
        "device",
    }
)


def _forget(table: str) -> TextClause:
    kinds: BindParameter[Any] = bindparam("kinds", expanding=True)
    return text(f"delete from {table} where job_id = :job_id and kind not in :kinds").bindparams(kinds)


# On PostgreSQL an event moves from `new_events` to `events`; looked at in this order, none is missed.
_TABLES = {
    table: (
        _forget(table),
        text(f"select {key} as key, kind, data from {table} where job_id = :job_id"),
        text(f"update {table} set data = :data where {key} = :key"),
    )
    for table, key in (("new_events", "id"), ("events", "seq"))
}


def erase_events(tx: Transaction, job_id: str) -> None:
    """Delete the job's events that nobody counts, and all texts of the others."""
    for table in _TABLES if tx.is_postgresql else ("events",):
        forget, select, update = _TABLES[table]
        tx.execute(forget, {"job_id": job_id, "kinds": list(COUNTED)})
        for row in tx.execute(select, {"job_id": job_id}).all():
            tx.execute(update, {"key": row.key, "data": dump(counted(row.kind, json.loads(row.data)))})


def counted(kind: str, data: Mapping[str, Any]) -> Json:
    """Return what stays of an event's data."""
    kept = {name: value for name, value in data.items() if name in COUNTED[kind]}
    if kept.get("decode"):
        kept["decode"] = {name: value for name, value in kept["decode"].items() if name in DECODE}
    if kept.get("error"):
        kept["error"] = {"code": kept["error"].get("code")}  # its message may quote anything
    return kept
