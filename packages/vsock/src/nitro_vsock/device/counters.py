"""The numbers that an engine counts."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """One guest's numbers. The first three are of this moment, the others count since the engine was made."""

    connections: int = 0
    """Connections at this moment, with those that are over for the guest and linger for the host."""
    half_open: int = 0
    """Host programs that have not finished their ``CONNECT`` line."""
    buffered_bytes: int = 0
    """Memory in which data for slow host programs is held, in bytes."""

    opened_by_guest: int = 0
    """Connections that the guest asked for, the refused ones not counted."""
    opened_by_host: int = 0
    """Connections that the host asked for, whether or not the guest accepted."""
    refused: int = 0
    """Connections that either side asked for and did not get."""
    resets: int = 0
    """RST packets that were sent to the guest."""

    bytes_to_host: int = 0
    packets_to_host: int = 0
    bytes_to_guest: int = 0
    packets_to_guest: int = 0
    interrupts: int = 0

    bad_chains: int = 0
    """Descriptor chains that broke the rules and went back unused."""
    bad_packets: int = 0
    """Packets dropped because of their header: another sender's CID, or more data than there is."""
    credit_violations: int = 0
    """Connections that were reset because the guest sent more than it had credit for."""
    budget_resets: int = 0
    """Connections that were reset because too much is held for host programs that do not read."""
