"""Which addresses a stranger may send this program to: those of the public internet, and no others.

Law: the tables are written out. ``ipaddress.is_global`` follows the version of Python, and says yes to
addresses that carry an inner one within them (64:ff9b::7f00:1, 2002:7f00:1::, ::127.0.0.1; Python 3.11.7).
What a table cannot know is a public address that is inner all the same, such as the host's own, or a NAT64
prefix of the network's own (RFC 6052): those are for the network's egress rules.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address

# IANA's registries of special-purpose addresses (RFC 6890), and what clouds answer on.
_INNER_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this host, this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carrier-grade NAT; Alibaba's metadata is 100.100.100.200
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # Azure's wire server, a public address that never leaves the host
            "169.254.0.0/16",  # link-local; most clouds' metadata is 169.254.169.254
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments; Oracle's metadata is 192.0.0.192
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # relays of 6to4 (RFC 7526)
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and the broadcast address
        ),
    )
)

# Everything that was ever given out to hosts of the internet. Outside of it are loopback, IPv4 in IPv6
# (::127.0.0.1, ::ffff:127.0.0.1), NAT64 (64:ff9b::/96), unique local (fc00::/7), link-local (fe80::/10),
# site-local (fec0::/10) and multicast (ff00::/8).
_UNICAST_V6 = IPv6Network("2000::/3")
_INNER_V6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments; Teredo, which carries an IPv4 address, is 2001::/32
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, which carries an IPv4 address
            "3fff::/20",  # documentation (RFC 9637)
        ),
    )
)


def is_public_address(address: Address) -> bool:
    """Whether the address is one of the public internet: no inner one, nor one that leads to an inner one."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _INNER_V4)
    return address in _UNICAST_V6 and not any(address in network for network in _INNER_V6)
