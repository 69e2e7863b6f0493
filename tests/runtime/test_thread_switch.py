"""Fewer threads while others use the processors, and back; the number changes no token."""

import numpy as np
import pytest

from hga.runtime.thread_switch import ThreadSwitch, Usage, usage


class Machine:
    """Processors that others use `busy` of; a token takes what `times` says for n threads."""

    def __init__(self, busy: float, times: dict[int, float]) -> None:
        self.busy, self.times = busy, times
        self.wall = self.work = 0.0

    def usage(self) -> Usage:
        return Usage(self.wall, self.work + 1.5 * self.wall, 1.5 * self.wall)

    def run(self, switch: ThreadSwitch, n_tokens: int) -> list[int]:
        used = []
        for _ in range(n_tokens):
            used.append(switch.n)
            seconds = self.times[switch.n]
            self.wall += seconds
            self.work += self.busy * seconds
            switch.note(seconds)
        return used


def test_all_threads_while_nobody_else_runs() -> None:
    machine = Machine(0.05, {4: 0.01, 3: 0.013, 2: 0.02, 1: 0.04})
    assert set(machine.run(ThreadSwitch(4, machine.usage), 1000)) == {4}


def test_fewer_threads_beside_another_program_and_back() -> None:
    machine = Machine(1.0, {4: 0.05, 3: 0.013, 2: 0.02, 1: 0.04})
    switch = ThreadSwitch(4, machine.usage)
    used = machine.run(switch, 400)
    assert used[:32] == [4] * 32 and switch.n == 3
    assert used.count(3) > 300 and used.count(1) <= 10
    machine.busy = 0.0
    machine.run(switch, 64)
    assert switch.n == 4


def test_trials_become_rare_where_they_change_nothing() -> None:
    machine = Machine(1.0, {2: 0.01, 1: 0.02})
    used = machine.run(ThreadSwitch(2, machine.usage), 8000)
    assert used.count(1) <= 5 * 7, "after 128, 256, … 2,048 tokens"
    assert used.count(1) >= 10


def test_one_thread_has_no_choice() -> None:
    machine = Machine(1.0, {1: 0.01})
    assert set(machine.run(ThreadSwitch(1, machine.usage), 100)) == {1}


def test_what_is_used_grows() -> None:
    before = usage()
    total = sum(range(1_000_000))
    after = usage()
    assert total and after.wall > before.wall and after.own > before.own
    assert after.all >= before.all


@pytest.mark.parametrize("arch", ["qwen3", "qwen3_moe"])
def test_the_number_of_threads_changes_no_token(packed_tiny, open_engine, token_ids, arch) -> None:
    path, ids = packed_tiny(arch), token_ids(60)
    logits = []
    for turns in (None, [3, 1, 2]):
        with open_engine(path, threads=3) as engine, engine.session() as session:
            session.feed(ids[:40])
            if turns is not None:
                switch = ThreadSwitch(3, Machine(0.0, {}).usage)
                engine.forward_pass._switch = switch
            for i, token in enumerate(ids[40:]):
                if turns is not None:
                    switch.n = turns[i % 3]
                logits.append(session.step(token).copy())
    np.testing.assert_array_equal(logits[:20], logits[20:])


def test_threads_that_were_asked_for_stay(packed_tiny, open_engine) -> None:
    with open_engine(packed_tiny("qwen3"), threads=2) as engine:
        assert engine.forward_pass._switch is None
    with open_engine(packed_tiny("qwen3"), threads=None) as engine:
        assert engine.forward_pass._switch is not None
