"""Real vocabularies: llama.cpp's ids on its reference text, and a plain transcription of
SentencePiece's merging on everything else."""

import heapq
import json
import random
from pathlib import Path

import pytest

from hga.runtime.tokenizer import Tokenizer, spec_from_gguf
from hga.tools.sources import open_source

pytestmark = pytest.mark.oracle

VARIED = (
    "",
    " ",
    "  two spaces,   three,\ttab\t\ttabs\n\n\nlines \n \n",
    "def f(x):\n    return {'a': x ** 2, \"b\": [1, 22, 333, 4444]}  # 3.14159e-10\n",
    "naïve café, straße, Ωμέγα, привет, 日本語の文章, 한국어, हिन्दी, עברית, العربية",
    "e\u0301 \u200d\ufeff\u00a0|\u2028|\u0085| \x00\x7f",
    "👩‍👩‍👧‍👦 🇫🇷 👍🏽 𝒳𝓎 \U000e0041",
    "<html><h1>x</h1><s>no</s> &amp; </div>",
    "==== ---- ******** ........ ,,,,,, ~~~~~~~ 00000000000000000",
    "<0x0A> <|im_start|>user <start_of_turn> <bos> [multimodal] ▁▁ ▁",
)
POOLS = (
    *("ab ", "aA -", "=-_*#.", "0123456789. ,", "\n\t ", "日本語中文漢字", "ёж привет", "हिन्दी"),
    *(
        "👩‍👧🇫🇷🏽",
        "<>/hul1234span",
        "▁ a",
        "한국어",
        "\x00\x7f\x85",
        "SRdifformul=",
        "\"'`{}[]();:",
    ),
)


def metadata(path: Path) -> dict:
    with open_source(path) as source:
        return dict(source.metadata)


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf):
    return Tokenizer(spec_from_gguf(metadata(smollm2_gguf)))


@pytest.fixture(scope="module")
def gemma_metadata(gemma_gguf):
    return metadata(gemma_gguf)


@pytest.fixture(scope="module")
def gemma(gemma_metadata):
    return Tokenizer(spec_from_gguf(gemma_metadata))


def reference(shared_dir, name):
    chunks = json.loads((shared_dir / "reference" / f"{name}.json").read_text())["tokens"]
    text = (shared_dir / "texts" / "addresses.txt").read_bytes()[:40_000].decode()
    return text, [token for chunk in chunks for token in chunk]


def check_against_llama_cpp(tokenizer, text, expected):
    ids = tokenizer.encode(text)
    start = [] if tokenizer.bos is None else [tokenizer.bos]
    assert (start + ids)[: len(expected)] == expected
    assert tokenizer.decode(ids) == text


def test_smollm2_gives_the_ids_of_llama_cpp(smollm2, shared_dir):
    check_against_llama_cpp(smollm2, *reference(shared_dir, "smollm2-135m-instruct-q4_1"))
    assert (smollm2.bos, smollm2.spec.bos, smollm2.eos) == (None, 1, {0, 2})
    assert smollm2.n_vocab == 49_152


def test_gemma_gives_the_ids_of_llama_cpp(gemma, shared_dir):
    check_against_llama_cpp(gemma, *reference(shared_dir, "gemma3-270m-q4_k_m"))
    assert (gemma.bos, gemma.eos, gemma.n_vocab) == (2, {1, 106}, 262_144)


class PlainSentencePiece:
    """Merges the adjacent pair with the best score, leftmost first, after cutting the text at
    user-defined tokens, longest first: llama.cpp's way, in its order."""

    def __init__(self, metadata):
        tokens = metadata["tokenizer.ggml.tokens"]
        types = metadata["tokenizer.ggml.token_type"]
        self.ids = {token: number for number, token in enumerate(tokens)}
        self.scores = metadata["tokenizer.ggml.scores"]
        user = [token for token, kind in zip(tokens, types) if kind == 4]
        self.user = sorted(user, key=lambda token: -len(token.encode()))

    def encode(self, text):
        fragments = [text] if text else []
        for token in (token for token in self.user if token in text):
            cut = []
            for fragment in fragments:
                if isinstance(fragment, int):
                    cut.append(fragment)
                    continue
                for i, piece in enumerate(fragment.split(token)):
                    cut += [self.ids[token]] * (i > 0) + [piece] * (piece != "")
            fragments = cut
        out = []
        for fragment in fragments:
            out += [fragment] if isinstance(fragment, int) else self.merge(fragment)
        return out

    def merge(self, text):
        pieces = list(text.replace(" ", "▁"))
        after = [*range(1, len(pieces)), -1]
        before = list(range(-1, len(pieces) - 1))
        queue = []

        def offer(left, right):
            joined = pieces[left] + pieces[right]
            if left >= 0 and right >= 0 and joined in self.ids:
                heapq.heappush(queue, (-self.scores[self.ids[joined]], left, right, len(joined)))

        for i in range(len(pieces) - 1):
            offer(i, i + 1)
        while queue:
            _, left, right, size = heapq.heappop(queue)
            if not pieces[left] or not pieces[right]:
                continue
            if len(pieces[left]) + len(pieces[right]) != size:
                continue
            pieces[left], pieces[right] = pieces[left] + pieces[right], ""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        out = []
        for piece in filter(None, pieces):
            known = self.ids.get(piece)
            out += (
                [known] if known is not None else [self.ids[f"<0x{b:02X}>"] for b in piece.encode()]
            )
        return out


def test_gemma_merges_as_sentencepiece_does(gemma, gemma_metadata):
    plain = PlainSentencePiece(gemma_metadata)
    rng = random.Random(0)
    tokens = gemma_metadata["tokenizer.ggml.tokens"]
    texts = list(VARIED)
    for _ in range(500):
        pool = rng.choice(POOLS)
        texts.append("".join(rng.choice(pool) for _ in range(rng.randrange(1, 80))))
        texts.append("".join(rng.choice(rng.choice(POOLS)) for _ in range(rng.randrange(1, 60))))
        words = (tokens[rng.randrange(500, 236_000)].replace("▁", " ") for _ in range(8))
        texts.append("".join(word[rng.randrange(3) :] for word in words))
        texts.append("".join(rng.choice(pool) * rng.randrange(1, 90) for _ in range(2)))
        codes = (
            rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000))) for _ in "12345"
        )
        texts.append("".join(map(chr, codes)))
    for text in texts:
        ids = gemma.encode(text)
        assert ids == plain.encode(text), repr(text)
        assert gemma.decode(ids) == text.replace("▁", " ")


def test_round_trip_and_stream_of_byte_level_pieces(smollm2):
    for text in VARIED:
        text = text.replace("\U000e0041", "")  # Its first byte is no token of SmolLM2's.
        ids = smollm2.encode(text)
        assert smollm2.decode(ids) == text
        stream = smollm2.decoder()
        pushed = [stream.push(token) for token in ids]
        assert "".join(pushed) + stream.flush() == text
        assert all("\ufffd" not in piece for piece in pushed)


@pytest.mark.parametrize("name", ["smollm2", "gemma"])
def test_plain_text_never_makes_a_control_token(name, request):
    tokenizer = request.getfixturevalue(name)
    control = {token.id for token in tokenizer.spec.control}
    assert control
    for token in tokenizer.spec.control:
        text = f"a{token.text}b {token.text}"
        assert control.isdisjoint(tokenizer.encode(text))
        assert tokenizer.encode(text, special=True).count(token.id) == 2
        assert tokenizer.decode([token.id]) == ""
        assert tokenizer.token_id(token.text) == token.id


def test_gemma_takes_user_defined_tokens_as_text(gemma):
    assert gemma.encode("\n\n\n") == [109]
    assert gemma.encode("a    b")[1] == 140
    assert gemma.encode("\n" * 40) == [137, 115]
    assert gemma.decode([109, 140]) == "\n\n\n    "
