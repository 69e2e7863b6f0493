"""Text to token ids and back.

Text is cut at control tokens first, where the caller allows them, then encoded by the `tokenizers`
library, which knows no control token: plain text can never produce one. Decoding is done here,
token by token, in bytes, so that a stream never shows half a character.
"""

import codecs
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, TypeVar

from .gguf_vocab import spec_from_gguf
from .hf_vocab import spec_from_hf
from .tokenizer_spec import ControlToken, TokenizerError, TokenizerSpec, check

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

__all__ = [
    "ControlToken",
    "StreamDecoder",
    "Tokenizer",
    "TokenizerError",
    "TokenizerSpec",
    "spec_from_gguf",
    "spec_from_hf",
]

_BYTE_TEXT: Final = re.compile(r"<0x([0-9A-F]{2})>")
_T = TypeVar("_T")


def _bytelevel_alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: printable Latin-1 stands for itself, the other bytes for
    the characters from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(value): value for value in shown}
    hidden = (value for value in range(256) if value not in set(shown))
    table.update({chr(0x100 + i): value for i, value in enumerate(hidden)})
    return table


_BYTELEVEL: Final = _bytelevel_alphabet()


class Tokenizer:
    """The tokenizer of a spec. The vocabulary is built when it is first needed; all methods may
    be called from several threads."""

    def __init__(self, spec: TokenizerSpec) -> None:
        """Raises TokenizerError for a spec that contradicts itself."""
        check(spec)
        self.spec = spec
        self._lock = threading.Lock()
        self._library: Library | None = None
        self._literal: dict[int, str] = {}
        self._pieces: dict[int, bytes] = {}
        self._control = {token.text: token for token in spec.control}
        self._control_ids = frozenset(token.id for token in spec.control)
        lengths: dict[str, set[int]] = {}
        for token in spec.control:
            lengths.setdefault(token.text[0], set()).add(len(token.text))
        self._lengths = {char: sorted(found, reverse=True) for char, found in lengths.items()}
        opening = "".join(re.escape(char) for char in sorted(lengths))
        self._opening = re.compile(f"[{opening}]") if opening else None

    @property
    def bos(self) -> int | None:
        """The token that every text begins with, None where the model wants none."""
        return self.spec.bos if self.spec.add_bos else None

    @property
    def eos(self) -> frozenset[int]:
        """Every token that ends a reply."""
        return frozenset(self.spec.eos)

    @property
    def n_vocab(self) -> int:
        return self.spec.n_vocab

    @property
    def control_texts(self) -> frozenset[str]:
        """The texts that `special=True` turns into control tokens."""
        return frozenset(self._control)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of a text, without BOS. Text that spells a control token becomes that token
        only if `special`; lone surrogates count as U+FFFD."""
        return self.encode_parts([(text, special)])

    def encode_parts(self, parts: Iterable[tuple[str, bool]]) -> list[int]:
        """The ids of the concatenation of (text, special) parts, without BOS.

        A control token is recognised where all of its text lies within one special part. Between
        control tokens words are formed across parts, as if the text had been one string.
        """
        ids: list[int] = []
        plain: list[str] = []
        swallow = False
        for text, special in parts:
            for piece in self._cut(text) if special else (text,):
                if isinstance(piece, str):
                    piece = piece.lstrip() if swallow else piece
                    swallow = swallow and not piece
                    plain.append(piece)
                    continue
                run = "".join(plain)
                ids += self._encode_plain(run.rstrip() if piece.lstrip else run)
                ids.append(piece.id)
                plain.clear()
                swallow = piece.rstrip
        return ids + self._encode_plain("".join(plain))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a whole sequence; control tokens and ids without text are left out, bytes
        that are no UTF-8 become U+FFFD. Raises TokenizerError for a negative id."""
        stream = self.decoder(at_start=True)
        return "".join([*(stream.push(number) for number in ids), stream.flush()])

    def decoder(self, *, at_start: bool = False) -> "StreamDecoder":
        """A decoder of a sequence that arrives token by token. `at_start`: it is a text of its
        own, so a space that encoding put before its first word is dropped."""
        return StreamDecoder(self.piece, at_start and self.spec.space_prefix)

    def piece(self, number: int) -> bytes:
        """The bytes that a token stands for, b"" for control tokens and ids without text."""
        found = self._pieces.get(number)
        if found is None:
            if number < 0:
                raise TokenizerError(f"tokenizer: expected a token id, found {number}")
            found = self._pieces[number] = self._piece(number)
        return found

    def token_id(self, text: str) -> int | None:
        """The id of the token with this text, as the vocabulary spells it."""
        if (token := self._control.get(text)) is not None:
            return token.id
        library = self._built()
        return guarded("looking a token up", lambda: library.token_to_id(text))

    def _piece(self, number: int) -> bytes:
        library = self._built()
        if number in self._control_ids or number >= self.spec.n_vocab:
            return b""
        literal = self._literal.get(number)
        if literal is not None:
            return literal.encode()
        text = guarded("looking a token up", lambda: library.id_to_token(number))
        if text is None:
            return b""
        if self.spec.pieces == "spm":
            byte = _BYTE_TEXT.fullmatch(text)
            return bytes([int(byte[1], 16)]) if byte else text.replace("\u2581", " ").encode()
        return b"".join(
            bytes([_BYTELEVEL[char]]) if char in _BYTELEVEL else char.encode() for char in text
        )

    def _cut(self, text: str) -> Iterator[str | ControlToken]:
        start = 0
        if self._opening is not None:
            for match in self._opening.finditer(text):
                at = match.start()
                if at < start:
                    continue
                for length in self._lengths[match[0]]:
                    token = self._control.get(text[at : at + length])
                    if token is not None:
                        yield text[start:at]
                        yield token
                        start = at + length
                        break
        yield text[start:]

    def _encode_plain(self, text: str) -> list[int]:
        if not text:
            return []
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        library = self._built()
        encoding = guarded("encoding", lambda: library.encode(text, add_special_tokens=False))
        ids: list[int] = encoding.ids
        if ids and max(ids) >= self.spec.n_vocab:
            raise TokenizerError(
                f"tokenizer: expected ids below {self.spec.n_vocab}, found {max(ids)}"
            )
        if not self._control_ids.isdisjoint(ids):
            raise TokenizerError("tokenizer: the vocabulary makes control tokens of plain text")
        return ids

    def _built(self) -> "Library":
        if self._library is None:
            with self._lock:
                if self._library is None:
                    self._library = self._build()
        return self._library

    def _build(self) -> "Library":
        from tokenizers import Tokenizer as Library

        library = guarded("building", lambda: Library.from_str(self.spec.json))
        for number, token in library.get_added_tokens_decoder().items():
            if token.special:
                raise TokenizerError(
                    f"tokenizer: {token.content!r:.80} must be listed as a control token"
                )
            self._literal[number] = token.content
        return library


class StreamDecoder:
    """Turns ids into text that can be shown at once: only complete characters come out."""

    def __init__(self, piece: Callable[[int], bytes], drop_space: bool) -> None:
        self._piece = piece
        self._drop_space = drop_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, number: int) -> str:
        """The text that this token completes, often "" within a multi-byte character."""
        piece = self._piece(number)
        if self._drop_space and piece:
            self._drop_space = False
            piece = piece.removeprefix(b" ")
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an incomplete character, else ""."""
        return self._utf8.decode(b"", final=True)


def guarded(what: str, call: Callable[[], _T]) -> _T:
    """The call's result; whatever the library throws, its own panics included, becomes a
    TokenizerError."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        text = " ".join(str(error).split())
        raise TokenizerError(f"tokenizer: {what} failed: {text:.200}") from None
