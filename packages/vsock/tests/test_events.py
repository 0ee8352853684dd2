"""The event that tells a guest that its connections are lost."""

import pytest

from nitro_vsock import ChainError, send_transport_reset
from nitro_vsock.testing import FakeDriver, guest_ram


@pytest.mark.parametrize("pieces", [[4], [8], [1, 3], [2, 2, 2]])
def test_it_is_written_into_the_guests_buffer_however_that_is_cut(pieces: list[int]) -> None:
    driver = FakeDriver(guest_ram())
    driver.offer(writable=pieces)

    assert send_transport_reset(driver.queue)

    driver.queue.publish()
    assert driver.used() == [bytes(4)]


def test_without_a_buffer_nothing_is_sent() -> None:
    driver = FakeDriver(guest_ram())

    assert not send_transport_reset(driver.queue)

    driver.queue.publish()
    assert driver.used() == []


@pytest.mark.parametrize("size", [1, 3])
def test_a_buffer_that_is_too_small_goes_back_unused_and_the_next_one_is_tried(size: int) -> None:
    driver = FakeDriver(guest_ram())
    driver.offer(writable=[size])
    driver.offer(writable=[4])

    with pytest.raises(ChainError, match=f"an event has 4 bytes, its buffer {size}"):
        send_transport_reset(driver.queue)

    assert send_transport_reset(driver.queue)
    driver.queue.publish()
    assert driver.used() == [b"", bytes(4)]
