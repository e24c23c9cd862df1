"""Which addresses a URL that came in data may lead to: those that are somebody's in the internet, and no others."""

import pytest

from app.addresses import is_public

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "157.240.0.1",
    "2606:4700:4700::1111",
    "2a03:2880:f003:c07:face:b00c::2",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2002:808:808::1",
]
INSIDE = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",  # between a provider and its customers
    "127.0.0.1",
    "127.1.2.3",
    "169.254.169.254",  # where clouds keep their credentials
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:10.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::7f00:1",
    "64:ff9b:1::808:808",
    "100::1",
    "2001::1",  # Teredo
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2002:c0a8:101::1",
    "4000::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]
NO_ADDRESS = ["", "localhost", "2130706433", "0177.0.0.1", "0x7f.1", "127.1", "example.org", "1.1.1.1:443", "[::1]"]


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_somebodys_is_public(address: str) -> None:
    """IPv4 and IPv6, and a public IPv4 address within an IPv6 one."""
    assert is_public(address)


@pytest.mark.parametrize("address", [*INSIDE, *NO_ADDRESS])
def test_what_is_inside_or_nobodys_or_no_address_is_not(address: str) -> None:
    """However it is dressed: mapped, compatible, 6to4, NAT64; and what a resolver alone would make an address of."""
    assert not is_public(address)
