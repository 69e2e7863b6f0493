"""A small engine without a model, for tests of what tools do around one."""

import codecs
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hga.runtime.expert_reads import ExpertReads

START, END, BOS = 257, 258, 256
HE = 300
VOCAB = 320


class FakeTokenizer:
    """Bytes are ids; `he` is one token, so a model may spell it in two ways."""

    bos = BOS
    eos = frozenset({END})
    n_vocab = VOCAB
    spec = SimpleNamespace(add_bos=False)

    def encode(self, text, *, special=False):
        ids, data, i = [], text.encode(), 0
        while i < len(data):
            if data[i : i + 2] == b"he":
                ids.append(HE)
                i += 2
            else:
                ids.append(data[i])
                i += 1
        return ids

    def piece(self, number):
        return b"he" if number == HE else bytes([number]) if number < 256 else b""

    def decoder(self):
        return FakeDecoder()

    def decode(self, ids):
        decoder = FakeDecoder()
        return "".join(map(decoder.push, ids)) + decoder.flush()


class FakeDecoder:
    def __init__(self):
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token):
        data = b"he" if token == HE else bytes([token]) if token < 256 else b""
        return self._bytes.decode(data)

    def flush(self):
        return self._bytes.decode(b"", final=True)


class FakeTemplate:
    """ROLE + text + END per message; `strips` drops the replies of earlier turns."""

    def __init__(self, strips=False):
        self.strips = strips

    def render_ids(self, messages, tokenizer, add_generation_prompt=True):
        ids = [BOS]
        for message in messages:
            text = message["content"]
            if self.strips and message["role"] == "assistant":
                text = text.upper()
            ids += [START, ord(message["role"][0]), *tokenizer.encode(text), END]
        return [*ids, START, ord("a")] if add_generation_prompt else ids


class FakeSession:
    """Replies from a script; each reply is the ids it yields, END included where it stops."""

    def __init__(self, engine, script):
        self._engine = engine
        self._script = script
        self.tokens = []
        self.fed = []
        self.truncated = []
        self.attention, self.budget = "hga", "auto"
        self.stop_reason = "eos"
        self.on_token = None
        self.measure_recall = False
        self.prefill = "exact"
        self.reset_stats()

    kv_bytes = 4096
    saved = None
    on_disk = False

    def close(self):
        return None

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        return None

    def last_route(self):
        return None

    def reset_stats(self):
        self.stats = SimpleNamespace(
            attended_mean=12.0, kv_bytes=4096, read_bytes=0, decode_tokens=0, prompt_tokens=0,
            reused_tokens=0, prefill_s=0.0, decode_s=0.0, index_bytes=0, mass_recall=None,
            kv_hit_rate=None, expert_hit_rate=None, disk_bytes=0, stall_s=0.0,
            experts=ExpertReads(),
        )  # fmt: skip

    def fork_point(self, ids):
        n = 0
        while n < min(len(ids), len(self.tokens)) and ids[n] == self.tokens[n]:
            n += 1
        return n

    def truncate(self, n):
        assert 0 <= n <= len(self.tokens)
        self.truncated.append(n)
        del self.tokens[n:]

    def feed(self, ids, progress=None):
        assert ids, "nothing to feed"
        for i, token in enumerate(ids):
            if progress is not None:
                progress(i, len(ids))
            self.tokens.append(token)
        self.fed.append(list(ids))

    def generate(self, sampler, max_tokens, stop_ids):
        reply = self._script.pop(0) if self._script else [ord("."), END]
        for i, token in enumerate(reply):
            if i == max_tokens:
                self.stop_reason = "length"
                return
            self.tokens.append(token)
            if token in stop_ids:
                self.stop_reason = "eos"
                return
            yield token
            if self.on_token is not None:
                self.on_token(token)
        self.stop_reason = "length"

    def logits_of(self, ids):
        """A deterministic model: the next token is likely the last one plus one."""
        logits = np.zeros(VOCAB, np.float32)
        shift = 1 if self.attention == "dense" else 2
        logits[(ids[-1] + 1) % VOCAB] = 4.0 / shift
        return logits

    def step(self, token):
        self.tokens.append(token)
        stats = self.stats
        stats.decode_tokens += 1
        stats.read_bytes += 1000
        stats.index_bytes += 10 * (self.attention != "dense")
        stats.mass_recall = 0.5 if self.measure_recall else None
        return self.logits_of(self.tokens)

    def score(self, ids):
        for begin in range(0, len(ids), 5):
            rows = []
            for token in ids[begin : begin + 5]:
                self.tokens.append(token)
                rows.append(self.logits_of(self.tokens))
            yield np.stack(rows)


class FakeEngine:
    """The Engine API over one fake session per call."""

    def __init__(self, script=(), *, template=True, ctx=200, generation=None, strips=False):
        self.tokenizer = FakeTokenizer()
        self.template = FakeTemplate(strips) if template else None
        self.ctx = ctx
        self.generation = generation or {}
        self.backend = "fake: 1 thread"
        self.io = self.experts = None
        self.placement = SimpleNamespace(on_disk=False)
        self.notices = []
        self.options = SimpleNamespace(
            mem=None,
            attention="hga",
            budget="auto",
            prefill="exact",
            sketch_bits=2,
            kv_type="bf16",
        )
        self.model = SimpleNamespace(digest="fake")
        self.geometry = SimpleNamespace(
            layers=(0, 0), block_kv_bytes=12800, page_bytes=lambda layer: 3200
        )
        self.plan = SimpleNamespace(architecture="fake", layers=(0, 0), vocab_size=VOCAB)
        self.script = [list(reply) for reply in script]
        self.sessions = []
        self.sessions_dir = Path("nowhere")

    def session(self, name=None):
        assert name is None
        self.sessions.append(FakeSession(self, self.script))
        return self.sessions[-1]

    def resident_bytes(self):
        return 1 << 20

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        return None


def says(text, *, ends=True):
    """The ids of a reply as a model would write it: letter by letter, then END."""
    return [*text.encode(), *([END] if ends else [])]


@pytest.fixture
def fake_engine():
    """The class of the fake engine."""
    return FakeEngine


@pytest.fixture
def say():
    """`says`."""
    return says


@pytest.fixture
def open_screen(load_module):
    """open_screen(words, environ, code=…, size=(rows, columns)) -> a Screen, closed at the end."""
    opened = []

    def go(*given, **options):
        module = load_module(Path(__file__).with_name("terminal_screen.py"))
        opened.append(module.Screen(*given, **options))
        return opened[-1]

    yield go
    for screen in opened:
        screen.close()


@pytest.fixture
def own_folders(tmp_path, monkeypatch):
    """Caches, state and configuration of the test are its own; no HGA_ variable leaks in."""
    for kind in ("CACHE", "STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind.lower()))
    for name in list(os.environ):
        if name.startswith("HGA_") and not name.startswith("HGA_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture
def hga_eval(fake_engine, monkeypatch, capsys, own_folders):
    """hga_eval(words, **engine options) -> (exit code, JSON or None, stderr)."""
    import contextlib

    from hga.tools import cli
    from hga.tools import eval as eval_module

    def go(*words, **options):
        @contextlib.contextmanager
        def opened(*given):
            yield fake_engine(**options)

        monkeypatch.setattr(eval_module, "open_engine", opened)
        code = cli.main(["eval", *map(str, words)])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return go
