"""Lists of a long history: filters, words, and how many jobs one request looks at."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event

from app.jobs import JobSpec, JobStatus
from app.store import JobStore, Submission, queries

MakeSpec = Callable[..., JobSpec]


def add(store: JobStore, owner: str | None, spec: JobSpec) -> str:
    return store.submit(Submission(spec, b"image", spec.fingerprint(b"image"), owner=owner))[0].id


def end(store: JobStore, status: JobStatus) -> str:
    claim = store.claim("w")
    assert claim is not None
    assert store.finish(claim.job.id, claim.token, status=status)
    return claim.job.id


def ids(found: tuple[list[Any], str | None]) -> list[str]:
    return [job.id for job in found[0]]


def test_a_search_finds_every_word_in_prompt_model_or_id_whatever_its_case(
    store: JobStore, make_spec: MakeSpec
) -> None:
    boat = store.add(make_spec(prompt="Ein BOOT fährt an der Straße vorbei"), b"image").id
    pan = store.add(make_spec(prompt='100 % "slow_pan"', model="rare"), b"image").id
    assert ids(store.search(words=["boot", "STRASSE"])) == [boat]
    assert ids(store.search(words=["boot", "pan"])) == []
    assert ids(store.search(words=["RARE", "100", "%"])) == [pan]
    assert ids(store.search(words=['"slow_pan"'])) == [pan]
    assert ids(store.search(words=["negative"])) == [], "names of fields are not searched"
    assert ids(store.search(words=[boat[6:].upper()])) == [boat]
    store.delete(boat)
    assert ids(store.search(words=["boot"])) == []


def test_filters_select_by_status_model_owner_and_time(
    store: JobStore, make_spec: MakeSpec, clock: Any
) -> None:
    # Ids of a process never decrease: these times come after those of all tests before this one.
    begin = int(store.add(make_spec(), b"image").id[:12], 16) / 1000 + 0.01
    end(store, JobStatus.CANCELED)
    made = []
    for number in range(12):
        clock.now = begin + 0.01 * number
        model = ("tiny", "rare")[number % 2]
        made.append(add(store, ("anne", "ben")[number // 6], make_spec(model=model, seed=number)))
    done = [end(store, JobStatus.SUCCEEDED) for _ in range(4)]
    failed = [end(store, JobStatus.FAILED) for _ in range(3)]
    running = store.claim("w")
    assert running is not None
    assert ids(store.search(status=JobStatus.SUCCEEDED)) == done[::-1]
    assert ids(store.search(status=JobStatus.RUNNING, owner="ben")) == [running.job.id]
    assert ids(store.search(status=JobStatus.QUEUED, owner="ben", model="tiny")) == [made[10], made[8]]
    assert ids(store.search(status=JobStatus.QUEUED, owner="anne")) == []
    assert ids(store.search(status=JobStatus.QUEUED, model="rare", words=["boat"])) == [made[11], made[9]]
    assert ids(store.search(ended=True))[:7] == [*failed[::-1], *done[::-1]]
    assert ids(store.search(ended=True, owner="ben", model="tiny")) == [made[6]]
    assert ids(store.search(status=JobStatus.FAILED, owner="anne")) == [made[5], made[4]]
    assert ids(store.search(status=JobStatus.SUCCEEDED, model="rare")) == [made[3], made[1]]
    assert ids(store.search(owner="anne", model="rare")) == [made[5], made[3], made[1]]
    assert ids(store.search(since=begin + 0.09, before=begin + 0.11)) == [made[10], made[9]]
    assert ids(store.search(since=begin, before=begin + 0.02, words=["boat"])) == [made[1], made[0]]


def test_pages_of_a_search_end_where_enough_jobs_were_looked_at(
    store: JobStore, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "LOOKED_AT", 4)
    prompts = ["wanted", *["other"] * 8, "wanted", "wanted", "wanted", "other"]
    made = [
        store.add(make_spec(prompt=prompt, seed=seed), b"image").id for seed, prompt in enumerate(prompts)
    ]
    pages, after = [], None
    while True:
        jobs, after = store.search(words=["wanted"], after=after, limit=2)
        pages.append([job.id for job in jobs])
        if after is None:
            break
    assert pages == [[made[11], made[10]], [made[9]], [], [made[0]]], "a page may be short, or empty"


CASES: list[tuple[dict[str, Any], str]] = [
    ({"status": JobStatus.FAILED, "model": "rare"}, "jobs_ended_of_model"),
    ({"status": JobStatus.FAILED, "model": "rare", "words": ["boat"]}, "jobs_ended_of_model"),
    ({"status": JobStatus.SUCCEEDED, "owner": "anne"}, "jobs_ended_of_owner"),
    ({"status": JobStatus.SUCCEEDED, "owner": "anne", "model": "rare"}, "jobs_ended_of_owner"),
    ({"status": JobStatus.QUEUED, "owner": "anne"}, "jobs_of_status"),
    ({"status": JobStatus.QUEUED, "model": "rare"}, "jobs_of_status"),
    ({"status": JobStatus.RUNNING, "owner": "anne"}, "jobs_of_status"),
    ({"status": JobStatus.RUNNING, "model": "rare", "words": ["boat"]}, "jobs_of_status"),
    ({"ended": True, "owner": "anne"}, "jobs_served_of_owner"),
    ({"ended": True, "model": "rare"}, "jobs_of_model"),
]


@pytest.mark.parametrize(("wanted", "index"), CASES, ids=lambda value: str(value))
def test_each_filter_walks_along_an_index_without_sorting(
    store: JobStore, wanted: dict[str, Any], index: str
) -> None:
    asked: list[tuple[str, Any]] = []
    engine = store._database.reads
    if engine.dialect.name == "postgresql":
        return  # it chooses by the statistics of a table, which tests/bench/many_jobs.py fills
    event.listen(engine, "before_cursor_execute", lambda _c, _r, sql, values, *_: asked.append((sql, values)))
    store.search(**wanted)
    statement, values = next(one for one in asked if "order by" in one[0])
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(f"explain query plan {statement}", values).all()
    plan = "\n".join(str(row[-1]) for row in rows)
    assert index in plan, plan
    assert "TEMP B-TREE" not in plan, plan
