"""nitro-vmm."""
