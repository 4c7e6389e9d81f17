"""Routes that stream server-sent events: of one job until it ends, or of every job.

Events of jobs that ended long ago are deleted. A stream from which events may be missing begins with a
message of the type `gap`, which says so.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app.api.access import Caller
from app.api.dependencies import Service, TheService, visible
from app.api.fairness.clients import current_client
from app.api.problems import Problem, documented
from app.api.views import event_view
from app.jobs import Event, Job
from app.store import JobDeleted, NoSuchJob

router = APIRouter(tags=["jobs"])
PAGE = 1000
DELETED = "deleted"


class StreamEnded(Exception):
    """The client has received every event. The response is 204, which stops a browser from reconnecting."""


async def _place(service: TheService) -> AsyncIterator[None]:
    with service.shares.event_streams.hold(current_client()):
        yield


StreamPlace = Annotated[None, Depends(_place)]


@dataclass(frozen=True, slots=True)
class Start:
    """The number after which a stream begins. `deleted`: events up to that number may be missing; 0: none."""

    seen: int
    deleted: int = 0


def _gap(start: Start, job_id: str | None) -> ServerSentEvent:
    data = {
        "job_id": job_id,
        "kind": "gap",
        "last_deleted": start.deleted,
        "detail": f"events up to number {start.deleted} of jobs that ended long ago were deleted "
        "(FRAMEFIT_EVENT_TTL_SECONDS): GET /jobs and GET /jobs/{id} tell how these jobs ended",
    }
    return ServerSentEvent(data=data, event="gap", id=str(start.deleted))


def _followed(
    job_id: str,
    service: TheService,
    owner: Caller,
    last_event_id: Annotated[str | None, Header()] = None,
) -> tuple[Job, Start]:
    job = visible(service, job_id, owner)
    seen = _sequence(last_event_id)
    deleted = _deleted_after(service, job_id, seen)
    if not deleted and job.status.is_terminal and seen and not _any_of_the_run(service, seen, job_id):
        raise StreamEnded
    return job, Start(seen, deleted)


def _deleted_after(service: Service, job_id: str, seen: int) -> int:
    """Return the number up to which events of the job after `seen` may be missing, 0 if none is."""
    deleted = service.store.last_retired_event()
    if seen >= deleted:
        return 0
    # A job's events are deleted from the first on, so the first one left tells.
    first = next(iter(service.store.events_after(0, 1, job_id)), None)
    is_whole = first is not None and (first.kind == "accepted" or first.seq <= seen)
    return 0 if is_whole else deleted


def _sequence(last_event_id: str | None) -> int:
    if not last_event_id:
        return 0
    if not last_event_id.isascii() or not last_event_id.isdigit() or len(last_event_id) > 18:
        raise Problem(422, "invalid_last_event_id", "Last-Event-ID must be an event's id, a number")
    return int(last_event_id)


@router.get(
    "/jobs/{job_id}/events",
    summary="Follow a job (server-sent events)",
    response_class=EventSourceResponse,
    responses={
        204: {"description": "The job has ended and the client has received every event."},
        **documented(401, 404, 410, 422, 429, 503),
    },
)
async def follow_job(
    service: TheService,
    owner: Caller,
    _place: StreamPlace,
    followed: Annotated[tuple[Job, Start], Depends(_followed)],
) -> AsyncIterator[ServerSentEvent]:
    """Stream the job's past events, from the first or from the one after `Last-Event-ID`, then new events
    until it ends or is deleted.

    Each message has the event's kind as its type and JSON data. A first message of the type `gap` says that
    events were deleted (`FRAMEFIT_EVENT_TTL_SECONDS`); if the job has ended, the stream then ends after the
    events that are left.
    """
    job, start = followed
    if start.deleted:
        yield _gap(start, job.id)
    if start.deleted and job.status.is_terminal:
        async for event in _past_events(service, job.id, start.seen):
            yield _message(service, event, owner)
        return
    async for event in _past_then_new_events(service, job.id, start.seen):
        if _was_removed(service, owner):
            return
        yield _message(service, event, owner)
        if event.kind == DELETED or (
            event.kind == "finished" and await asyncio.to_thread(_is_last, service, event)
        ):
            return


def _start(service: TheService, last_event_id: Annotated[str | None, Header()] = None) -> Start:
    # This runs before the stream starts: afterwards an error response is no longer possible.
    seen = _sequence(last_event_id)
    if not seen:
        return Start(service.store.last_event())
    deleted = service.store.last_retired_event()
    return Start(seen, deleted if deleted > seen else 0)


@router.get(
    "/events",
    summary="Follow every job (server-sent events)",
    response_class=EventSourceResponse,
    responses=documented(401, 422, 429, 503),
)
async def follow_all(
    service: TheService, owner: Caller, _place: StreamPlace, start: Annotated[Start, Depends(_start)]
) -> AsyncIterator[ServerSentEvent]:
    """Stream the events of the caller's jobs from now on, or from the one after `Last-Event-ID`. An admin key
    gets those of all jobs. The stream does not end.

    A first message of the type `gap` says that events after `Last-Event-ID` were deleted
    (`FRAMEFIT_EVENT_TTL_SECONDS`).
    """
    if start.deleted:
        yield _gap(start, None)
    served: dict[str, bool] = {}
    async for event in _past_then_new_events(service, None, start.seen):
        if _was_removed(service, owner):
            return
        if event.kind == DELETED:  # the last event of its job that is sent
            send, served[event.job_id] = (
                await asyncio.to_thread(_belongs, service, event.job_id, owner),
                False,
            )
        elif event.job_id not in served:
            send = served[event.job_id] = await asyncio.to_thread(_is_served, service, event.job_id, owner)
        else:
            send = served[event.job_id]
        if send:
            yield _message(service, event, owner)


async def _past_then_new_events(service: Service, job_id: str | None, seen: int) -> AsyncIterator[Event]:
    async with service.feed.subscribe(job_id) as subscription:
        async for event in _past_events(service, job_id, seen):
            seen = event.seq
            yield event
        while (event_or_end := await subscription.pending.get()) is not None:
            if event_or_end.seq > seen:
                seen = event_or_end.seq
                yield event_or_end


async def _past_events(service: Service, job_id: str | None, seen: int) -> AsyncIterator[Event]:
    while page := await asyncio.to_thread(service.store.events_after, seen, PAGE, job_id):
        for event in page:
            seen = event.seq
            yield event


def _message(service: Service, event: Event, owner: str | None) -> ServerSentEvent:
    """Return the event's message; it is written once for all streams that may see the same of it."""
    scope = service.keys.scope(owner)

    def write() -> ServerSentEvent:
        data = json.dumps(event_view(event, scope))
        return ServerSentEvent(raw_data=data, event=event.kind, id=str(event.seq))

    return service.feed.once(event, scope is None, write)


def _was_removed(service: Service, owner: str | None) -> bool:
    """Return whether the caller's key was taken out of the keys file while the stream was open."""
    return owner is not None and service.keys.of_owner(owner) is None


def _is_last(service: Service, event: Event) -> bool:
    """Return whether a `finished` event is the job's last: a job that was queued again has later events."""
    return not _any_of_the_run(service, event.seq, event.job_id)


def _any_of_the_run(service: Service, seen: int, job_id: str) -> bool:
    """Return whether the job has later events than those of its webhook, which follow its end."""
    return any(event.kind != "webhook" for event in service.store.events_after(seen, PAGE, job_id))


def _is_served(service: Service, job_id: str, owner: str | None) -> bool:
    try:
        visible(service, job_id, owner)
    except (NoSuchJob, JobDeleted):
        return False
    return True


def _belongs(service: Service, job_id: str, owner: str | None) -> bool:
    """Return whether the job is one of `owner`, deleted or not."""
    try:
        visible(service, job_id, owner)
    except JobDeleted:
        return True
    except NoSuchJob:
        return False
    return True


def no_more_events(_request: Request, _error: Exception) -> Response:
    """Return the response to a client that has received every event."""
    return Response(status_code=204)
