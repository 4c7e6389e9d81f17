"""The hub's failures in words: raised by the real client, by a hub on this machine that answers as told."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from app.models.hub import explain_hub_error, may_pass

SOURCE = "somebody/some-model"


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


class _Hub(BaseHTTPRequestHandler):
    """Answers every request with the error that its path names."""

    def do_HEAD(self) -> None:
        self.send_response(404 if "Found" in self.path or "Revision" in self.path else 403)
        self.send_header("X-Error-Code", self.path.split("/")[1])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test's output is not the place."""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("GatedRepo", "is gated: accept its licence"),
        ("RepoNotFound", f"has no {SOURCE}, or it is private"),
        ("RevisionNotFound", "has no revision 'v9'"),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_to_do(
    hub: ThreadingHTTPServer, tmp_path: Path, code: str, words: str
) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_port}/{code}"
    with pytest.raises(HfHubHTTPError) as caught:
        hf_hub_download(SOURCE, "model_index.json", revision="v9", endpoint=endpoint, cache_dir=tmp_path)
    assert words in explain_hub_error(caught.value, SOURCE, "v9")
    assert not may_pass(caught.value)


def test_an_unreachable_hub_is_distinguished_from_a_missing_model(hub: ThreadingHTTPServer) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    hub.shutdown()
    hub.server_close()
    with pytest.raises(Exception, match="refused") as caught:
        HfApi(endpoint=endpoint).model_info(SOURCE)
    wrapped = OSError("the model is not fully cached locally")  # as diffusers wraps it
    wrapped.__cause__ = caught.value
    for error in (caught.value, wrapped):
        words = explain_hub_error(error, SOURCE)
        assert "hub cannot be reached" in words
        assert "FRAMEFIT_MODELS_FILE" in words
        assert may_pass(error)


def test_offline_mode_and_full_disks_are_named() -> None:
    assert "HF_HUB_OFFLINE is set" in explain_hub_error(OfflineModeIsEnabled("no"), SOURCE)
    assert "disk is full" in explain_hub_error(OSError(28, "No space left on device"), SOURCE)


def test_anything_else_keeps_its_own_words() -> None:
    assert explain_hub_error(ValueError("no such variant: fp8"), SOURCE) == f"{SOURCE}: no such variant: fp8"
