"""The vsock device of one guest: `engine` puts it together, the other modules do one thing each.

From the bottom up:

* `packet`, `connection` and `timers` read no socket and no clock. `connection` has the state table.
* `socket_connection` joins a connection with a socket of the host, `connection_table` finds it and keeps
  account.
* `endings` knows how connections end, `credit_wait` how they wait for credit, `delivery` how the guest's
  bytes get to the host, `dialing` how connections begin, `front_door` how host programs ask for one.
* `transmit` and `receive` serve the two rings, `coalescing` saves interrupts, `events` writes the event ring.

Several things wait here, and each kind of waiting has its own word:

========== ============= ===================================================================================
Word       Who           What it means
========== ============= ===================================================================================
choked     the table     So many answers wait for receive buffers that no packet of the guest is taken.
starved    the receiver  There was more for the guest than it has offered receive buffers.
ready      a connection  It has something for the guest, and waits for its turn.
stalled    a connection  The host program has sent data, and the guest has given no credit to pass it on.
holding    a connection  The host program has not read yet what the guest sent, so we hold it in memory.
lingering  a connection  It is over for the guest, and what is held is still on its way to the host program.
held back  an interrupt  The guest hears that its packets were taken together with the answer, or a bit later.
========== ============= ===================================================================================
"""
