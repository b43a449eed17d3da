"""Which hosts, ports and buckets may be asked for pictures."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cluster.remote.addresses import Address, AddressKind, Network, kind_of
from cluster.remote.urls import FetchRefusedError, PictureUrl

_RULE = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+)|([0-9A-Fa-f:.]+/[0-9]{1,3}))(?::([0-9]{1,5}))?")
_NAME = re.compile(r"(?:\*|(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)")
_BUCKET = re.compile(r"(?:s3|gs)://[a-z0-9][a-z0-9._-]{1,221}(?:/[^\s*?\[\]]*)?")
_DOWNLOAD = "Download it beside the manifest and write its path"


@dataclass(frozen=True, kw_only=True)
class HostRule:
    """Hosts named by a person: a name, all names below one, or the addresses of a network; at one port or the usual."""

    #: `files.shop.lan`, `*.shop.lan` or `*`; empty where `network` is there.
    name: str = ""
    network: Network | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> HostRule:
        """A rule as people write it: `files.shop.lan:8080`, `*.lan`, `10.1.0.0/16`, `[fd12::1]:8080`, `*`.

        Raises `ValueError`.
        """
        found = _RULE.fullmatch(text.strip().lower())
        if found is None:
            raise ValueError(f"{text[:60]!r} is no host, such as files.shop.lan:8080 or 10.1.0.0/16")
        port = int(found[4]) if found[4] else None
        if port is not None and not 0 < port < 2**16:
            raise ValueError(f"{text[:60]!r}: there is no port {port}")
        host = found[1] or found[2] or found[3]
        try:
            return cls(network=ipaddress.ip_network(host, strict=False), port=port)
        except ValueError:
            if not _NAME.fullmatch(host) or re.fullmatch(r"[0-9.]+", host):
                raise ValueError(f"{text[:60]!r} is no host, such as files.shop.lan:8080 or 10.1.0.0/16") from None
        return cls(name=host, port=port)

    def covers(self, host: str, address: Address) -> bool:
        """Whether the rule is about this host, which has this address.

        The machine itself has to be named as such: no name of somebody else's and no `*` stands for it.
        """
        own = kind_of(address) is AddressKind.LOOPBACK
        if self.network is not None:
            named = kind_of(self.network.network_address) is AddressKind.LOOPBACK
            return address in self.network and (named or not own)
        return self.names(host) and (self.name == "localhost" or not own)

    def names(self, host: str) -> bool:
        """Whether the rule's name is that of the host; a rule of addresses names none."""
        if self.name.startswith("*."):
            return host.endswith(self.name[1:])
        return self.name in ("*", host)


class FetchPolicy(BaseModel):
    """What may be asked for pictures: by default every public host at the ports 80 and 443, and no bucket."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: False: no picture is fetched.
    enabled: bool = True
    #: Names that may be asked, `*.shop.example` for all below one; empty: all.
    hosts: tuple[str, ...] = ()
    ports: tuple[Annotated[int, Field(gt=0, lt=2**16)], ...] = (80, 443)
    #: Hosts of one's own network: `files.shop.lan:8080`, `*.lan`, `10.1.0.0/16`, or `*` for all. Their addresses may be
    #: private, and a port that is named here may be asked there. Addresses of cloud metadata stay refused.
    private_hosts: tuple[str, ...] = ()
    #: Buckets that may be read, `s3://bucket` or `gs://bucket/prefix`, with this process's own credentials.
    #: None: all that those credentials can read.
    buckets: tuple[str, ...] | None = ()

    @field_validator("private_hosts")
    @classmethod
    def _rules_readable(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        for rule in rules:
            HostRule.parse(rule)
        return rules

    @field_validator("hosts")
    @classmethod
    def _names_readable(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name[:60]!r} is no name of hosts, such as shop.example or *.shop.example")
        return names

    @field_validator("buckets")
    @classmethod
    def _buckets_readable(cls, buckets: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for bucket in buckets or ():
            if not _BUCKET.fullmatch(bucket):
                raise ValueError(f"{bucket[:60]!r} is no bucket, such as s3://stills or gs://stills/2026")
        return buckets

    @property
    def rules(self) -> tuple[HostRule, ...]:
        """The rules of `private_hosts`."""
        return tuple(HostRule.parse(rule) for rule in self.private_hosts)

    def check_url(self, url: PictureUrl) -> None:
        """What can be said before the host's name is looked up. Raises `FetchRefusedError`."""
        if not self.enabled:
            raise FetchRefusedError("pictures are not fetched here", f"{_DOWNLOAD}.")
        if self.hosts and not any(HostRule(name=name).names(url.host) for name in self.hosts):
            raise FetchRefusedError(f"{url.host} is none of the hosts that are asked", f"{_DOWNLOAD}.")
        if url.port not in self.ports and not any(rule.port == url.port for rule in self.rules):
            remedy = f"Use {' or '.join(map(str, self.ports))}, or allow it: --allow-private-hosts {url.authority}."
            raise FetchRefusedError(f"port {url.port} is not asked", remedy)

    def check_address(self, host: str, port: int, address: Address) -> None:
        """Whether `host` may be asked at `port`, where it has this address. Raises `FetchRefusedError`."""
        kind = kind_of(address)
        if kind is AddressKind.FORBIDDEN:
            raise FetchRefusedError(f"{host} has the address {address}, which is never asked", f"{_DOWNLOAD}.")
        ours = [rule for rule in self.rules if rule.covers(host, address)]
        if any(port == rule.port or (rule.port is None and port in self.ports) for rule in ours):
            return
        if kind is not AddressKind.PUBLIC:
            remedy = f"If it is a host of your own: --allow-private-hosts {host}:{port}; the farm: fetch.private_hosts."
            raise FetchRefusedError(f"{host} has the address {address}, which is not public", remedy)
        if port not in self.ports:
            raise FetchRefusedError(f"port {port} of {host} is not asked", f"{_DOWNLOAD}.")

    def check_bucket(self, url: str) -> None:
        """Whether the object at `url` (`s3://bucket/key`) may be read. Raises `FetchRefusedError`."""
        if not self.enabled:
            raise FetchRefusedError("pictures are not fetched here", f"{_DOWNLOAD}.")
        allowed = self.buckets is None or any(url.startswith(one.rstrip("/") + "/") for one in self.buckets)
        if not allowed:
            remedy = "The farm reads buckets that its settings name: fetch.buckets."
            raise FetchRefusedError("this bucket is not read here", remedy)
