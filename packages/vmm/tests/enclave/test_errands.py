"""Errands for a loop that may still be to come."""

from nitro_vmm.enclave.errands import Errand, Errands

# The bounds as they are promised, so that those of the program are held against them.
HELD_MAX = 64


def test_what_comes_before_the_loop_waits_for_it_and_keeps_its_order() -> None:
    done: list[int] = []
    later: list[Errand] = []
    errands = Errands()

    def first() -> None:
        done.append(1)
        errands.give(lambda: done.append(3))

    def take(errand: Errand) -> bool:
        later.append(errand)
        return True

    assert errands.give(first)
    assert errands.give(lambda: done.append(2))
    assert done == []

    errands.start(take)

    assert done == [1, 2, 3]
    assert errands.give(lambda: done.append(4))
    assert len(later) == 1


def test_what_waits_when_nobody_comes_is_done_at_the_end() -> None:
    done: list[int] = []
    errands = Errands()
    errands.give(lambda: done.append(1))

    errands.end()
    errands.end()

    assert done == [1]
    assert not errands.give(lambda: done.append(2))
    assert done == [1]


def test_a_loop_that_has_ended_takes_nothing() -> None:
    errands = Errands()
    errands.start(lambda _errand: False)

    assert not errands.give(lambda: None)


def test_a_guest_cannot_have_everything_wait() -> None:
    errands = Errands()

    taken = [errands.give(lambda: None) for _ in range(HELD_MAX + 1)]

    assert taken == [True] * HELD_MAX + [False]
