"""Which IP addresses are public: what a URL that came in data may lead to. It resolves nothing and connects to nothing."""

import ipaddress

# Of these the address that is really meant stands inside: as the last four bytes, or, of 6to4, behind the prefix.
_MAPPED = ipaddress.ip_network("::ffff:0:0/96")
_COMPATIBLE = ipaddress.ip_network("::/96")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.ip_network("64:ff9b:1::/48")
_SIX_TO_FOUR = ipaddress.ip_network("2002::/16")
_TEREDO = ipaddress.ip_network("2001::/32")
# The only IPv6 addresses that are given to anybody (RFC 4291, 2.4): what Python does not know of is none of them.
_GIVEN = ipaddress.ip_network("2000::/3")


def is_public(text: str) -> bool:
    """Whether an address, as a socket takes it, is somebody's in the internet; what is no address is not.

    `ipaddress.is_global` alone does not tell: it takes multicast, NAT64, IPv4 within IPv6 and site-local for global.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None or address in _NAT64_LOCAL or address in _TEREDO:
            return False
        if (inner := _within(address)) is not None:
            return is_public(str(inner))
        if address not in _GIVEN:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _within(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for, if it stands for one."""
    if address in _MAPPED or address in _COMPATIBLE or address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _SIX_TO_FOUR:
        return ipaddress.IPv4Address((int(address) >> 80) & 0xFFFFFFFF)
    return None
