"""KVM: the host's own processor, through the Linux kernel, where there is one.

Nothing outside of this folder knows the kernel's interface.
"""

from nitro_vmm.accel.kvm.vm import Kvm

__all__ = ["Kvm"]
