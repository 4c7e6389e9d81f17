"""The networks that no outgoing connection may reach, written out, so that no version of Python decides it.

The tables are those of IANA's registries of special-purpose addresses, all entries, also those that a router
may forward: none of them is the address of somebody's server. Deprecated forms and multicast are added.

- https://www.iana.org/assignments/iana-ipv4-special-registry
- https://www.iana.org/assignments/iana-ipv6-special-registry

An IPv6 address may carry an IPv4 address, to which a translator or tunnel passes the packet on. Such an
address is public only if the carried one is, too.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address

IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by carriers
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local; the metadata of clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments, DS-Lite, NAT64 discovery, PCP and TURN anycast
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112 delegation
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and limited broadcast
    )
)
# All unicast addresses of the Internet lie here (RFC 4291). Others are refused unless they carry IPv4.
GLOBAL_UNICAST = IPv6Network("2000::/3")
IPV6 = tuple(
    IPv6Network(network)
    for network in (
        "::/128",  # unspecified
        "::1/128",  # loopback
        "64:ff9b:1::/48",  # local translation to IPv4: where the address lies within is the operator's choice
        "100::/64",  # discard
        "100:0:0:1::/64",  # dummy prefix
        "2001:1::/32",  # PCP, TURN and DNS-SD anycast
        "2001:2::/48",  # benchmarks
        "2001:3::/32",  # AMT
        "2001:4:112::/48",  # AS112
        "2001:10::/28",  # ORCHID, deprecated
        "2001:20::/28",  # ORCHIDv2
        "2001:30::/28",  # remote identification of drones
        "2001:db8::/32",  # documentation
        "2620:4f:8000::/48",  # AS112 delegation
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fc00::/7",  # unique local
        "fe80::/10",  # link-local
        "fec0::/10",  # site-local, deprecated
        "ff00::/8",  # multicast
    )
)
PROTOCOL_ASSIGNMENTS = IPv6Network("2001::/23")
TEREDO = IPv6Network("2001::/32")
SIX_TO_FOUR = IPv6Network("2002::/16")
# The last 32 bits are the IPv4 address.
WITH_IPV4_AT_THE_END = tuple(
    IPv6Network(network)
    for network in (
        "::/96",  # IPv4-compatible, deprecated
        "::ffff:0:0/96",  # IPv4-mapped
        "::ffff:0:0:0/96",  # IPv4-translated (RFC 2765)
        "64:ff9b::/96",  # NAT64
    )
)
# Interface identifiers of ISATAP (RFC 5214), before the 32 bits of the IPv4 address.
ISATAP = frozenset({0x00005EFE, 0x02005EFE})
LOW_32 = 2**32 - 1


def is_public(address: Address) -> bool:
    """Return whether the address, and every IPv4 address that it carries, is one of the public Internet."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in IPV4)
    plain = IPv6Address(int(address))  # without the zone of a link
    if any(plain in network for network in IPV6):
        return False
    carried = list(_carried(plain))
    if plain in PROTOCOL_ASSIGNMENTS and plain not in TEREDO:
        return False
    return (plain in GLOBAL_UNICAST or bool(carried)) and all(is_public(inner) for inner in carried)


def _carried(address: IPv6Address) -> Iterator[IPv4Address]:
    """Yield the IPv4 addresses within an IPv6 address."""
    bits = int(address)
    if any(address in network for network in WITH_IPV4_AT_THE_END):
        yield IPv4Address(bits & LOW_32)
    if address in SIX_TO_FOUR:
        yield IPv4Address(bits >> 80 & LOW_32)
    if address in TEREDO:
        yield IPv4Address(bits >> 64 & LOW_32)  # the server
        yield IPv4Address(~bits & LOW_32)  # the client, with its bits inverted
    if bits >> 32 & LOW_32 in ISATAP:
        yield IPv4Address(bits & LOW_32)
