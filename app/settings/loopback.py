"""Which addresses and names are this machine's own alone."""

from __future__ import annotations

import functools
import ipaddress


@functools.lru_cache(maxsize=128)
def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_own_name(host: str) -> bool:
    """Whether a name or an address means the machine that it is used on, and none other."""
    return is_loopback(host) or host.endswith(".localhost")
