"""Which names the service answers to, and whose pages may change something. Decides; sends nothing.

A site can point its own name at this machine after its page was loaded (DNS rebinding). For the browser, the
page and the service are then one site, and only the `Host` header shows it. An IP address in that header is
never such a name, because no DNS server was asked for it.

Browsers send `Sec-Fetch-Site` to trustworthy addresses only (TLS, loopback). To plain HTTP in a local network
they send `Origin` alone.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.types import Scope

from app.api.problems import Problem
from app.config import Settings

ALLOWED_HOSTS = "FRAMEFIT_ALLOWED_HOSTS"
# Hosts that a trusted proxy says it was asked for; `app.api.middleware.proxy` puts them into the scope.
FORWARDED_HOSTS = "framefit.forwarded_hosts"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(?::([0-9]{0,5}))?")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Authority(NamedTuple):
    """A host in lower case, without brackets and the dot at its end, and a port if one is given."""

    name: str
    port: int | None

    @property
    def is_address(self) -> bool:
        """Whether the host is an IP address."""
        try:
            ipaddress.ip_address(self.name)
        except ValueError:
            return False
        return True


def authority_of(text: str) -> Authority | None:
    """Return the parts of `host` or `host:port`; None if it is neither."""
    match = _AUTHORITY.fullmatch(text.strip())
    if match is None:
        return None
    name, port = match[1].strip("[]").lower().removesuffix("."), match[2]
    try:
        name = ipaddress.ip_address(name).compressed
    except ValueError:
        if match[1].startswith("["):
            return None
    return Authority(name, int(port) if port else None)


class OwnHosts:
    """The names that the service answers to."""

    def __init__(self, names: Iterable[str]) -> None:
        lowered = {name.lower() for name in names}
        self._any = "*" in lowered
        self._suffixes = tuple(name[1:] for name in lowered if name.startswith("*."))
        self._names = lowered

    @classmethod
    def of(cls, settings: Settings) -> "OwnHosts":
        """Return the names of the loopback device and of this machine, and those that the settings allow.

        The machine's full domain name is not asked of the DNS: whoever answers could give it any name.
        """
        machine = socket.gethostname()
        short = machine.partition(".")[0]
        own = {"localhost", "*.localhost", machine, short, f"{short}.local", settings.host}
        return cls(own | set(settings.allowed_hosts))

    def refusal(self, scope: Scope) -> Problem | None:
        """Return the problem of a request that asks for another host, or None.

        Browsers always send a host. A request without one comes from another program.
        """
        asked = Headers(scope=scope).get("host", "")
        for host in (asked, *scope.get(FORWARDED_HOSTS, ())):
            if host and not self._answers_to(host, scope):
                message = (
                    f"this service does not answer to the name {host[:100]!r}: if it is yours, add it to "
                )
                data = {"host": host[:255], "setting": ALLOWED_HOSTS}
                return Problem(421, "host_not_allowed", message + ALLOWED_HOSTS, data=data)
        return None

    def _answers_to(self, host: str, scope: Scope) -> bool:
        if self._any:
            return True
        authority = authority_of(host)
        if authority is None:
            return False
        name = authority.name
        bound = (scope.get("server") or ("",))[0]
        return name in self._names or name.endswith(self._suffixes) or authority.is_address or name == bound


def origin_refusal(scope: Scope) -> Problem | None:
    """Return the problem of a request by which another site's page may change something, or None.

    Only browsers send the two headers. A page's origin is scheme, host and port; in a sandbox it is `null`.
    If a trusted proxy says which host it was asked for, the page must be of that host: `Host` is then only
    the proxy's name for this service.
    """
    headers = Headers(scope=scope)
    if scope["method"] in SAFE_METHODS:
        return None
    if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return Problem(403, "cross_site", "a page of another site may only read: use Framefit's own page")
    origin = headers.get("origin")
    own = scope.get(FORWARDED_HOSTS) or [headers.get("host", "")]
    if origin is None or any(_is_same(origin, host, scope["scheme"]) for host in own):
        return None
    message = (
        f"a page of another site may only read: the request comes from a page of {origin[:100]!r} and "
        f"asks for {own[-1][:100]!r}. Behind a proxy, pass the Host header on, or send X-Forwarded-Host"
    )
    return Problem(403, "cross_site", message, data={"origin": origin[:255], "host": own[-1][:255]})


def _is_same(origin: str, host: str, scheme: str) -> bool:
    """Return whether a page's origin is the host that the request asks for.

    Without a port on either side, it is that of the origin's scheme. A proxy may speak TLS and not say so; a
    page without TLS is another site than a service with it.
    """
    page_scheme, _, rest = origin.partition("://")
    page, asked = authority_of(rest), authority_of(host)
    if page_scheme not in _DEFAULT_PORTS or page is None or asked is None:
        return False
    default = _DEFAULT_PORTS[page_scheme]
    same = (page.name, page.port or default) == (asked.name, asked.port or default)
    return same and not (scheme == "https" and page_scheme == "http")
