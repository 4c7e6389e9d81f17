"""PostgreSQL: claims and heartbeats, one statement each, which its driver runs itself."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import make_url, text

from app.jobs import JobSpec
from app.store import JobStore, StoreUnavailable, Submission, claims
from app.store.roles.parts import Share
from app.store.transaction import Transaction

IMAGE = b"\xff\xd8 a picture"
MakeSpec = Callable[..., JobSpec]
OpenStore = Callable[..., JobStore]


@pytest.fixture
def database_url(empty_postgres: str) -> str:
    """On a slow machine an open transaction may wait for longer than the service would allow."""
    patient = {"options": "-c idle_in_transaction_session_timeout=0"}
    return make_url(empty_postgres).update_query_dict(patient).render_as_string(hide_password=False)


@pytest.mark.parametrize("place", ["head", "few", "anywhere"])
def test_a_claim_keeps_no_job_but_its_own_from_others(
    open_store: OpenStore, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    slow, quick = open_store(), open_store()
    jobs = [slow.add(make_spec(), IMAGE).id for _ in range(4)]
    head, at_place = (("head", Share.ALL), (place, Share.ALL))
    monkeypatch.setitem(claims._CLAIM_AT_ONCE, head, claims._CLAIM_AT_ONCE[at_place])
    claimed, leave = threading.Event(), threading.Event()

    def hesitate(tx: Transaction) -> None:
        claims.claim(tx, "slow", models=["tiny"])
        claimed.set()
        assert leave.wait(120)

    hesitating = threading.Thread(target=slow._database.run, args=(hesitate,))
    hesitating.start()
    assert claimed.wait(120)
    found = [quick.claim("quick", models=["tiny"]) for _ in jobs]
    leave.set()
    hesitating.join(120)
    assert [claim and claim.job.id for claim in found] == [*jobs[1:], None]
    assert slow.get(jobs[0]).worker_id == "slow"


def test_workers_of_two_models_that_claim_at_once_get_each_job_once(
    open_store: OpenStore, make_spec: MakeSpec
) -> None:
    stores = [open_store() for _ in range(4)]
    specs = [make_spec(model="large" if n % 3 else "tiny") for n in range(60)]
    added = stores[0].submit_all([Submission(s, IMAGE, s.fingerprint(IMAGE)) for s in specs])
    together = threading.Barrier(len(stores))

    def claim_all(number: int) -> list[tuple[str, int]]:
        together.wait(120)
        found = []
        loaded = "large" if number % 2 else "tiny"
        while claim := stores[number].claim(f"w{number}", loaded_model=loaded):
            found.append((claim.job.id, claim.token))
        return found

    with ThreadPoolExecutor(len(stores)) as pool:
        found = [one for many in pool.map(claim_all, range(len(stores))) for one in many]
    assert sorted(found) == sorted((job.id, 1) for job, _ in added)
    claimed = [event.job_id for event in stores[0].events_after(0, 1000) if event.kind == "claimed"]
    assert sorted(claimed) == sorted(job.id for job, _ in added)


def test_a_server_that_ended_every_session_fails_one_call_and_the_next_succeeds(
    open_store: OpenStore, make_spec: MakeSpec
) -> None:
    store = open_store()
    for _ in range(3):
        store.add(make_spec(), IMAGE)
    end_all = text(
        "select pg_terminate_backend(pid, 30000) from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid()"
    )
    for call in (lambda: store.claim("w"), lambda: store.heartbeat("w", device={"name": "cpu"})):
        call()
        with store._database.writes.connect() as connection:
            connection.execute(end_all)
        with pytest.raises(StoreUnavailable, match="terminat"):
            call()
        call()
    assert [worker.id for worker in store.workers()] == ["w"]


def test_a_claim_is_on_the_disk_when_the_worker_hears_of_it_and_a_heartbeat_need_not_be(
    open_store: OpenStore, make_spec: MakeSpec
) -> None:
    store = open_store()
    store.add(make_spec(), IMAGE)
    store.register_worker("w", {"name": "cpu"})
    with store._database.writes.begin() as connection:
        connection.exec_driver_sql("create table commits (of text, waits text)")
        connection.exec_driver_sql("""
            create function note_commit() returns trigger language plpgsql as $$ begin
                insert into commits values (tg_table_name, current_setting('synchronous_commit'));
                return null;
            end $$
        """)
        for table in ("jobs", "workers"):  # run at the commit
            connection.exec_driver_sql(
                f"create constraint trigger noted after update on {table} initially deferred "
                "for each row execute function note_commit()"
            )
    assert store.claim("w") is not None
    store.heartbeat("w", device={"name": "cpu"})
    store.add(make_spec(), IMAGE)
    assert store.claim("w") is not None
    with store._database.reading() as connection:
        noted = [tuple(row) for row in connection.execute(text("select * from commits"))]
    assert noted == [("jobs", "on"), ("workers", "off"), ("jobs", "on")]


def test_the_server_plans_claims_and_heartbeats_once(open_store: OpenStore, make_spec: MakeSpec) -> None:
    store = open_store()
    for _ in range(12):
        store.add(make_spec(), IMAGE)
        store.heartbeat("w", device={"name": "cpu"})
        assert store.claim("w", models=["tiny"], loaded_model="tiny", capacity_bytes=100) is not None

    def plans(tx: Transaction) -> dict[str, int]:
        query = "select statement, generic_plans, custom_plans from pg_prepared_statements"
        rows = tx.execute(text(query)).all()
        assert not any(row.custom_plans for row in rows)
        return {row.statement: row.generic_plans for row in rows}

    found = store._database.run_statement(plans)
    assert found[claims._CLAIM_AT_ONCE["head", Share.ALL].sql] == 12
    assert sum("update workers" in statement for statement in found) == 1


def test_a_claim_writes_no_count_and_into_no_index_of_the_queue(
    open_store: OpenStore, make_spec: MakeSpec
) -> None:
    store = open_store()
    store.add(make_spec(), IMAGE)
    counts = text("select xmin, status, jobs from job_counts")
    indexes = text("""
        select indexname from pg_indexes
        where tablename = 'jobs' and indexdef like '%rank%' and indexdef not like '%WHERE%queued%'
    """)
    with store._database.reading() as connection:
        before = [tuple(map(str, row)) for row in connection.execute(counts)]
        assert store.claim("w") is not None
        assert [tuple(map(str, row)) for row in connection.execute(counts)] == before
        assert connection.execute(indexes).all() == []
