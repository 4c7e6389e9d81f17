"""The threads that send webhooks from the outbox. Knows neither routes nor SQL."""

import json
import logging
import time
from collections.abc import Callable, Sequence

from app.jobs import Json
from app.loops import Loop, start_all, stop_all
from app.service.webhooks import call
from app.service.webhooks.call import WebhookRefused, post
from app.service.webhooks.signing import SigningKeys, sign
from app.store import JobStore, NoSuchJob, StoreError
from app.store.deliveries import Attempt, Delivery

log = logging.getLogger(__name__)
IDLE_SECONDS = 1.0
AT_ONCE = 8
SILENT_SECONDS = 120.0  # a turn may wait for several of a receiver's answers
# Seconds at first, then hours: a receiver that is down for a night still gets its notifications.
RETRY_SECONDS = (5.0, 30.0, 120.0, 600.0, 1800.0, 7200.0, 21600.0)


class Webhooks:
    """The threads that send the deliveries of the outbox. Several, so a slow receiver delays few others."""

    def __init__(
        self, store: JobStore, keys: SigningKeys, view: Callable[[str], Json], *, allow_private: bool
    ) -> None:
        """`view` returns the JSON of a job by its id."""
        self._store = store
        self._keys = keys
        self._view = view
        self._allow_private = allow_private
        self.loops = tuple(
            Loop(
                f"webhooks-{number}",
                self._turn,
                every_seconds=IDLE_SECONDS,
                silent_seconds=SILENT_SECONDS,
                known=(StoreError,),
            )
            for number in range(AT_ONCE)
        )

    def start(self) -> None:
        """Start the threads."""
        start_all(self.loops)

    def stop(self) -> None:
        """Stop the threads after their current deliveries; the others stay in the outbox."""
        stop_all(self.loops, 2 * call.TIMEOUT_SECONDS)

    def _turn(self) -> bool:
        delivery = self._store.take_delivery()
        if delivery is None:
            return False
        self._store.settle_delivery(delivery.id, self.deliver(delivery))
        return True

    def deliver(self, delivery: Delivery) -> Attempt:
        """Make one attempt; return how it went and when the next one is due, if there will be one."""
        try:
            job = self._view(delivery.job_id)
        except NoSuchJob:
            return Attempt(f"there is no job {delivery.job_id} any more")
        secrets = self._keys.of(delivery.owner)
        if not secrets:
            return self._failed(delivery, "the job's API key was removed", last=True)
        try:
            status = self._post(delivery, job, secrets)
        except WebhookRefused as error:
            log.warning("webhook_refused job_id=%s code=%s", delivery.job_id, error.code)
            if error.code != "webhook_host_unknown":
                # The client must not learn which addresses a name has inside the operator's network.
                return self._failed(delivery, "the URL leads to an address that is not public", last=True)
            return self._failed(delivery, "the host of the URL cannot be looked up")
        except OSError as error:
            return self._failed(delivery, f"no answer: {error}")
        except Exception as error:  # a bug of ours must not keep the delivery in the outbox for ever
            log.exception("webhook_not_sent job_id=%s", delivery.job_id)
            return self._failed(delivery, f"the message could not be sent: {type(error).__name__}")
        if 200 <= status < 300:
            return Attempt()
        return self._failed(delivery, f"the receiver answered {status}")

    def _post(self, delivery: Delivery, job: Json, secrets: Sequence[bytes]) -> int:
        message_id, timestamp = f"{delivery.job_id}-{delivery.id}", int(time.time())
        body = json.dumps({"type": f"job.{delivery.outcome}", "timestamp": timestamp, "data": job}).encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "framefit",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(sign(each, message_id, timestamp, body) for each in secrets),
        }
        return post(delivery.url, body, headers, allow_private=self._allow_private)

    def _failed(self, delivery: Delivery, error: str, *, last: bool = False) -> Attempt:
        retry_seconds = None if last else _retry_delay(delivery.attempts)
        told = (delivery.job_id, delivery.attempts, error)
        if retry_seconds is None:
            log.warning("webhook_given_up job_id=%s attempt=%d reason=%s", *told)
        else:
            log.info("webhook_failed job_id=%s attempt=%d reason=%s", *told)
        return Attempt(error, retry_seconds)


def _retry_delay(attempts: int) -> float | None:
    return RETRY_SECONDS[attempts - 1] if attempts <= len(RETRY_SECONDS) else None
