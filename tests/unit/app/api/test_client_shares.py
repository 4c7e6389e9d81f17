"""Who goes first, who waits and who is refused, without sockets."""

import asyncio
import contextvars
import itertools
import threading
from collections.abc import Coroutine
from typing import Any

import pytest
from anyio.to_thread import current_default_thread_limiter
from starlette.testclient import TestClient
from waiting import wait_for

from app.api.fairness.body_memory import BodyMemory
from app.api.fairness.clients import client_at, current_client, serve_client
from app.api.fairness.connections import connections_within
from app.api.fairness.decoding import WAITING, Places
from app.api.fairness.probes import SharedAnswer
from app.api.fairness.shares import ClientShares
from app.api.fairness.turns import STARTS_AT_ONCE, TURNS, Turns
from app.api.fairness.usage import Usage
from app.api.problems import Problem
from app.config import Settings
from app.service.exposition.formats import Exposition


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("no address\nat all", "unknown"),
        (None, "unknown"),
    ],
)
def test_a_client_is_an_address_or_a_network_of_64_bits(host: str | None, client: str) -> None:
    assert client_at(host) == client


@pytest.mark.parametrize(
    ("files", "connections"), [(20_000, 4000), (1024, 384), (300, 22), (100, 16), (-1, 4000)]
)
def test_connections_leave_files_for_everything_else(files: int, connections: int) -> None:
    assert connections_within(files, 4000) == connections


class Turned:
    """Requests that wait for turns, and the order in which they get them."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.order: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, *clients: str) -> None:
        for client in clients:
            self._tasks.add(asyncio.create_task(self._take(client)))
        await asyncio.sleep(0)

    async def _take(self, client: str) -> None:
        await self.turns.take(client)
        self.order.append(client)

    async def end(self, client: str, seconds: float = 0.1) -> None:
        self.turns.end(client, seconds)
        for _ in range(3):
            await asyncio.sleep(0)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def test_of_a_burst_of_requests_a_few_begin_at_a_time() -> None:
    """Between them, the event loop accepts connections and answers health checks."""

    async def scenario() -> None:
        turned = Turned(Turns(Usage(), 1.0, limit=16))
        asking = asyncio.create_task(turned.ask(*map(str, range(16))))
        begun = [len(turned.order)]
        while begun[-1] < 16:
            await asyncio.sleep(0)
            begun.append(len(turned.order))
        await asking
        assert max(later - earlier for earlier, later in itertools.pairwise(begun)) <= STARTS_AT_ONCE < 16

    run(scenario())


def test_the_client_that_has_used_the_least_goes_first() -> None:
    async def scenario() -> None:
        usage = Usage(lambda: 0.0)
        turned = Turned(Turns(usage, 1.0, limit=1))
        await turned.ask("greedy")
        await turned.ask("greedy", "greedy", "greedy", "modest")
        await turned.end("greedy", 5.0)
        assert turned.order == ["greedy", "modest"]
        await turned.end("modest", 1.0)
        assert turned.order == ["greedy", "modest", "greedy"]

    run(scenario())


def test_a_request_that_submits_a_job_goes_before_reads_of_clients_that_have_used_less() -> None:
    async def scenario() -> None:
        usage = Usage(lambda: 0.0)
        turns = Turns(usage, 1.0, limit=1)
        await turns.take("poster")
        reads = [asyncio.create_task(turns.take(f"reader-{number}")) for number in range(20)]
        post = asyncio.create_task(turns.take("poster", submits=True))
        await asyncio.sleep(0)
        turns.end("poster", 9.0)
        await post
        assert not any(read.done() for read in reads)
        for read in reads:
            read.cancel()

    run(scenario())


def test_a_client_has_its_share_of_the_turns_even_if_the_others_are_free() -> None:
    async def scenario() -> None:
        turned = Turned(Turns(Usage(), 0.5, limit=4))
        await turned.ask("one", "one", "one", "two")
        assert turned.order == ["one", "one", "two"]
        await turned.end("one")
        assert turned.order == ["one", "one", "two", "one"]

    run(scenario())


def test_the_refusal_of_a_client_with_too_many_waiting_requests_has_the_number() -> None:
    async def scenario() -> None:
        turned = Turned(Turns(Usage(), 0.5, limit=2, waiting=4))
        await turned.ask("one", "one", "one")
        with pytest.raises(Problem) as refusal:
            await turned.turns.take("one")
        problem = refusal.value
        assert (problem.status, problem.code) == (429, "client_share_reached")
        assert problem.data == {"resource": "waiting requests", "used": 2, "limit": 2}

    run(scenario())


def test_if_all_places_are_taken_the_client_with_most_gives_one_up() -> None:
    async def scenario() -> None:
        turns = Turns(Usage(), 1.0, limit=1, waiting=2)
        await turns.take("one")
        waiting = [asyncio.create_task(turns.take("one")) for _ in range(2)]
        await asyncio.sleep(0)
        other = asyncio.create_task(turns.take("two"))
        await asyncio.sleep(0)
        with pytest.raises(Problem) as refusal:
            await waiting[1]
        assert (refusal.value.status, refusal.value.code) == (503, "busy")
        turns.end("one", 1.0)
        await other
        turns.end("two", 0.1)
        await waiting[0]

    run(scenario())


def test_a_request_that_is_given_up_frees_its_place_and_its_turn() -> None:
    async def scenario() -> None:
        turns = Turns(Usage(), 1.0, limit=1)
        await turns.take("one")
        waiting = asyncio.create_task(turns.take("two"))
        await asyncio.sleep(0)
        turns.end("one", 0.1)  # its turn comes in the same moment
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (turns.running, turns.waiting) == (0, 0)
        await turns.take("three")

    run(scenario())


def test_bodies_share_a_bounded_memory() -> None:
    memory = BodyMemory(100)
    with memory.share("one") as first:
        first.take(60)
        with memory.share("two") as second, pytest.raises(Problem) as refusal:
            second.take(41)
        assert (refusal.value.status, refusal.value.code) == (503, "busy")
    with memory.share("two") as third:
        third.take(100)
    assert memory.taken_bytes == 0


def test_a_client_has_its_share_of_the_memory_of_bodies() -> None:
    memory = BodyMemory(100, 50)
    with memory.share("one") as first, memory.share("one") as second:
        first.take(40)
        with pytest.raises(Problem) as refusal:
            second.take(20)
    assert (refusal.value.status, refusal.value.code) == (429, "client_share_reached")
    assert refusal.value.data == {"resource": "bytes of request bodies", "used": 60, "limit": 50}


def test_places_go_to_the_client_that_has_used_the_least() -> None:
    usage = Usage(lambda: 0.0)
    usage.charge("greedy", 5.0)
    places = Places("pictures", 1, usage, 1.0)
    order: list[str] = []

    def work() -> None:
        with places.hold():
            order.append(current_client())

    def started(client: str, waiting: int) -> threading.Thread:
        context = contextvars.copy_context()
        context.run(serve_client, client)
        thread = threading.Thread(target=context.run, args=(work,))
        thread.start()
        wait_for(lambda: places.waiting == waiting, 60)
        return thread

    with places.hold():
        threads = [started(client, number) for number, client in enumerate(("greedy", "greedy", "modest"), 1)]
    for thread in threads:
        thread.join()
    assert order == ["modest", "greedy", "greedy"]


def test_two_clients_that_wait_for_places_of_every_kind_leave_threads_for_all_turns(
    client: TestClient,
) -> None:
    shares: ClientShares = client.app.state.service.shares  # type: ignore[attr-defined]
    kinds = [each for each in vars(shares).values() if isinstance(each, Places)]
    assert client.portal is not None
    allowed = client.portal.call(lambda: current_default_thread_limiter().total_tokens)
    is_over = threading.Event()
    threads: list[threading.Thread] = []

    def wait(name: str, kind: Places) -> None:
        serve_client(name)
        with kind.hold():
            is_over.wait()

    try:
        for kind in kinds:
            # One more than may wait: the first one has a place.
            for name in ("a", *"ab" * (WAITING // 2)):
                thread = threading.Thread(target=contextvars.Context().run, args=(wait, name, kind))
                thread.start()
                threads.append(thread)
        wait_for(lambda: all(kind.waiting >= WAITING - 1 for kind in kinds), 60)
        assert allowed >= len(threads) + TURNS
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def test_an_answer_is_computed_once_for_all_that_asked_before_it_began(settings: Settings) -> None:
    async def scenario() -> None:
        shares = ClientShares(settings)
        answer: SharedAnswer[bytes] = shares.exposition[Exposition.PLAIN]
        computed: list[int] = []
        begun, may_end = threading.Event(), threading.Event()

        def compute() -> bytes:
            computed.append(1)
            begun.set()
            may_end.wait(60)
            return b"x"

        first = asyncio.create_task(answer.get(compute))
        await asyncio.to_thread(begun.wait, 60)
        rest = [asyncio.create_task(answer.get(compute)) for _ in range(50)]
        await asyncio.sleep(0)
        may_end.set()
        assert set(await asyncio.gather(first, *rest)) == {b"x"}
        assert len(computed) == 2
        shares.close()

    run(scenario())
