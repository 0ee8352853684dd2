"""A processor's registers as its file of KVM's gives and takes them; no KVM is needed."""

from nitro_vmm.accel.kvm.ioctl import VcpuFile
from nitro_vmm.accel.kvm.structures import Registers, SystemRegisters


class RegistersFile(VcpuFile):
    """The kernel's side of a processor's registers, which remembers them."""

    def __init__(self, general: Registers, system: SystemRegisters) -> None:
        self.general = general
        self.system = system

    def registers(self) -> Registers:
        return self.general

    def set_registers(self, registers: Registers) -> None:
        self.general = registers

    def system_registers(self) -> SystemRegisters:
        return self.system

    def set_system_registers(self, registers: SystemRegisters) -> None:
        self.system = registers
