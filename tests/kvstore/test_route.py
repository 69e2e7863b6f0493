"""Budgets: what they mean, what is refused, and that a context within one is read whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hga.kvstore.route import AUTO_SHARE, AUTO_TOKENS, Budget, Router


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
    assert Budget().tokens_at(100) == Budget().tokens_at(AUTO_TOKENS) == AUTO_TOKENS
    assert Budget().tokens_at(1 << 20) == AUTO_SHARE * (1 << 20)


def read_groups(router: Router, n_tokens: int) -> int:
    """Groups that the kernel reads."""
    always = router.sink_groups + router.window_groups
    return min(-(-n_tokens // 16), always + router.selected_groups(n_tokens))


@given(tokens=st.integers(1, 5000), n_tokens=st.integers(1, 6000))
def test_a_context_within_the_budget_is_read_whole(tokens: int, n_tokens: int) -> None:
    router = Router(Budget(tokens=tokens))
    groups = read_groups(router, n_tokens)
    if n_tokens <= tokens:
        assert groups == -(-n_tokens // 16)
    assert 16 * groups < max(tokens, router.minimum_tokens) + 16


@given(n_tokens=st.integers(1, 100_000))
def test_all_of_it_is_all_of_it(n_tokens: int) -> None:
    assert read_groups(Router(Budget(share=1.0)), n_tokens) == -(-n_tokens // 16)


@given(share=st.floats(0.001, 1), n_tokens=st.integers(1, 1 << 20))
def test_more_context_never_reads_less(share: float, n_tokens: int) -> None:
    for budget in (Budget(share=share), Budget()):
        router = Router(budget)
        assert 1 <= router.selected_groups(n_tokens) <= router.selected_groups(n_tokens + 16)


def test_the_least_that_is_read() -> None:
    router = Router(Budget(tokens=1))
    assert router.minimum_tokens == 336
    assert read_groups(router, 10_000) * 16 == 336
