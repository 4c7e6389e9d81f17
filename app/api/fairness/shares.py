"""What clients share, built from the settings: turns, body memory, event streams, places for heavy work."""

from concurrent.futures import ThreadPoolExecutor

from app.api.fairness.body_memory import BodyMemory
from app.api.fairness.decoding import Places
from app.api.fairness.probes import SharedAnswer
from app.api.fairness.turns import TURNS, Turns
from app.api.fairness.usage import Shares, Usage, share_of
from app.config import Settings
from app.jobs import Json
from app.media.images import LARGE_AT_ONCE
from app.service.exposition.formats import Exposition

BODIES_AT_ONCE = 8  # bodies of the largest size; thousands of typical ones fit into the same memory
# Each event is written to every stream, by one event loop.
EVENT_STREAMS = 256
FRAMES_AT_ONCE = 2  # each decodes from a key frame on, in one thread
FILES_AT_ONCE = 16  # threads that read files to send, and settle what a request of no turn asks


class ClientShares:
    """The shared parts of one API process."""

    def __init__(self, settings: Settings) -> None:
        share = settings.client_share
        usage = Usage()
        body_bytes = BODIES_AT_ONCE * settings.max_body_bytes
        self.turns = Turns(usage, share)
        self.body_memory = BodyMemory(body_bytes, max(settings.max_body_bytes, share_of(body_bytes, share)))
        self.event_streams = Shares("event streams", EVENT_STREAMS, share_of(EVENT_STREAMS, share))
        self.large_pictures = Places("large pictures", LARGE_AT_ONCE, usage, share)
        self.conversions = Places("videos in other formats", 1, usage, share)
        self.frames = Places("single frames", FRAMES_AT_ONCE, usage, share)
        self.sheets = Places("sheets of pictures", 1, usage, share)
        places = (self.large_pictures, self.conversions, self.frames, self.sheets)
        # A thread that waits for a place, or holds one after it has waited, has given its turn to another.
        self.threads = TURNS + sum(each.threads for each in places) + FILES_AT_ONCE
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="probe")
        self.readiness = SharedAnswer[tuple[bool, Json]](self._threads)
        # By the text's format: plain or OpenMetrics.
        self.exposition = {name: SharedAnswer[bytes](self._threads) for name in Exposition}

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(wait=False)
