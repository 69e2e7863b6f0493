"""Seeded mutations of bytes: numbers that sizes are made of, cuts, repetitions, and for JSON other
values at any place of the tree."""

import copy
import json
import random
import struct
from typing import Any, Final

_NUMBERS: Final = (
    0, 1, 2, 7, 31, 127, 128, 255, 256, 4095, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
    1 << 32, (1 << 61) + 1, (1 << 62), (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
_VALUES: Final = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, 1e300, -0.0, "", "a",
    "\ud800", "\0", "../x", "x" * 5000, [], {}, [[]], [{}], {"a": {}}, [0] * 300, ["a", "a"],
)  # fmt: skip


def mutated(data: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """One to four mutations of `data`; `others` are what it may be spliced with."""
    if data[:1] in b"{[" and draw.random() < 0.7:
        found = _mutated_json(data, draw)
        if found is not None:
            return found
    for _ in range(draw.randint(1, 4)):
        data = _mutated_once(data, draw, others)
    return data


def _mutated_once(data: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    at = draw.randrange(len(data) + 1)
    # Headers are at the front: half of all changes go to the first 256 bytes.
    if draw.random() < 0.5:
        at = min(at, draw.randrange(256))
    to = min(len(data), at + draw.choice((1, 4, 8, 32, 500)))
    kind = draw.randrange(7)
    if kind == 0:
        return data[:at] + bytes((draw.randrange(256),)) + data[at + 1 :]
    if kind == 1:
        code = draw.choice(["<I", "<Q", ">I", ">Q"])
        number = draw.choice(_NUMBERS) % (1 << (8 * struct.calcsize(code)))
        return data[:at] + struct.pack(code, number) + data[at + struct.calcsize(code) :]
    if kind == 2:
        return data[:at]
    if kind == 3:
        return data[:at] + data[to:]
    if kind == 4:
        return data[:to] + data[at:to] * draw.choice((1, 2, 50)) + data[to:]
    if kind == 5:
        other = draw.choice(others)
        begin = draw.randrange(len(other) + 1)
        return data[:at] + other[begin : begin + draw.choice((4, 40, 4000))] + data[to:]
    return data[:at] + bytes(to - at) + data[to:]


def _mutated_json(data: bytes, draw: random.Random) -> bytes | None:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return None
    for _ in range(draw.randint(1, 3)):
        _change(tree, draw)
    text = json.dumps(tree)
    if draw.random() < 0.1:
        text = text.replace("null", draw.choice(("NaN", "1e999", "-Infinity", "nul")))
    return text.encode("utf-8", "surrogatepass")


def _change(tree: Any, draw: random.Random) -> None:
    """Another value at a random place, a key more, one less, or one under another name."""
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = draw.choice(keys)
        inner = node[key]
        if isinstance(inner, dict | list) and inner and draw.random() < 0.75:
            node = inner
            continue
        break
    kind = draw.randrange(5)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[draw.choice(("", "a", "type", str(key) + "x"))] = inner
    elif kind == 2:
        # A number nearby: off by one, doubled, negated.
        plain = inner if type(inner) is int and abs(inner) < 1 << 70 else 1
        node[key] = draw.choice((plain + 1, plain - 1, plain * 2, -plain, float(plain)))
    else:
        # A copy: a later change may go into it.
        node[key] = copy.deepcopy(draw.choice(_VALUES))
