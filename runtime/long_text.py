"""Whether a text can fit in a context, told without encoding all of it.

The tokenizers library takes some 60 bytes of memory for a character and ends the process where it
gets none, so a text of 100 MB must be refused before it is handed over.
"""

from typing import Final, Protocol

# Encoded at once without a look: 60 MB of memory.
ALWAYS_ENCODED_CHARS: Final = 1 << 20
# Tokens that the end of a piece may have more than the same characters within a text.
_SLACK: Final = 256


class Encoder(Protocol):
    """What is needed of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""


def exceeds(encoder: Encoder, text: str, n_tokens: int) -> bool:
    """Whether a text surely makes more than n_tokens.

    Growing beginnings of it are encoded, so that no more is encoded than four times what fits.
    """
    n_chars = ALWAYS_ENCODED_CHARS
    while n_chars < len(text):
        if len(encoder.encode(text[:n_chars])) > n_tokens + _SLACK:
            return True
        n_chars *= 2
    return False
