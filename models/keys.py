"""Typed reading of a checkpoint's configuration: every key is taken, expected or refused.

An architecture takes the keys it knows from a `Keys`; `finish` then refuses whatever is left by
name, so that a setting which would change the model is never dropped in silence.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from .plan import ConfigError, UnsupportedError

_REQUIRED: Final = object()
_MAX_SHOWN = 80


def shown(value: object) -> str:
    """`value` as it may stand in a message: one line, cut at 80 characters."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


@dataclass(slots=True)
class Keys:
    """A configuration mapping that remembers which of its keys were read.

    `prefix` is put before every name (GGUF: "llama."); `origin` names the file in messages. A key
    whose value is None counts as absent, as in Hugging Face configurations.
    """

    values: Mapping[str, object]
    origin: str
    prefix: str = ""
    _seen: set[str] = field(default_factory=set)

    def has(self, name: str) -> bool:
        """True if the key is there and not null; does not count as reading it."""
        return self.values.get(self.prefix + name) is not None

    def raw(self, name: str, default: object = _REQUIRED) -> object:
        """The value as it stands, now counted as read; ConfigError if absent and no default."""
        full = self.prefix + name
        self._seen.add(full)
        value = self.values.get(full)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise ConfigError(f"{self.origin}: {full} is missing; it is needed and never guessed")
        return default

    def wrong(self, name: str, expected: str, found: object) -> ConfigError:
        """The error to raise for a value that is not what it has to be."""
        return ConfigError(
            f"{self.origin}: {self.prefix}{name}: expected {expected}, found {shown(found)}"
        )

    def unsupported(self, name: str, supported: str, found: object) -> UnsupportedError:
        """The error to raise for a value that is legal but not implemented here."""
        return UnsupportedError(
            f"{self.origin}: {self.prefix}{name} is {shown(found)}; supported: {supported}"
        )

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """An integer in low..high; a default of None makes the key required."""
        value = self.raw(name, _REQUIRED if default is None else default)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(name, f"an integer in {low}..{high}", value)
        return value

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number in low..high; a default of None makes the key required."""
        value = self.raw(name, _REQUIRED if default is None else default)
        if type(value) not in (int, float) or not isinstance(value, int | float):
            raise self.wrong(name, f"a number in {low:g}..{high:g}", value)
        # Compared before float(): an integer of 400 digits does not fit a float.
        if value != value or not low <= value <= high or math.isinf(value):
            raise self.wrong(name, f"a finite number in {low:g}..{high:g}", value)
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """A JSON or GGUF boolean; a default of None makes the key required."""
        value = self.raw(name, _REQUIRED if default is None else default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false", value)
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string; a default of None makes the key required."""
        value = self.raw(name, _REQUIRED if default is None else default)
        if not isinstance(value, str):
            raise self.wrong(name, "a string", value)
        return value

    def expect(self, name: str, *allowed: object) -> None:
        """If the key is there, its value must be one of `allowed` (same type: True is not 1)."""
        value = self.raw(name, None)
        if value is None or any(type(value) is type(a) and value == a for a in allowed):
            return
        raise self.unsupported(name, " or ".join(map(repr, allowed)) or "none", value)

    def expect_null(self, *names: str) -> None:
        """These keys must be absent or null."""
        for name in names:
            self.expect(name)

    def ignore(self, *names: str) -> None:
        """These keys say nothing about how the model computes."""
        self._seen.update(self.prefix + name for name in names)

    def section(self, name: str) -> "Keys":
        """A nested object as Keys of its own; the caller finishes it."""
        value = self.raw(name)
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise self.wrong(name, "an object", value)
        return Keys(value, f"{self.origin}: {self.prefix}{name}")

    def finish(self) -> None:
        """Refuse the keys under `prefix` that nothing read and that are not null."""
        left = sorted(
            name
            for name, value in self.values.items()
            if name.startswith(self.prefix) and name not in self._seen and value is not None
        )
        if left:
            listed = ", ".join(f"{shown(name)} = {shown(self.values[name])}" for name in left[:5])
            more = f" and {len(left) - 5} more" if len(left) > 5 else ""
            raise UnsupportedError(
                f"{self.origin}: unknown configuration key {listed}{more}; "
                "a setting this program does not know could change the model"
            )
