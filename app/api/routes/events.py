"""Routes that stream server-sent events: of one job until it ends, or of every job.

Events of jobs that ended long ago are deleted. A stream from which events may be missing begins with a
message of the type `gap`, which says so. A stream ends when its key is removed or may see other jobs than
before; the client then connects anew, with the rights that it has now.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app.api.access import Caller
from app.api.dependencies import Service, TheService, visible
from app.api.fairness.clients import current_client
from app.api.feed import Subscription
from app.api.problems import Problem, documented
from app.api.views import event_view
from app.jobs import Event, Job
from app.store import JobDeleted, NoSuchJob

router = APIRouter(tags=["jobs"])
PAGE = 1000
DELETED = "deleted"
# After these kinds few events of a job follow, or none.
LAST = frozenset({"finished", "webhook", "expired", DELETED})
CHECK_SECONDS = 3.0  # the caller's key is looked at that often while no event arrives


class StreamEnded(Exception):
    """The client has received every event. The response is 204, which stops a browser from reconnecting."""


async def _place(service: TheService) -> AsyncIterator[None]:
    with service.shares.event_streams.hold(current_client()):
        yield


StreamPlace = Annotated[None, Depends(_place)]


@dataclass(frozen=True, slots=True)
class Start:
    """What a stream begins with.

    `seen` is the number after which it begins, and `last` that of the newest event. `deleted`: events up to
    that number may be missing; 0: none. `owner` is the caller, and `scope` whose jobs he may see.
    """

    seen: int
    owner: str | None
    scope: str | None
    deleted: int = 0
    last: int = 0


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
    scope = service.keys.scope(owner)
    job = visible(service, job_id, owner)
    seen = _sequence(last_event_id)
    deleted = _deleted_after(service, job_id, seen)
    if not deleted and job.status.is_terminal and seen and not _any_of_the_run(service, seen, job_id):
        raise StreamEnded
    return job, Start(seen, owner, scope, deleted)


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
            yield _message(service, event, start.scope)
        return
    async for event in _past_then_new_events(service, job.id, start):
        yield _message(service, event, start.scope)
        if event.kind == DELETED or (
            event.kind == "finished" and await asyncio.to_thread(_is_last, service, event)
        ):
            return


def _start(
    service: TheService, owner: Caller, last_event_id: Annotated[str | None, Header()] = None
) -> Start:
    # This runs before the stream starts: afterwards an error response is no longer possible.
    seen, scope = _sequence(last_event_id), service.keys.scope(owner)
    last = service.store.last_event()
    if not seen:
        return Start(last, owner, scope, last=last)
    deleted = service.store.last_retired_event()
    return Start(seen, owner, scope, deleted if deleted > seen else 0, last)


@router.get(
    "/events",
    summary="Follow every job (server-sent events)",
    response_class=EventSourceResponse,
    responses=documented(401, 422, 429, 503),
)
async def follow_all(
    service: TheService, _place: StreamPlace, start: Annotated[Start, Depends(_start)]
) -> AsyncIterator[ServerSentEvent]:
    """Stream the events of the caller's jobs from now on, or from the one after `Last-Event-ID`. An admin key
    gets those of all jobs. The stream does not end.

    A first message of the type `gap` says that events after `Last-Event-ID` were deleted
    (`FRAMEFIT_EVENT_TTL_SECONDS`).
    """
    if start.deleted:
        yield _gap(start, None)
    served = ServedJobs(service, start)
    async for event in _past_then_new_events(service, None, start):
        if await served.sends(event):
            yield _message(service, event, start.scope)


class ServedJobs:
    """Decides which events a stream of all jobs sends. Remembers jobs until they end."""

    def __init__(self, service: Service, start: Start) -> None:
        self._service = service
        self._start = start
        self._known: dict[str, bool] = {}

    def __len__(self) -> int:
        return len(self._known)

    async def sends(self, event: Event) -> bool:
        """Return whether the caller may see the event."""
        job_id, owner = event.job_id, self._start.owner
        send = self._known.pop(job_id, None)
        if event.kind == DELETED:  # the last event of its job that is sent
            return await asyncio.to_thread(_belongs, self._service, job_id, owner)
        if send is None:
            # Who may see all jobs may see those that come during the stream, as long as they are not deleted.
            is_new = event.kind == "accepted" and event.seq > self._start.last
            send = (self._start.scope is None and is_new) or await asyncio.to_thread(
                _is_served, self._service, job_id, owner
            )
        if event.kind not in LAST:
            self._known[job_id] = send
        return send


async def _past_then_new_events(service: Service, job_id: str | None, start: Start) -> AsyncIterator[Event]:
    """Yield the events after `start.seen`, until the stream must end or the caller's rights change."""
    seen = start.seen
    async with service.feed.subscribe(job_id) as subscription:
        async for event in _past_events(service, job_id, seen):
            seen = event.seq
            if _has_changed(service, start):
                return
            yield event
        while True:
            event_or_end = await _next(subscription)
            if event_or_end is None or _has_changed(service, start):
                return
            if isinstance(event_or_end, Event) and event_or_end.seq > seen:
                seen = event_or_end.seq
                yield event_or_end


async def _next(subscription: Subscription) -> Event | Literal["quiet"] | None:
    """Return the next event, None at the end of the stream, or "quiet" if none has come for some seconds."""
    if not subscription.pending.empty():
        return subscription.pending.get_nowait()
    try:
        return await asyncio.wait_for(subscription.pending.get(), CHECK_SECONDS)
    except TimeoutError:
        return "quiet"


async def _past_events(service: Service, job_id: str | None, seen: int) -> AsyncIterator[Event]:
    while page := await asyncio.to_thread(service.store.events_after, seen, PAGE, job_id):
        for event in page:
            seen = event.seq
            yield event


def _message(service: Service, event: Event, scope: str | None) -> ServerSentEvent:
    """Return the event's message; it is written once for all streams that may see the same of it."""

    def write() -> ServerSentEvent:
        data = json.dumps(event_view(event, scope))
        return ServerSentEvent(raw_data=data, event=event.kind, id=str(event.seq))

    return service.feed.once(event, scope is None, write)


def _has_changed(service: Service, start: Start) -> bool:
    """Return whether the caller's key was removed, or sees other jobs, since the stream began."""
    if start.owner is None:
        return False
    removed = service.keys.of_owner(start.owner) is None
    return removed or service.keys.scope(start.owner) != start.scope


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
