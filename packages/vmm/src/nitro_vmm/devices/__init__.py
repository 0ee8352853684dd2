"""The machine's devices: register accesses in, bytes and interrupts out.

The machine calls each under its bus lock, gives it its clock and its outputs as callables, and puts it where
`address_map` says. Whatever a guest writes, no device raises: it ignores what has no meaning, as hardware
does. Each can be saved and restored; `devices.state` says how.

No device reads a clock of its own, starts a thread or takes a lock. The two vsock devices alone have
descriptors, because their other ends are sockets of the host: one wakes an engine in this process through
eventfds, the other talks to a daemon. Setting that daemon up takes an exchange of messages, within the
guest's write to the status register. It holds the guest and the bus up: for microseconds, or for the
daemon's time-out if it hangs.
"""
