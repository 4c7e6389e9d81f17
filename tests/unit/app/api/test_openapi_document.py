"""What the OpenAPI document says beside the routes: ids, keys, names of schemas, error codes."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.api.documents import served
from app.api.documents.error_codes import documented
from app.api.documents.openapi_30 import in_version_30

OPEN_TO_ALL = {"healthz", "open_session", "close_session"}


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(path, each) for path, methods in document["paths"].items() for each in methods.values()]


def test_operation_ids_are_names_and_each_is_there_once(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    assert {"generate", "get_job", "list_jobs", "openai_create"} <= set(ids)
    assert all(each.isidentifier() and each.islower() for each in ids)


def test_every_operation_that_asks_for_a_key_says_so(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    assert {scheme["type"] for scheme in schemes.values()} == {"http", "apiKey"}
    for path, operation in operations(document):
        asked = {name for each in operation.get("security", ()) for name in each}
        assert asked == (set() if operation["operationId"] in OPEN_TO_ALL else set(schemes)), path
        if asked:
            assert {"401", "429"} <= operation["responses"].keys(), path


def test_the_parts_of_a_job_are_described_by_name(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    parts = {"plan": "DecodePlan", "denoise": "Denoise", "decode": "Decode", "result": "Result"}
    for part, name in {**parts, "webhook": "Webhook", "error": "JobError"}.items():
        reference = {"$ref": f"#/components/schemas/{name}"}
        assert reference in schemas["Job"]["properties"][part]["anyOf"]
        assert len(schemas[name]["properties"]) > 1
    answer = document["paths"]["/jobs/{job_id}"]["get"]["responses"]["200"]
    assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Job"}


@pytest.mark.parametrize(("schema", "kind"), [("ErrorCode", "request"), ("JobErrorCode", "job")])
def test_every_error_code_is_there_with_its_meaning_and_remedy(
    document: dict[str, Any], schema: str, kind: Any
) -> None:
    told = document["components"]["schemas"][schema]
    listed = {row["code"]: (row["meaning"], row["remedy"]) for row in told["x-error-codes"]}
    assert listed == {row.code: (row.meaning, row.action) for row in documented(kind)}
    assert all(f"`{code}`" in told["description"] for code in listed)
    referring = {"ErrorCode": "Problem", "JobErrorCode": "JobError"}[schema]
    properties = document["components"]["schemas"][referring]["properties"]
    assert properties["code"] == {"$ref": f"#/components/schemas/{schema}"}


@pytest.mark.parametrize(
    ("newest", "older"),
    [
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"type": "string", "nullable": True}),
        (
            {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}], "default": 1},
            {"anyOf": [{"type": "string"}, {"type": "integer"}], "default": 1, "nullable": True},
        ),
        (
            {"anyOf": [{"$ref": "#/a"}, {"type": "null"}]},
            {"allOf": [{"$ref": "#/a"}], "nullable": True},
        ),
        ({"exclusiveMinimum": 3}, {"minimum": 3, "exclusiveMinimum": True}),
        ({"const": "a"}, {"enum": ["a"]}),
        ({"examples": ["a", "b"]}, {"example": "a"}),
        ({"properties": {"const": {"const": 1}}}, {"properties": {"const": {"enum": [1]}}}),
    ],
)
def test_a_schema_means_the_same_in_version_3_0(newest: dict[str, Any], older: dict[str, Any]) -> None:
    document = {"openapi": "3.1.0", "info": {"title": "x", "summary": "y"}, "schema": newest}
    assert in_version_30(document) == {"openapi": "3.0.3", "info": {"title": "x"}, "schema": older}


def test_the_documents_are_built_and_encoded_once_and_never_in_the_event_loop(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    large: list[bool] = []

    def noting(one: dict[str, Any], encode: Any = served.encoded) -> bytes:
        if "paths" in one:
            with suppress(RuntimeError):
                asyncio.get_running_loop()
                large.append(True)
            large.append(False)
        body: bytes = encode(one)
        return body

    monkeypatch.setattr(served, "encoded", noting)
    behind = TestClient(client.app, root_path="/framefit")
    for _ in range(2):
        plain, under = client.get("/openapi.json"), behind.get("/framefit/openapi.json")
        assert plain.headers["content-type"] == "application/json"
        assert under.json() == {**plain.json(), "servers": [{"url": "/framefit"}]}
        shown, shown_under = client.get("/docs/openapi.json"), behind.get("/framefit/docs/openapi.json")
        assert shown.json()["servers"] == [{"url": "/"}]
        assert shown_under.json() == {**shown.json(), "servers": [{"url": "/framefit/"}]}
        assert shown.json()["openapi"] == "3.0.3"
    assert large == [False, False]
