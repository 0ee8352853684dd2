"""Virtqueues and guest memory: what every virtio device needs, whatever it is for. No I/O, no clocks."""
