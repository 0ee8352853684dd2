"""The processor: Unicorn, and what Unicorn leaves to its user. Nothing outside imports Unicorn."""

from nitro_vmm.accel.unicorn.tsc import measure_tsc_hz, read_tsc
from nitro_vmm.accel.unicorn.vcpu import Bus, Cpu, Stopped

__all__ = ["Bus", "Cpu", "Stopped", "measure_tsc_hz", "read_tsc"]
