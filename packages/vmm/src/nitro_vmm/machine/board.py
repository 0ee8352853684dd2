"""The board: every device but the interrupt controllers, and where each is on the bus.

The order in which virtio devices are added is the one list of them: the bus, the interrupt lines and the
tables that the loader writes for the kernel are all made from it.
"""

import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from nitro_vmm import address_map as at
from nitro_vmm.accel import Line
from nitro_vmm.devices.acpi_power import AcpiPower
from nitro_vmm.devices.generation_id import GenerationId
from nitro_vmm.devices.i8042 import I8042, I8042State
from nitro_vmm.devices.rtc import Rtc, RtcState
from nitro_vmm.devices.serial import Serial, SerialState
from nitro_vmm.devices.virtio import VirtioDevice
from nitro_vmm.devices.virtio_mmio import VirtioMmio
from nitro_vmm.devices.virtio_mmio_registers import Register, VirtioMmioState
from nitro_vmm.errors import StateError
from nitro_vmm.machine.bus import AddressSpace
from nitro_vsock import GuestMemory

I8042_PORTS: Final = (at.I8042_DATA, at.I8042_COMMAND)
RTC_PORTS: Final = 2
COM1_PORTS: Final = 8
ACPI_PORTS: Final = 3


class BoardState(NamedTuple):
    """What a saved machine keeps of its devices. The one that turns the machine off has no state."""

    serial: SerialState
    """The console's port."""
    i8042: I8042State
    """The keyboard controller."""
    rtc: RtcState
    """The clock."""
    virtio: tuple[tuple[str, VirtioMmioState], ...]
    """The virtio devices by name, in the order of their slots."""


class _Reserved:
    """The registers of a device that is still being made: an access to them waits for it.

    In a machine that goes on from a saved one, the device is restored before its first access, by whoever is
    first: the guest, or `Board.settle`. Both have the bus lock then.

    Args:
        slot: Where they are.
    """

    def __init__(self, slot: at.VirtioSlot) -> None:
        self.slot: at.VirtioSlot = slot
        self.saved: VirtioMmioState | None = None
        """What the device goes on from, when it comes."""
        self.problem: StateError | None = None
        """Why it cannot; it is as if nothing were there then."""
        self._device: VirtioMmio | None = None
        self._made = threading.Event()
        self._settled = threading.Event()

    def become(self, device: VirtioMmio | None) -> None:
        """Let the accesses go on; with `None`, as if nothing were there. The first call counts."""
        if not self._made.is_set():
            self._device = device
            self._made.set()

    def give_up(self) -> None:
        """Nothing comes any more: let nobody wait."""
        self.become(None)
        self._settled.set()

    def settle(self) -> VirtioMmio | None:
        """The device, once it is there and restored."""
        self._made.wait()
        saved, self.saved = self.saved, None
        if saved is not None and self._device is not None:
            try:
                self._device.restore(saved)
            except StateError as error:
                self.problem, self._device = error, None
        self._settled.set()
        return self._device

    def wait(self) -> None:
        """Return when the device is there and restored; for a thread without the bus lock."""
        self._settled.wait()

    def read(self, offset: int, size: int) -> int:
        """See `Device`."""
        device = self.settle()
        return (1 << 8 * size) - 1 if device is None else device.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """See `Device`."""
        device = self.settle()
        if device is not None:
            device.write(offset, size, value)


class Board:
    """The devices, wired to a bus and to interrupt lines.

    Args:
        bus: Where the devices are put.
        memory: The guest's.
        line: Gives the interrupt line of a number.
        signal_on_write: See `Vm.signal_on_write`.
        share_word: See `Vm.share_word`.
        wall_clock_ns: Nanoseconds since 1970, for the clock that the guest reads at its start.
        console: Called with what the guest prints, in a processor's thread; it may wait, because the bus lock
            is not held.
        console_ready: Called when the console takes input again after it has refused some.
        power_off: Called when the guest turns the machine off.
        reset: Called when the guest resets it.
    """

    def __init__(
        self,
        bus: AddressSpace,
        memory: GuestMemory,
        line: Callable[[int], Line],
        *,
        signal_on_write: Callable[[int, int, int], None],
        share_word: Callable[[int, memoryview], None],
        wall_clock_ns: Callable[[], int],
        console: Callable[[bytes], None],
        console_ready: Callable[[], None],
        power_off: Callable[[], None],
        reset: Callable[[], None],
    ) -> None:
        self.virtio_slots: list[at.VirtioSlot] = []
        """Where the virtio devices are, in order; the loader's tables are made from these."""
        self._bus = bus
        self._line = line
        self._signal_on_write = signal_on_write
        self._share_word = share_word
        self._console = console
        self._printed = bytearray()
        self._delivering = threading.Lock()
        self.serial: Serial = Serial(line(at.COM1_IRQ), self._printed.extend, console_ready)
        """The console's port."""
        self._i8042 = I8042(reset)
        self._rtc = Rtc(wall_clock_ns)
        self.generation_id: GenerationId = GenerationId(memory, line(at.ACPI_EVENT_IRQ))
        """Which life of the guest this is."""
        self._reserved: dict[str, _Reserved] = {}
        self._virtio: dict[str, VirtioMmio] = {}
        self._virtio_names: list[str] = []
        """In the order of their slots."""
        power = AcpiPower(power_off, reset)

        bus.add_ports(at.COM1, COM1_PORTS, self.serial)
        for port in I8042_PORTS:
            bus.add_ports(port, 1, self._i8042, device_base=at.I8042_DATA)
        bus.add_ports(at.CMOS_INDEX, RTC_PORTS, self._rtc)
        bus.add_ports(at.ACPI_SLEEP_CONTROL, ACPI_PORTS, power)
        bus.output = self._deliver_output

    def reserve_virtio(self, name: str) -> None:
        """Keep the next virtio slot for a device that `add_virtio` brings later, while the guest runs.

        Whoever accesses its registers before that waits, and holds the bus lock meanwhile. So what makes the
        device must not want that lock.

        Args:
            name: What `add_virtio` will call it.
        """
        self._reserved[name] = _Reserved(self._next_slot(name))
        self._bus.add_page(self._reserved[name].slot.address, self._reserved[name])

    def add_virtio(
        self, name: str, device: VirtioDevice, *, on_driver: Callable[[], None] = lambda: None
    ) -> None:
        """Put a device into its reserved slot or, before the kernel is loaded, the next one.

        Args:
            name: What messages and saved machines call it.
            device: What is behind the transport.
            on_driver: Called each time that a driver begins to drive it.
        """
        reserved = self._reserved.get(name)
        slot = self._next_slot(name) if reserved is None else reserved.slot
        transport = VirtioMmio(device, self._line(slot.irq), name=name, on_driver=on_driver)
        self._virtio[name] = transport
        for index in range(len(device.queue_sizes)):
            if (kick := device.kick_descriptor(index)) is not None:
                self._signal_on_write(slot.address + Register.QUEUE_NOTIFY, index, kick)
        if reserved is None or reserved.saved is None:
            self._connect(slot, transport)
        if reserved is not None:
            reserved.become(transport)

    def settle(self) -> None:
        """Every reserved device has been added: restore those that the guest has not accessed yet.

        Under the bus lock, which the guest may hold until the last one is there.

        Raises:
            StateError: A device cannot go on from where it was saved. The machine must not go on then.
        """
        for name, reserved in self._reserved.items():
            reserved.settle()
            if reserved.problem is not None:
                raise reserved.problem
            self._connect(reserved.slot, self._virtio[name])

    def _connect(self, slot: at.VirtioSlot, transport: VirtioMmio) -> None:
        self._bus.add_page(slot.address, transport)
        self._share_word(slot.address + Register.INTERRUPT_STATUS, transport.interrupt_word)

    def give_up_reserved(self) -> None:
        """No more devices come: let nobody wait for one."""
        for reserved in self._reserved.values():
            reserved.give_up()

    def _next_slot(self, name: str) -> at.VirtioSlot:
        self._virtio_names.append(name)
        slot = at.virtio_slot(len(self.virtio_slots))
        self.virtio_slots.append(slot)
        return slot

    def driver_runs(self, name: str) -> bool:
        """Whether the guest has found the virtio device of this name, and drives it."""
        return self._virtio[name].driver_runs

    def configuration_reads(self, name: str) -> int:
        """How often the guest has looked at the configuration of a virtio device.

        For a thread without the bus lock: in a machine whose device is still to come, it waits for it. If
        none comes any more, nobody has looked.
        """
        if (reserved := self._reserved.get(name)) is not None:
            reserved.wait()
        transport = self._virtio.get(name)
        return 0 if transport is None else transport.configuration_reads

    # Pauses and saved machines; all under the bus lock, while no processor runs.

    def pause(self) -> None:
        """Let all devices leave the guest's memory alone until `resume`."""
        for transport in self._virtio.values():
            transport.pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        for transport in self._virtio.values():
            transport.resume()

    def state(self) -> BoardState:
        """What to save so that `restore` goes on from here; between `pause` and `resume`."""
        return BoardState(
            serial=self.serial.state(),
            i8042=self._i8042.state(),
            rtc=self._rtc.state(),
            virtio=tuple((name, self._virtio[name].state()) for name in self._virtio_names),
        )

    def restore(self, state: BoardState) -> None:
        """Go on from a saved state, after the guest's memory and the interrupt controllers are restored.

        Devices that are still to come are restored when they are there, see `settle`.

        Raises:
            StateError: The state is of a machine with other devices, or cannot be.
        """
        names = [name for name, _ in state.virtio]
        if names != self._virtio_names:
            raise StateError(
                f"the saved machine has the virtio devices {', '.join(names)}, "
                f"and this one has {', '.join(self._virtio_names)}"
            )
        self.serial.restore(state.serial)
        self._i8042.restore(state.i8042)
        self._rtc.restore(state.rtc)
        for name, saved in state.virtio:
            if name in self._virtio:
                self._virtio[name].restore(saved)
            else:
                self._reserved[name].saved = saved

    def _deliver_output(self) -> None:
        if not self._printed:
            return
        with self._delivering:
            # Another processor may print meanwhile, so only what was copied is removed.
            data = bytes(self._printed)
            del self._printed[: len(data)]
            if data:
                self._console(data)
