"""The memory bill."""

import pytest

from hga.runtime.budget import BillLine, BudgetError, check, total

BILL = (BillLine("weights", 300 << 20), BillLine("keys and values", 50 << 20, True))


def test_total() -> None:
    assert total(BILL) == 350 << 20 and total(()) == 0


@pytest.mark.parametrize("mem", [None, 350 << 20, 1 << 40])
def test_enough(mem: int | None) -> None:
    check(BILL, mem)


def test_too_little_names_every_line_and_the_flags() -> None:
    with pytest.raises(BudgetError) as caught:
        check(BILL, (350 << 20) - 1)
    text = str(caught.value)
    assert isinstance(caught.value, MemoryError)
    assert "350 MiB are needed, --mem allows 349 MiB" in text
    assert "weights 300 MiB, keys and values 50 MiB" in text and "a smaller --ctx" in text


def test_what_no_context_helps_says_so() -> None:
    with pytest.raises(BudgetError, match="no --ctx is small enough"):
        check(BILL, 300 << 20)


def test_the_stated_need_is_never_less_than_it_is() -> None:
    bill = (BillLine("weights", (300 << 20) + 1),)
    with pytest.raises(BudgetError, match="301 MiB are needed, --mem allows 300 MiB"):
        check(bill, 300 << 20)
