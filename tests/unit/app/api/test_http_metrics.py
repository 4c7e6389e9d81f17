"""Requests are counted by route, method and status; a path names no series."""

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from waiting import wait_for


def counted(client: TestClient) -> dict[tuple[str, str, str], float]:
    answer = wait_for(lambda: answer if (answer := client.get("/metrics")).status_code == 200 else None, 60)
    return {
        (sample.labels["route"], sample.labels["method"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name == "framefit_http_requests_total"
    }


@pytest.mark.parametrize(
    ("method", "path", "series"),
    [
        ("GET", "/jobs/0123", ("/jobs/{job_id}", "GET", "404")),
        ("DELETE", "/jobs/0123", ("/jobs/{job_id}", "DELETE", "404")),
        ("GET", "/v1/videos/abc", ("/v1/videos/{video_id}", "GET", "404")),
        ("GET", "/static/api.js", ("/static", "GET", "200")),
        ("GET", "/static/nothing", ("/static", "GET", "404")),
        ("GET", "/openapi.json", ("/openapi.json", "GET", "200")),
        ("GET", "/wp-admin/setup.php", ("unknown", "GET", "404")),
        ("BREW", "/coffee", ("unknown", "other", "404")),
        ("POST", "/generate", ("/generate", "POST", "415")),
    ],
)
def test_a_request_is_counted_under_its_routes_template(
    client: TestClient, method: str, path: str, series: tuple[str, str, str]
) -> None:
    for _ in range(2):
        client.request(method, path)
    assert counted(client)[series] == 2


def test_a_proxys_prefix_is_no_part_of_the_route(client: TestClient) -> None:
    behind = TestClient(client.app, root_path="/framefit")
    behind.get("/framefit/static/api.js")
    behind.get("/framefit/jobs/1")
    found = counted(client)
    assert found["/static", "GET", "200"] == found["/jobs/{job_id}", "GET", "404"] == 1


def test_what_a_middleware_answers_is_counted_under_the_routes_template(client: TestClient) -> None:
    series = {
        ("HEAD", "/jobs/0123"): ("/jobs/{job_id}", "HEAD", "404"),
        ("HEAD", "/static/api.js"): ("/static", "HEAD", "200"),
        ("OPTIONS", "/jobs/0123"): ("/jobs/{job_id}", "OPTIONS", "204"),
        ("GET", "/jobs/0123?unknown=1"): ("/jobs/{job_id}", "GET", "422"),
        ("PUT", "/jobs/0123"): ("/jobs/{job_id}", "PUT", "405"),
        ("POST", "/devices/cuda:0/resume?x=1"): ("/devices/{name:path}/resume", "POST", "422"),
    }
    for method, path in series:
        client.request(method, path)
    found = counted(client)
    assert [found.get(one) for one in series.values()] == [1] * len(series)


def test_what_a_middleware_refuses_is_counted(client: TestClient) -> None:
    client.post("/generate", headers={"Sec-Fetch-Site": "cross-site"})
    client.delete("/v1/videos/0123", headers={"Sec-Fetch-Site": "cross-site"})
    client.get("/jobs/0123", headers={"Host": "evil.example"})
    found = counted(client)
    assert found["/generate", "POST", "403"] == found["/v1/videos/{video_id}", "DELETE", "403"] == 1
    assert found["/jobs/{job_id}", "GET", "421"] == 1


def test_the_time_of_a_request_is_in_the_histogram_of_its_route(client: TestClient) -> None:
    client.get("/jobs")
    counted(client)
    text = client.get("/metrics").text
    assert 'framefit_http_request_duration_seconds_count{route="/jobs"} 1.0' in text
