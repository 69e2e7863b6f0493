"""Hostile packed files and session folders, their checksums right; hostile templates and texts."""

import io
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

HUGE = 1 << 63
_BULK = [{}] * 3_000_000


def packed_cases(forge: ModuleType, sound: Path) -> dict[str, Callable[[Path], Path]]:
    """Packed files by name; `sound` is one of a dense model."""
    raw = sound.read_bytes()

    def index(change: Callable[[dict[str, Any]], object]) -> Callable[[], bytes]:
        return lambda: forge.edited_index(raw, change)

    def first(part: str, **values: object) -> Callable[[], bytes]:
        return index(lambda found: found[part][0].update(values))

    def plan(**values: object) -> Callable[[], bytes]:
        return index(lambda found: found["plan"].update(values))

    def attention(**values: object) -> Callable[[], bytes]:
        return index(lambda found: found["plan"]["layers"][0]["attention"].update(values))

    deep = b'{"plan":' + b"[" * 100_000
    made: dict[str, Callable[[], bytes]] = {
        "header-alone": lambda: raw[:4096],
        "cut": lambda: raw[:-1],
        "magic-alone": lambda: raw[:8],
        "longer": lambda: raw + b"\0" * 4096,
        "index-nested": lambda: forge.with_index(raw, deep),
        "index-bulk": lambda: forge.edited_index(raw, lambda found: found.update(source=_BULK)),
        "index-plan-bulk": lambda: forge.edited_index(raw, lambda found: found.update(plan=_BULK)),
        "index-control": lambda: forge.with_index(raw, b'{"\\u001b[2J\\r\\u009b0m": 1}'),
        "index-nan": lambda: forge.with_index(raw, b'{"plan": NaN}'),
        "segment-offset-2-63": first("segments", offset=HUGE),
        "segment-offset-zero": first("segments", offset=0),
        "segment-offset-negative": first("segments", offset=-4096),
        "segment-bytes-2-60": first("segments", nbytes=1 << 60),
        "segments-overlap": index(
            lambda found: found["segments"][1].update(offset=found["segments"][0]["offset"])
        ),
        "segments-reversed": index(lambda found: found["segments"].reverse()),
        "segment-twice": index(lambda found: found["segments"].append(found["segments"][0])),
        "segment-name-up": first("segments", name="../" * 20),
        "tensor-offset-2-60": first("tensors", offset=1 << 60),
        "tensor-offset-odd": first("tensors", offset=1),
        "tensor-shape-2-62": first("tensors", shape=[1 << 62, 4]),
        "tensor-shape-product": first("tensors", shape=[1 << 32, 1 << 32]),
        "tensor-shape-bulk": first("tensors", shape=[1] * 100_000),
        "tensor-format": first("tensors", format="__class__"),
        "tensor-twice": index(lambda found: found["tensors"].append(found["tensors"][0])),
        "text-bytes-huge": first("texts", nbytes=128 << 20),
        "text-twice": index(lambda found: found["texts"].append(found["texts"][0])),
        "plan-layers-none": plan(layers=[]),
        "plan-vocab-2-60": plan(vocab_size=1 << 60),
        "plan-hidden-zero": plan(hidden=0),
        "plan-eps-text": plan(norm_eps="nan"),
        "plan-heads-zero": attention(n_heads=0),
        "plan-head-dim-odd": attention(head_dim=3),
        "plan-scale-zero": attention(scale=0.0),
        "tokenizer-empty": index(lambda found: found.update(tokenizer={})),
        "tokenizer-vocab-2-40": index(lambda found: found["tokenizer"].update(n_vocab=1 << 40)),
        "tokenizer-text-foreign": index(
            lambda found: found["tokenizer"].update(json={"text": "../../secret"})
        ),
        "tokenizer-control-bulk": index(
            lambda found: found["tokenizer"].update(control=[[1, "a", False, False]] * 200_000)
        ),
        "tokenizer-json-inline": index(lambda found: found["tokenizer"].update(json="{}")),
        "lz4-bomb": lambda: _bomb(forge, raw),
    }  # fmt: skip

    def writer(name: str, make: Callable[[], bytes]) -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            path = folder / f"{name}.hga"
            path.write_bytes(make())
            return path

        return write

    return {name: writer(name, make) for name, make in made.items()}


def _bomb(forge: ModuleType, raw: bytes) -> bytes:
    """The first text unfolds to 2 GiB, where its record states what it had."""
    import lz4.frame

    index = forge.index_of(raw)
    segment = index["segments"][0]
    at, n = segment["offset"], segment["nbytes"]
    compressor = lz4.frame.LZ4FrameCompressor()
    bomb = compressor.begin() + compressor.compress(bytes(1 << 20)) * 64 + compressor.flush()
    if len(bomb) > n:
        bomb = bomb[:n]
    changed = raw[:at] + bomb.ljust(n, b"\0") + raw[at + n :]
    import xxhash

    segment["xxh3"] = xxhash.xxh3_64_hexdigest(changed[at : at + n])
    return bytes(forge.with_index(changed, index))


def session_cases(forge: ModuleType, sound: Path) -> dict[str, Callable[[Path], Path]]:
    """Session folders by name; `sound` is an empty session."""
    newest = max(sound.glob("head-*"), key=lambda path: path.stat().st_size)
    body = newest.read_bytes()[64:]

    def folder(change: Callable[[Path], object]) -> Callable[[Path], Path]:
        def make(place: Path) -> Path:
            made = place / "session"
            shutil.copytree(sound, made)
            change(made)
            return made

        return make

    def head(raw: bytes) -> Callable[[Path], Path]:
        return folder(lambda made: (made / newest.name).write_bytes(raw))

    def counts(at: int, code: str, value: int) -> Callable[[Path], Path]:
        """Another number in the fixed part of the body (docs/format.md), sealed."""
        changed = bytearray(body)
        struct.pack_into(code, changed, at, value)
        return head(forge.sealed_head(bytes(changed)))

    def instead(name: str, put: Callable[[Path], object]) -> Callable[[Path], Path]:
        def change(made: Path) -> None:
            (made / name).unlink(missing_ok=True)
            put(made / name)

        return folder(change)

    other = "head-0" if newest.name == "head-1" else "head-1"
    sealed: Final = forge.sealed_head
    return {
        "head-empty": head(b""),
        "head-cut": head(sealed(body)[:70]),
        "head-body-2-63": head(sealed(body, body_bytes=HUGE)),
        "head-body-none": head(sealed(b"")),
        "head-generation-huge": head(sealed(body, generation=(1 << 64) - 1)),
        "head-a-hole": folder(lambda made: _hole(made / newest.name, 1 << 30)),
        "head-both-holes": folder(
            lambda made: [_hole(made / name, 1 << 30) for name in ("head-0", "head-1")]
        ),
        "head-larger-than-any": folder(lambda made: _hole(made / newest.name, 1 << 40)),
        "head-a-pipe": instead(newest.name, os.mkfifo),
        "other-head-a-pipe": instead(other, os.mkfifo),
        "head-a-device": instead(newest.name, lambda path: os.symlink("/dev/zero", path)),
        "other-head-a-folder": instead(other, os.mkdir),
        "tokens-2-63": counts(0, "<Q", HUGE),
        "index-2-63": counts(8, "<Q", HUGE),
        "text-2-63": counts(16, "<Q", HUGE),
        "text-stored-2-63": counts(24, "<Q", HUGE),
        "fingerprint-2-32": counts(52, "<I", (1 << 32) - 1),
        "layers-2-32": counts(56, "<I", (1 << 32) - 1),
        "segments-2-32": counts(60, "<I", (1 << 32) - 1),
        "blocks-2-32": counts(64, "<I", (1 << 32) - 1),
        "meta-bomb": head(_meta(forge, body, 1 << 28)),
        "meta-no-json": head(_meta(forge, body, 1 << 20)),
    }  # fmt: skip


def _hole(path: Path, size: int) -> None:
    path.write_bytes(b"HGAHEAD\0")
    os.truncate(path, size)


def _meta(forge: ModuleType, body: bytes, n_bytes: int) -> bytes:
    """A head whose text is so many zeros, well compressed."""
    import lz4.frame

    (stored,) = struct.unpack_from("<Q", body, 24)
    frame = lz4.frame.compress(b"0" * n_bytes)
    changed = bytearray(body[: len(body) - stored])
    struct.pack_into("<QQ", changed, 16, n_bytes, len(frame))
    return bytes(forge.sealed_head(bytes(changed) + frame))


LOOP: Final = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
TEMPLATES: Final = {
    "loop": LOOP,
    "loop-of-loops": LOOP * 200,
    "attribute": "{{ messages.__class__.__mro__ }}",
    "attribute-by-filter": "{{ messages|attr('__class__') }}",
    "subclasses": "{{ ''.__class__.__base__.__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch owned') }}",
    "format": "{{ '{0.__class__}'.format(messages) }}",
    "format-width": "{{ '%999999999d' % 1 }}",
    "string-bomb": "{% set x = 'aaaaaaaaaa' * 999999999 %}{{ x }}",
    "list-bomb": "{% set x = [0] * 999999999 %}",
    "doubling": "{% set ns = namespace(x='aaaaaaaa') %}"
    "{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "join-bomb": "{{ range(99999999)|join('aaaaaaaaaaaaaaaa') }}",
    "center": "{{ 'a'|center(999999999) }}",
    "indent": "{{ 'a\n'|indent(999999999) }}",
    "replace": "{{ ('a' * 10000)|replace('a', 'a' * 10000)|replace('a', 'a' * 10000) }}",
    "json-bomb": "{{ messages|tojson(indent=999999999) }}",
    "recursive-macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive-loop": "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends '/etc/passwd' %}",
    "nested-lists": "{{ " + "[" * 2000 + "]" * 2000 + " }}",
    "nested-blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "unclosed": "{% for",
    "long-number": "{{ " + "9" * 30_000 + " }}",
    "regular-expression": "{{ 'a'|urlize }}",
    "raises": "{{ raise_exception('no\nway') }}",
    "undefined": "{{ nothing.at.all }}",
    "divides-by-zero": "{{ 1 // 0 }}",
    "text-in-a-loop": "{% for i in range(100000) %}{{ 'x' * 100000 }}{% endfor %}",
    "date-bomb": "{{ strftime_now('%1000000000d') }}",
    "repeated-list": "{{ ('a ' * 50000).split() * 100000 }}",
    "reversed-bomb": "{{ ('a' * 10000)[::-1] * 10000 }}",
    "dictionary-bomb": "{% set d = dict() %}{% for i in range(10000000) %}"
    "{% set _ = d.update({i: i}) %}{% endfor %}",
    "doubled-lists": "{% set ns = namespace(a=[]) %}{% for i in range(100) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}",
    "tree-of-macros": "{% macro m(n) %}{% for i in range(10) %}{{ m(n + 1) if n < 9 else 'a' }}"
    "{% endfor %}{% endmacro %}{{ m(0) }}",
    "round": "{{ 1.5|round(999999999) }}",
    "width-of-a-format": "{{ '%*d' % (999999999, 1) }}",
    "batch": "{{ [1]|batch(999999999, 0)|list }}",
    "slice": "{{ [1]|slice(99999999)|list }}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "cycler": "{{ cycler(*range(99999999)) }}",
    "list-in-itself": "{% set x = [] %}{% set _ = x.append(x) %}{{ x|tojson }}",
    "sort": "{{ range(9999999)|sort }}",
    "groups": "{{ range(999999)|groupby('real')|list }}",
    "power-of-powers": "{{ 2 ** 99999 ** 2 }}",
    "product": "{{ (2 ** 60000) * (2 ** 60000) }}",
    "padding": "{{ 'a'.ljust(999999999) }}",
    "zeros": "{{ 'a'.zfill(999999999) }}",
    "tabs": "{{ '\t'.expandtabs(999999999) }}",
    "translate": "{{ 'a'.translate({97: 'b' * 99999}) }}",
    "replace-nothing": "{{ ('x' * 60000).replace('', 'y' * 60000) }}",
    "join-texts": "{{ ('x' * 60000).join('y' * 60000) }}",
    "takes-the-messages": "{% set _ = messages.clear() %}{{ messages[0] }}",
    "beyond-the-messages": "{{ messages[99].role }}",
}  # fmt: skip
"""Chat templates that a run refuses: what they try is in their names."""


def with_template(raw: bytes, forge: ModuleType, template: str) -> bytes:
    """A packed file with another chat template."""

    def change(index: dict[str, Any]) -> None:
        index["tokenizer"]["chat_template"] = template

    return bytes(forge.edited_index(raw, change))


def texts() -> dict[str, bytes]:
    """Inputs that are no text, or too much of it."""
    return {
        "binary": bytes(range(256)) * 16,
        "zero-byte": b"hello\0world",
        "not-utf-8": b"caf\xe9",
        "half-a-character": "\u00e9".encode()[:1],
        "surrogates": b"\xed\xa0\x80",
        "utf-16": "hello".encode("utf-16"),
        "one-line-of-100-mb": b"word and " * (100_000_000 // 9),
        "one-word-of-100-mb": b"a" * 100_000_000,
        "spaces-of-100-mb": b"a" + b" " * 100_000_000,
    }


def _npy(shape: str, data: bytes = b"", descr: str = "<i8") -> bytes:
    """A numpy file with any shape in its header."""
    head = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (63 - (10 + len(head)) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head + data


def _npz(**members: bytes) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return raw.getvalue()


def token_files() -> dict[str, bytes]:
    """Files of token ids that are none; the pickles would make a file `owned`."""
    pickled = b"cos\nsystem\n(S'touch owned'\ntR."
    objects = _npy("(1,)", pickled, "|O")
    one = _npy("()", struct.pack("<q", 1))
    return {
        "empty.npy": b"",
        "pickle.npy": pickled,
        "objects.npy": objects,
        "elements-2-60.npy": _npy("(1152921504606846976,)"),
        "elements-2-33.npy": _npy("(8589934592,)"),
        "product.npy": _npy("(4611686018427387904, 4)"),
        "negative.npy": _npy("(-5,)"),
        "short.npy": _npy("(100,)", bytes(10)),
        "nested.npy": _npy("(" * 3000 + ")" * 3000),
        "floats.npy": _npy("(10,)", bytes(80), "<f8"),
        "ids-2-62.npy": _npy("(100,)", struct.pack("<q", 1 << 62) * 100),
        "objects.npz": _npz(needle_a=objects, answer_a=one),
        "bomb.npz": _npz(needle_a=_npy("(40000000,)", bytes(320_000_000)), answer_a=one),
        "no-needle.npz": _npz(answer_a=one),
        "no-answer.npz": _npz(needle_a=_npy("(100,)", bytes(800))),
        "cut.npz": _npz(needle_a=objects)[:100],
    }
