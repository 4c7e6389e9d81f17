"""Headers of files behind addresses are read by ranges, from public hosts, and never the files themselves."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nginx_server
import pytest
from ranged_server import RangedServer, ranged_server
from sparse_weights import tensors_of, write_gguf, write_safetensors
from typer.testing import CliRunner

from app.cli import app
from app.models.files import remote
from app.models.files.header import read_header
from app.models.files.remote import RemoteFile, RemoteUnreadable

PUBLIC = "93.184.216.34"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_safetensors(tmp_path_factory.mktemp("files") / "wan.safetensors", tensors_of("wan-14b-i2v"))


@pytest.fixture
def server(weights: Path) -> Iterator[RangedServer]:
    with ranged_server(weights) as running:
        yield running


def read(server: RangedServer, path: str = "/wan.safetensors") -> RemoteFile:
    return RemoteFile(server.url + path, allow_private=True)


def test_the_header_is_that_of_the_file_and_little_is_read(server: RangedServer, weights: Path) -> None:
    assert read_header(read(server)) == read_header(weights)
    assert server.sent <= 2 * 2**20
    assert weights.stat().st_size > 25 * 2**30


def test_a_header_of_many_pieces_is_read_piece_by_piece(tmp_path: Path) -> None:
    words = write_gguf(tmp_path / "x.gguf", tensors_of("umt5-xxl", "llama.cpp"), "t5encoder", "Q8_0")
    big = write_safetensors(
        tmp_path / "big.safetensors", {f"{'x' * 500}{n}": ("F32", ()) for n in range(4000)}
    )
    for file in (words, big):
        with ranged_server(file) as server:
            assert read_header(read(server)) == read_header(file)
            assert 1 <= len(server.asked) <= 3


def test_the_command_inspects_an_address(server: RangedServer) -> None:
    url = f"{server.url}/wan_high_noise.safetensors?download=true"
    result = CliRunner().invoke(app, ["inspect", url, "--allow-private", "--gpu", "12GB"])
    assert result.exit_code == 0, result.output
    assert "Wan 2.2 14B, image to video" in result.stdout
    assert 'wan_high_noise.safetensors"\n' in result.stdout
    assert "download those of addresses into it first" in result.stdout


@pytest.mark.parametrize(
    ("manner", "reason"),
    [
        ("whole", "does not serve ranges of it: download the file"),
        ("endless", "does not serve ranges of it: download the file"),
        ("shifted", "serves another range than was asked for"),
        ("longer", "serves another range than was asked for"),
        ("nosize", "serves another range than was asked for"),
        ("packed", "serves another range than was asked for"),
        ("short", "ends after 1,048,575 of 1,048,576 bytes"),
        ("401", "answers 401: it needs a login"),
        ("403", "answers 403: it may not be read"),
        ("404", "answers 404: there is no such file"),
        ("500", "answers 500: "),
    ],
)
def test_a_host_that_serves_no_ranges_is_refused_after_its_first_bytes(
    manner: str, reason: str, server: RangedServer
) -> None:
    server.manner = manner
    with pytest.raises(RemoteUnreadable, match=reason):
        read(server)
    # What the system holds for a connection that nobody reads.
    assert server.sent < 64 * 2**20


def test_the_page_about_a_file_is_told_from_the_file(server: RangedServer) -> None:
    server.manner = "whole"
    with pytest.raises(RemoteUnreadable, match="write /resolve/ in place of /blob/"):
        read(server, "/Someone/Model/blob/main/x.safetensors")


def test_the_command_says_why_in_one_line(server: RangedServer) -> None:
    server.manner = "whole"
    result = CliRunner().invoke(app, ["inspect", f"{server.url}/x", "--allow-private"])
    assert result.exit_code == 1
    assert result.stderr == (
        f"framefit: {server.url}/x: the host does not serve ranges of it: download the file\n"
    )


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    big = write_safetensors(tmp_path / "big", {f"{'x' * 500}{n}": ("F32", ()) for n in range(4000)})
    with ranged_server(big) as server:
        server.manner = "grown"
        file = read(server)
        with pytest.raises(RemoteUnreadable, match="changed while it was read"):
            read_header(file)


def test_a_host_that_never_answers_is_left(server: RangedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 0.2)
    server.manner = "silent"
    with pytest.raises(RemoteUnreadable, match="does not answer as it should"):
        read(server)


def test_a_header_that_claims_too_many_bytes_is_refused_before_they_are_read(tmp_path: Path) -> None:
    claims = tmp_path / "claims"
    with claims.open("wb") as file:
        file.write((99_000_000).to_bytes(8, "little"))
        file.truncate(200_000_000)
    with ranged_server(claims) as server:
        file_ = read(server)
        with pytest.raises(RemoteUnreadable, match="more than 67,108,864 bytes"):
            read_header(file_)
        assert server.sent <= 2**20


def test_redirects_are_followed_five_times_and_no_more(server: RangedServer) -> None:
    assert read(server, "/hops/5/wan.safetensors").size == server.file.stat().st_size
    with pytest.raises(RemoteUnreadable, match="leads on more than 5 times"):
        read(server, "/hops/6/wan.safetensors")


def public(monkeypatch: pytest.MonkeyPatch, server: RangedServer, address: str = PUBLIC) -> list[str]:
    """Make every name resolve to a public address whose connections lead to the local server."""
    called = []
    port = int(server.url.rpartition(":")[2])

    def look_up(*_args: Any, **_more: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443))]

    def connect(to: tuple[str, int], timeout: float) -> socket.socket:
        called.append(to[0])
        raw = socket.socket()
        raw.settimeout(timeout)
        raw.connect(("127.0.0.1", port))
        return raw

    class Plain:
        def wrap_socket(self, raw: socket.socket, **_more: Any) -> socket.socket:
            return raw

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr("ssl.create_default_context", Plain)
    return called


def test_a_public_address_is_read_where_it_was_checked(
    server: RangedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = public(monkeypatch, server)
    assert RemoteFile("https://weights.example/wan.safetensors").size == server.file.stat().st_size
    assert called == [PUBLIC]


@pytest.mark.parametrize(
    ("leads_to", "reason"),
    [
        ("https://169.254.169.254/latest/meta-data", "not a public address"),
        ("https://localhost/x", "not a public address"),
        ("http://weights.example/x", "only https addresses are read"),
        ("file:///etc/passwd", "must be an http or https URL"),
        ("https://user@weights.example/x", "must not contain a user name"),
    ],
)
def test_each_redirect_is_guarded_as_the_first_address(
    leads_to: str, reason: str, server: RangedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = public(monkeypatch, server)
    with pytest.raises(RemoteUnreadable, match=reason):
        RemoteFile(f"https://weights.example/to/{leads_to}")
    assert called == [PUBLIC]


@pytest.mark.parametrize("url", ["https://127.0.0.1/x", "https://10.0.0.1/x", "https://metadata.internal/x"])
def test_addresses_inside_the_network_are_never_called(
    url: str, server: RangedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = public(monkeypatch, server)
    result = CliRunner().invoke(app, ["inspect", url])
    assert result.exit_code == 1
    assert "not a public address" in result.stderr
    assert called == []


def test_a_name_that_leads_inside_is_never_called(
    server: RangedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = public(monkeypatch, server, address="192.168.0.1")
    with pytest.raises(RemoteUnreadable, match=r"resolves to 192\.168\.0\.1, which is not public"):
        RemoteFile("https://rebound.example/x")
    assert called == []


@pytest.mark.skipif(nginx_server.OPENSSL is None, reason="openssl is not installed")
def test_a_certificate_must_be_that_of_the_host(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *(
                str(nginx_server.OPENSSL),
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ),
            *("-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    with ranged_server(weights, tls=(certificate, key)) as server:
        port = server.url.rpartition(":")[2]
        with pytest.raises(RemoteUnreadable, match="CERTIFICATE_VERIFY_FAILED"):
            RemoteFile(f"https://localhost:{port}/x", allow_private=True)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert RemoteFile(f"https://localhost:{port}/x", allow_private=True).size == weights.stat().st_size
        with pytest.raises(RemoteUnreadable, match="CERTIFICATE_VERIFY_FAILED"):
            RemoteFile(f"https://127.0.0.1:{port}/x", allow_private=True)
