"""A real nginx as a child of the test, in a folder of its own, with the documentation's server block."""

import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from waiting import wait_for

PAGE = Path(__file__).parents[1] / "docs" / "proxy.md"
# Debian's folder is not in the path of every user.
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
OPENSSL = shutil.which("openssl")
MISSING = "nginx or openssl is not installed" if None in (NGINX, OPENSSL) else None
MAIN = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
{server}
}}
"""


def documented_server() -> str:
    """The server block of the documentation."""
    found = re.search(r"^```nginx\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert found, f"{PAGE} has no block of nginx's configuration"
    return found[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def nginx(folder: Path, upstream: str, changes: Mapping[str, str] = {}) -> Iterator[str]:
    """Run nginx before the service at `upstream`; gives its address without the prefix.

    `changes` replaces parts of the documented block.
    """
    assert NGINX is not None
    folder.mkdir(parents=True, exist_ok=True)
    certificate, key = _self_signed(folder)
    port = free_port()
    server = documented_server()
    local = {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "/etc/ssl/certs/video.example.org.pem": str(certificate),
        "/etc/ssl/private/video.example.org.key": str(key),
        "http://127.0.0.1:8000": upstream,
    }
    for old, new in {**local, **changes}.items():
        assert old in server, f"the documented block has no {old!r}"
        server = server.replace(old, new)
    (folder / "nginx.conf").write_text(MAIN.format(server=server))
    log = folder / "nginx.log"
    command = [NGINX, "-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        wait_for(lambda: _listens(port, process), 120, lambda: log.read_text(errors="replace"))
        yield f"{'https' if ' ssl' in server else 'http'}://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(port: int, process: "subprocess.Popen[bytes]") -> bool:
    assert process.poll() is None, "nginx has ended"
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _self_signed(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "cert.pem", folder / "key.pem"
    assert OPENSSL is not None
    subprocess.run(
        [
            *(OPENSSL, "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key
