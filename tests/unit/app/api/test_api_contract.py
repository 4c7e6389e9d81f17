"""Every answer is one that the OpenAPI document tells of: `tests/bench/fuzz_api.py`, in small."""

from pathlib import Path

from tests.bench import fuzz_api


def test_requests_made_from_the_document_get_the_answers_it_tells_of(tmp_path: Path) -> None:
    found = fuzz_api.fuzz(tmp_path, cases_per_route=12)
    assert not found.faults, "\n".join(found.faults.values())
    statuses = {status for counts in found.answers.values() for status in counts}
    assert {200, 202, 204, 400, 401, 404, 409, 410, 422} <= statuses, "some of the service was not reached"
    assert found.answers["POST /generate"][202]
    assert found.answers["POST /v1/videos"][200]
