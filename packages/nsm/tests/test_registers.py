"""The bank of registers against a model, in any order of requests."""

import hashlib

import cbor2
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nitro_nsm import Nsm, NsmConfig, NsmState, Refusal
from nitro_nsm.client import NsmClient

INDEXES = st.integers(0, 40) | st.just(0xFFFF)


class Registers(RuleBasedStateMachine):
    """What a module must do, written down as plainly as possible."""

    def __init__(self) -> None:
        super().__init__()
        self.nsm = Nsm(NsmConfig(pcrs={0: b"\7" * 48}, instance_id="i-0123456789abcdef0"))
        self.values = dict(enumerate(self.nsm.state().pcrs))
        self.locked = set(range(16))

    def ask(self, name: str, parameters: dict[str, object]) -> str | None:
        """The error, if that is the answer."""
        try:
            NsmClient(self.nsm.handle)._ask(name, parameters)
        except Refusal as refusal:
            return str(refusal.code)
        return None

    def expected_error(self, index: int) -> str | None:
        if index >= 32:
            return "InvalidIndex"
        return "ReadOnlyIndex" if index in self.locked else None

    @rule(index=INDEXES, data=st.binary(max_size=80))
    def extend(self, index: int, data: bytes) -> None:
        error = self.expected_error(index)
        assert self.ask("ExtendPCR", {"index": index, "data": data}) == error
        if error is None:
            self.values[index] = hashlib.sha384(self.values[index] + data).digest()

    @rule(index=INDEXES)
    def lock(self, index: int) -> None:
        error = self.expected_error(index)
        assert self.ask("LockPCR", {"index": index}) == error
        if error is None:
            self.locked.add(index)

    @rule(count=INDEXES)
    def lock_range(self, count: int) -> None:
        assert self.ask("LockPCRs", {"range": count}) == ("InvalidIndex" if count > 32 else None)
        if count <= 32:
            self.locked |= set(range(count))

    @rule(index=INDEXES)
    def describe(self, index: int) -> None:
        if index >= 32:
            assert self.ask("DescribePCR", {"index": index}) == "InvalidIndex"
            return
        found = NsmClient(self.nsm.handle).describe_pcr(index)
        assert (found.value, found.locked) == (self.values[index], index in self.locked)

    @rule(data=st.binary(max_size=40))
    def noise(self, data: bytes) -> None:
        if data[:1] not in {b"\xa1", b"\xb8"}:
            self.nsm.handle(data)

    @rule()
    def save_and_restore(self) -> None:
        self.nsm = Nsm(NsmState.model_validate_json(self.nsm.state().model_dump_json()))

    @invariant()
    def nothing_else_changed(self) -> None:
        state = self.nsm.state()
        assert dict(enumerate(state.pcrs)) == self.values
        assert state.locked == self.locked
        assert list(NsmClient(self.nsm.handle).describe_nsm().locked_pcrs) == sorted(self.locked)


TestRegisters = Registers.TestCase


def test_an_error_reply_is_one_of_the_names() -> None:
    assert cbor2.loads(Nsm(NsmConfig()).handle(b"")) == {"Error": "InvalidOperation"}
