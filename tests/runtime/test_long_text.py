"""A text that cannot fit is told from one that may without encoding much of it."""

import pytest

from hga.runtime import long_text


class Counting:
    """A token for every three characters; knows how many it was given."""

    def __init__(self) -> None:
        self.n_chars = 0

    def encode(self, text: str) -> list[int]:
        self.n_chars += len(text)
        return [0] * (len(text) // 3)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(long_text, "ALWAYS_ENCODED_CHARS", 1000)


@pytest.mark.parametrize("n_chars", [0, 999, 1000])
def test_a_short_text_is_not_looked_at(n_chars):
    encoder = Counting()
    assert not long_text.exceeds(encoder, "a" * n_chars, 5)
    assert encoder.n_chars == 0


def test_no_more_is_encoded_than_four_times_what_fits():
    encoder = Counting()
    assert long_text.exceeds(encoder, "a" * 10_000_000, 5000)
    assert encoder.n_chars <= 4 * 3 * (5000 + 256)


@pytest.mark.parametrize("n_tokens", [40_000, 33_400])
def test_what_may_fit_is_never_refused(n_tokens):
    assert not long_text.exceeds(Counting(), "a" * 100_000, n_tokens)
