"""What an engine counts."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """One guest's numbers since its engine was made; the first three are of now."""

    connections: int = 0
    """Connections there are, the ones included that are over but for bytes that the host has not read."""
    half_open: int = 0
    """Host programs that have not finished their ``CONNECT`` line."""
    buffered_bytes: int = 0
    """Memory that is held for slow host programs, bytes."""

    opened_by_guest: int = 0
    opened_by_host: int = 0
    refused: int = 0
    """Connections that either side asked for and did not get."""
    resets: int = 0
    """Packets with RST sent to the guest."""

    bytes_to_host: int = 0
    packets_to_host: int = 0
    bytes_to_guest: int = 0
    packets_to_guest: int = 0
    interrupts: int = 0

    bad_chains: int = 0
    """Descriptor chains that broke the rules, and went back unused."""
    bad_packets: int = 0
    """Packets dropped for what their header says: another sender's CID, more data than there is."""
    credit_violations: int = 0
    """Connections reset because the guest sent more than it may."""
    budget_resets: int = 0
    """Connections reset because too much is held for host programs that do not read."""
