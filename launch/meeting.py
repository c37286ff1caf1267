"""At which address the ranks meet."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping


def master_address(wanted: str | None, first: str, found: Mapping[str, str]) -> tuple[str, str]:
    """Where the ranks meet.

    Args:
        wanted: --master-addr.
        first: name of the first host.
        found: its addresses by interface.

    Returns:
        The address, and the network of its interface (`10.0.0.1/24`), or "" when it is not one of `found`.

    Raises:
        ValueError: the first host has none or several and none was chosen, or the chosen one is not its own.
    """
    listing = ", ".join(f"{address.partition('/')[0]} ({interface})" for interface, address in found.items())
    if wanted is None:
        if len(found) != 1:
            raise ValueError(
                f"{first} has {listing or 'no address but the loopback'}; say with --master-addr on which one the ranks shall meet"
            )
        (network,) = found.values()
        return network.partition("/")[0], network
    try:
        resolved = {str(entry[4][0]) for entry in socket.getaddrinfo(wanted, None)}
    except OSError as error:
        raise ValueError(f"--master-addr {wanted} does not resolve: {error}") from error
    own = [network for network in found.values() if network.partition("/")[0] in resolved]
    if not own:
        raise ValueError(
            f"--master-addr {wanted} is not an address of the first host {first}, which has {listing or 'none'}"
        )
    return wanted, own[0]


def next_address(host: str, found: Mapping[str, str], network: str) -> tuple[str, str]:
    """Where the ranks meet when a job goes on without its first host: at the new first one, on the same network.

    Args:
        host: name of the new first host.
        found: its addresses by interface.
        network: that on which the ranks met before, `10.0.0.1/24`.

    Returns:
        The address, and the network of its interface.

    Raises:
        ValueError: the host has no address or several on that network.
    """
    before = ipaddress.ip_interface(network).network
    same = [own for own in found.values() if ipaddress.ip_interface(own).ip in before]
    if len(same) != 1:
        listing = ", ".join(found.values()) or "none"
        raise ValueError(
            f"{host} cannot take the first host's place: of its addresses ({listing}) {len(same)} lie in {before}, where the ranks "
            "meet, and not one; leave out --min-hosts, or put hosts that can to the front of the hostfile"
        )
    return same[0].partition("/")[0], same[0]
