"""What an IP address is: public, private, this machine, or one that is never asked for a picture."""

from __future__ import annotations

import ipaddress
from enum import StrEnum, auto
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class AddressKind(StrEnum):
    """Who may be behind an address."""

    #: Anybody on the internet.
    PUBLIC = auto()
    #: A machine of the same network: RFC 1918, RFC 6598, RFC 4193, and what is set aside for tests.
    PRIVATE = auto()
    #: The machine that asks.
    LOOPBACK = auto()
    #: The credentials of a cloud's machines, one's own link, tunnels into the version 4 network, many machines, none.
    FORBIDDEN = auto()


_FORBIDDEN_4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network; connects to this machine
            "100.100.100.200/32",  # metadata of Alibaba's cloud
            "168.63.129.16/32",  # the platform's own server within Azure; a public address
            "169.254.0.0/16",  # the link, and the metadata of most clouds
            "192.0.0.0/24",  # protocol assignments, and the metadata of Oracle's older machines
            "192.88.99.0/24",  # relays of 6to4
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and the broadcast
        ),
    )
)
_FORBIDDEN_6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/32",  # Teredo
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4
            "fd00:ec2::/32",  # metadata of Amazon's cloud
            "fd20:ce::/32",  # metadata of Google's cloud
        ),
    )
)
_LOOPBACK_4 = ipaddress.IPv4Network("127.0.0.0/8")
_LOOPBACK_6 = ipaddress.IPv6Address("::1")
#: Where public unicast addresses of version 6 lie, and private ones.
_UNICAST_6 = ipaddress.IPv6Network("2000::/3")
_PRIVATE_6 = ipaddress.IPv6Network("fc00::/7")
#: The well-known prefix of RFC 6052: the version 4 address in the last 32 bits is who answers.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: The third quarter of an ISATAP address (RFC 5214), which is followed by one of version 4.
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


def kind_of(address: Address) -> AddressKind:
    """What an address is; one of version 6 that stands for one of version 4 is what that is."""
    return _kind_of_6(address) if isinstance(address, ipaddress.IPv6Address) else _kind_of_4(address)


def _kind_of_4(address: ipaddress.IPv4Address) -> AddressKind:
    if any(address in network for network in _FORBIDDEN_4):
        return AddressKind.FORBIDDEN
    if address in _LOOPBACK_4:
        return AddressKind.LOOPBACK
    return AddressKind.PUBLIC if address.is_global else AddressKind.PRIVATE


def _kind_of_6(address: ipaddress.IPv6Address) -> AddressKind:
    if address.scope_id is not None:
        return AddressKind.FORBIDDEN
    if address.ipv4_mapped is not None:
        return _kind_of_4(address.ipv4_mapped)
    if address in _NAT64:
        return _kind_of_4(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    if address == _LOOPBACK_6:
        return AddressKind.LOOPBACK
    tunnel = (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP
    if tunnel or any(address in network for network in _FORBIDDEN_6):
        return AddressKind.FORBIDDEN
    if address in _PRIVATE_6:
        return AddressKind.PRIVATE
    # What is neither: unspecified, of the link, many machines', of no use yet, and old forms of version 4.
    if address not in _UNICAST_6:
        return AddressKind.FORBIDDEN
    return AddressKind.PUBLIC if address.is_global else AddressKind.PRIVATE
