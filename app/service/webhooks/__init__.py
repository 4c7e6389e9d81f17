"""Webhooks: signed, retried notifications to other servers that a job has ended.

May import the store and the keys; knows neither routes nor SQL.

call      a URL's checks, and one POST to exactly the address that was checked
signing   each key's secret, and the signature of a message
sender    the threads that send what the outbox holds
"""

from app.service.webhooks.call import WebhookRefused, check_url, post, resolve
from app.service.webhooks.sender import Webhooks
from app.service.webhooks.signing import SigningKeys, sign

__all__ = ["SigningKeys", "WebhookRefused", "Webhooks", "check_url", "post", "resolve", "sign"]
