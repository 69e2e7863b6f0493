"""Tokenizers of Hugging Face folders: same ids as the library gives for the file as it is, roles
from the configuration files, and nothing left in that changes ids unasked."""

import json

import pytest
from tokenizers import Tokenizer as Library

from hga.runtime.tokenizer import Tokenizer, TokenizerError, spec_from_hf

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TEXTS = ("ab a  b", " a", "", "é🙂\n<0x41>", "x\ty  <|u|> [u] z", "bab ba\n\n")

SHORTEN = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}


def special(number, text, **changes):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": text, **flags, "special": True, **changes}


def llama_file():
    """A file as converted from SentencePiece: dummy prefix, byte fallback, BOS by template."""
    tokens = ["<unk>", "<s>", "</s>", *BYTES, "▁a", "ab", "▁", "a", "b", "x", "y", "z"]
    vocab = {token: number for number, token in enumerate(tokens)}
    bos = {"id": "<s>", "ids": [1], "tokens": ["<s>"]}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": 4,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": None,
        "added_tokens": [
            *(special(number, text) for number, text in enumerate(tokens[:3])),
            special(len(tokens), "<|u|>"),
            special(len(tokens) + 1, "[u]", special=False),
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, sequence],
            "pair": [sequence],
            "special_tokens": {"<s>": bos},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [["▁", "a"], ["a", "b"]],
        },
    }


def write(folder, file, **configs):
    (folder / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    for name, content in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def as_it_is(file):
    library = Library.from_str(json.dumps(file))
    library.no_truncation()
    library.encode_special_tokens = True
    return library


def test_needle_checkpoint(needle_moe, shared_dir):
    tokenizer = Tokenizer(spec_from_hf(needle_moe))
    library = Library.from_file(str(needle_moe / "tokenizer.json"))
    text = (shared_dir / "texts" / "moby-dick.txt").read_text(encoding="utf-8")[:50_000]
    ids = tokenizer.encode(text)
    assert ids == library.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert (tokenizer.bos, tokenizer.eos, tokenizer.n_vocab) == (None, {0, 2}, 12_280)
    assert tokenizer.encode("<|im_end|>", special=True) == [2]


def test_same_ids_as_the_file_gives(tmp_path):
    file = llama_file()
    tokenizer = Tokenizer(spec_from_hf(write(tmp_path, file)))
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == as_it_is(file).encode(text, add_special_tokens=False).ids, text
        assert tokenizer.decode(ids) == as_it_is(file).decode(ids, skip_special_tokens=False)
        assert tokenizer.decode(ids) == text or "[u]" in text
    assert tokenizer.encode("<|u|>", special=True) == [267]
    assert tokenizer.encode("a[u]", special=False)[-1] == 268
    assert (tokenizer.bos, tokenizer.eos) == (1, {2})


def test_merges_as_strings(tmp_path):
    file = llama_file()
    expected = spec_from_hf(write(tmp_path, file))
    file["model"]["merges"] = [" ".join(merge) for merge in file["model"]["merges"]]
    assert spec_from_hf(write(tmp_path, file)) == expected


def test_metaspace_prefix(tmp_path):
    file = llama_file()
    file["normalizer"] = None
    file["pre_tokenizer"] = file["decoder"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "always",
        "split": False,
    }
    tokenizer = Tokenizer(spec_from_hf(write(tmp_path, file)))
    assert tokenizer.encode("ab a") == as_it_is(file).encode("ab a", add_special_tokens=False).ids
    assert tokenizer.decode(tokenizer.encode("ab a")) == "ab a"
    file["pre_tokenizer"]["prepend_scheme"] = "never"
    tokenizer = Tokenizer(spec_from_hf(write(tmp_path, file)))
    assert tokenizer.decode(tokenizer.encode("ab a")) == "ab a"


def test_roles_come_from_the_configuration(tmp_path):
    folder = write(
        tmp_path,
        llama_file(),
        tokenizer_config={
            "bos_token": {"content": "<s>", "lstrip": False},
            "eos_token": "</s>",
            "add_bos_token": False,
            "chat_template": [
                {"name": "tool_use", "template": "tools"},
                {"name": "default", "template": "hello"},
            ],
        },
        generation_config={"eos_token_id": [2, 267], "bos_token_id": 1},
        config={"eos_token_id": 5, "vocab_size": 300},
    )
    spec = spec_from_hf(folder)
    assert (spec.bos, spec.add_bos, spec.eos) == (1, False, (2, 5, 267))
    assert spec.chat_template == "hello"
    assert spec.template_variables == {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "chat_template.jinja").write_text("from the file", encoding="utf-8")
    assert spec_from_hf(folder).chat_template == "from the file"


def test_model_without_template_has_none(tmp_path):
    assert spec_from_hf(write(tmp_path, llama_file())).chat_template is None


def test_added_tokens_keep_their_ids_without_the_control_tokens(tmp_path):
    """The library numbers added tokens one after another; taking some out must not shift them."""
    file = llama_file()
    n = len(file["model"]["vocab"])
    file["added_tokens"] += [special(n + 2 + i, f"<|s{i}|>") for i in range(5)]
    file["added_tokens"].append(special(n + 7, "[last]", special=False))
    tokenizer = Tokenizer(spec_from_hf(write(tmp_path, file)))
    assert tokenizer.encode("[last]") == [n + 7]
    assert tokenizer.decode([n + 7, n + 2]) == "[last]"


def test_tiny_checkpoint(tiny_hf):
    tokenizer = Tokenizer(spec_from_hf(tiny_hf("llama")))
    assert tokenizer.bos is None and tokenizer.n_vocab == 320
    assert tokenizer.decode(tokenizer.encode("the fox 123\n")) == "the fox 123\n"


def change(path, value):
    def apply(file):
        target = file
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change(["model", "type"], "Unigram"), "'Unigram' is not supported"),
        (change(["model"], None), "None is not supported"),
        (change(["model", "vocab"], {}), "vocab table"),
        (change(["model", "vocab", "a"], -1), "expected an id, found -1"),
        (change(["model", "vocab", "a"], 7), "two tokens have the same id"),
        (change(["model", "vocab", "a"], 10**9), "expected 1..2,097,152 tokens"),
        (change(["model", "merges", 0], "▁ a b"), "merge 0: expected two parts"),
        (change(["model", "merges", 0], ["", "a"]), "merge 0: expected two parts"),
        (change(["model", "merges", 0], ["a", "q"]), "merge 0: 'q' is not a token"),
        (change(["model", "merges", 0], ["b", "a"]), "merge 0: 'ba' is not a token"),
        (change(["model", "continuing_subword_prefix"], "é"), "continuing_subword_prefix"),
        (change(["model", "end_of_word_suffix"], "</w>"), "end_of_word_suffix"),
        (change(["model", "dropout"], 0.5), "dropout"),
        (change(["model", "byte_fallback"], False), "would be lost"),
        (change(["normalizer"], {"type": "Precompiled", "precompiled_charsmap": "AA"}), "Precomp"),
        (change(["pre_tokenizer"], {"type": "Nonsense"}), "'Nonsense' is not supported"),
        (change(["decoder"], {"type": "WordPiece"}), None),
        (change(["added_tokens", 0], {"id": "x"}), "expected content and id"),
        (change(["added_tokens", 3, "id"], 5), "two tokens have the same id"),
        (change(["added_tokens", 0, "id"], 9), "expected id 0, found 9"),
        (change(["added_tokens", 0, "single_word"], True), "single_word"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, damage, message):
    file = llama_file()
    damage(file)
    if message is None:
        file["normalizer"] = None
        message = "'WordPiece' is not supported"
    with pytest.raises(TokenizerError) as caught:
        spec_from_hf(write(tmp_path, file))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[1]", "expected an object"),
        ('{"model": {"type": "BPE", "type": "BPE"}}', "'type' occurs twice"),
        ("[" * 100_000, "recursion"),
        ('{"a": "\ud800"}', "UTF-8"),
    ],
)
def test_files_that_are_no_object_are_refused(tmp_path, text, message):
    (tmp_path / "tokenizer.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(TokenizerError, match=message):
        spec_from_hf(tmp_path)


def test_ids_past_the_embedding_table_are_refused(tmp_path):
    write(tmp_path, llama_file(), config={"vocab_size": 268})
    with pytest.raises(TokenizerError, match="id 268 is past the model's vocabulary"):
        spec_from_hf(tmp_path)
    write(tmp_path, llama_file(), config={"vocab_size": 1, "text_config": {"vocab_size": 269}})
    assert spec_from_hf(tmp_path).n_vocab == 269


def test_wrong_roles_are_refused(tmp_path):
    write(tmp_path, llama_file(), generation_config={"eos_token_id": ["x"]})
    with pytest.raises(TokenizerError, match="eos_token_id: expected token ids"):
        spec_from_hf(tmp_path)
    write(tmp_path, llama_file(), generation_config={"eos_token_id": 4000})
    with pytest.raises(TokenizerError, match="eos: expected an id below 269, found 4000"):
        spec_from_hf(tmp_path)


def test_files_that_are_too_large_are_refused_unread(tmp_path):
    with open(tmp_path / "tokenizer.json", "wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(TokenizerError, match="at most 67,108,864 bytes"):
        spec_from_hf(tmp_path)


def test_missing_file(tmp_path):
    with pytest.raises(TokenizerError, match="missing"):
        spec_from_hf(tmp_path)
