"""Budgets: what they mean, what is refused, and that a context within one is read whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hga.kvstore.route import (
    AUTO_MOST,
    AUTO_MOST_EVER,
    AUTO_MOST_SHARE,
    EVERYTHING,
    RULES,
    Budget,
    Limits,
    Router,
    always_read,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", Budget()),
        ("1024", Budget(tokens=1024)),
        ("4k", Budget(tokens=4096)),
        ("4K", Budget(tokens=4096)),
        (" 7 ", Budget(tokens=7)),
        ("2%", Budget(share=0.02)),
        ("0.5%", Budget(share=0.005)),
        ("100%", Budget(share=1.0)),
    ],
)
def test_parse(text: str, expected: Budget) -> None:
    assert Budget.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0k",
        "0%",
        "101%",
        "-1",
        "-2%",
        "1.5",
        "1.5k",
        "2 %",
        "%",
        "k",
        "some",
        "1e3",
        "nan%",
    ],
)
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither auto, a number of tokens"):
        Budget.parse(text)


def test_tokens_at() -> None:
    assert Budget(tokens=500).tokens_at(10) == Budget(tokens=500).tokens_at(10**6) == 500
    assert Budget(share=0.02).tokens_at(65536) == 1310
    assert Budget().tokens_at(100) == Budget().tokens_at(AUTO_MOST) == AUTO_MOST
    assert Budget().tokens_at(1 << 15) == AUTO_MOST_SHARE * (1 << 15)
    assert Budget().tokens_at(1 << 20) == AUTO_MOST_EVER


def read_groups(limits: Limits, n_tokens: int) -> int:
    """Groups of 8 tokens that the kernel reads at most."""
    return min(-(-n_tokens // 8), limits.sinks + limits.window + limits.most)


@given(tokens=st.integers(1, 5000), n_tokens=st.integers(1, 6000))
def test_a_context_within_the_budget_is_read_whole(tokens: int, n_tokens: int) -> None:
    for rule in ("hga", "oracle"):
        router = Router(rule, Budget(tokens=tokens))
        limits = router.limits(n_tokens)
        assert limits.least == limits.most >= 1, "a number of tokens leaves nothing open"
        groups = read_groups(limits, n_tokens)
        if n_tokens <= tokens:
            assert groups == -(-n_tokens // 8)
        assert 8 * groups < max(tokens, router.least_tokens(n_tokens)) + 8


@given(n_tokens=st.integers(1, 100_000))
def test_all_of_it_is_all_of_it(n_tokens: int) -> None:
    limits = Router("hga", Budget(share=1.0)).limits(n_tokens)
    assert read_groups(limits, n_tokens) == -(-n_tokens // 8)


@given(share=st.floats(0.001, 1), n_tokens=st.integers(1, 1 << 20))
def test_more_context_never_reads_less(share: float, n_tokens: int) -> None:
    for budget in (Budget(share=share), Budget()):
        router = Router("hga", budget)
        shorter, longer = router.limits(n_tokens), router.limits(n_tokens + 16)
        assert read_groups(shorter, n_tokens) <= read_groups(longer, n_tokens + 16)


@given(tokens=st.integers(1, 5000))
def test_windows_leave_half_of_a_budget_to_routing(tokens: int) -> None:
    sinks, window = always_read(tokens)
    assert sinks % 8 == window % 8 == 0 and sinks >= 8 and window >= 32
    assert sinks + window <= max(tokens // 2, 40)


def test_dense_reads_everything() -> None:
    assert Router("dense", Budget(tokens=1)).limits(10_000) == EVERYTHING == Limits()


def test_the_published_rule_at_its_published_budget() -> None:
    """2 + 8 chunks, the active one and 32 groups of 16 tokens: 1,216 tokens, 1.9 % of 64K."""
    limits = Router("hga-paper", Budget(tokens=1216)).limits(65536)
    assert RULES[limits.rule] == "hga-paper"
    assert (limits.sinks, limits.window) == (2 * 8, 8 * 8)
    assert limits.most in (32, 34) and limits.chunks in (20, 22)


@given(tokens=st.integers(400, 8000))
def test_the_published_rule_keeps_a_budget(tokens: int) -> None:
    """A budget is a mean: the active chunk holds from 1 to 64 tokens."""
    limits = Router("hga-paper", Budget(tokens=tokens)).limits(1 << 20)
    read = 8 * (limits.sinks + limits.window) + 16 * limits.most + 32
    assert tokens - 16 < read <= max(tokens, 16 + 32 + 8 * (limits.sinks + limits.window))
    assert limits.least == 2 * limits.most


def test_auto_reads_what_has_a_share_of_the_mass() -> None:
    limits = Router("hga", Budget()).limits(65536)
    assert 0 < limits.least < limits.most and 0 < limits.least_share < 0.01
