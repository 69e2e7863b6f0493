"""The same seed gives the same tokens, sampled ones, whatever the machine is like: threads, the way
the disk is read, where keys, values and experts lie and how much of them, hints, a restart."""

import json

import pytest

PROMPT = "the quick brown fox jumps over the lazy dog. " * 3 + "So?"
SAMPLED = ("-n", "24", "--temp", "0.9", "-s", "11", "--json", "--quiet")
WAYS = {
    "one thread": ["-t", "1"],
    "three threads": ["-t", "3"],
    "on disk": ["--kv", "disk"],
    "on disk, one thread": ["--kv", "disk", "-t", "1"],
    "by io_uring": ["--kv", "disk", "--io", "uring"],
    "by threads": ["--kv", "disk", "--io", "threads"],
    "mapped": ["--kv", "disk", "--io", "mmap"],
}
OF_EXPERTS = {
    "least experts": ["--expert-cache", "200k"],
    "few experts": ["--expert-cache", "400k"],
    "no hints": ["--expert-cache", "400k", "--expert-hints", "off"],
    "hints": ["--expert-cache", "400k", "--expert-hints", "on"],
    "all of it on disk": ["--expert-cache", "400k", "--kv", "disk", "--io", "mmap"],
}


@pytest.fixture
def tokens(hga):
    """tokens(model, prompt, *flags): the ids of an answer."""

    def ask(model, prompt, *words):
        code, out, err = hga("run", model, "-p", prompt, *SAMPLED, *words)
        assert code == 0, err
        return json.loads(out.splitlines()[-1])["tokens"]

    return ask


def test_ways_of_a_dense_model(tokens, small):
    expected = tokens(small, PROMPT, "-t", "2")
    assert len(set(expected)) > 3, "an answer that could not differ"
    assert tokens(small, PROMPT, "-t", "2", "-s", "12") != expected
    for name, words in WAYS.items():
        assert tokens(small, PROMPT, *words) == expected, name


@pytest.mark.slow
def test_ways_of_experts(tokens, experts):
    expected = tokens(experts, PROMPT, "-t", "2")
    assert len(set(expected)) > 3, "an answer that could not differ"
    for name, words in {**OF_EXPERTS, **WAYS}.items():
        assert tokens(experts, PROMPT, *words) == expected, name


@pytest.mark.parametrize("kv", ["ram", "disk"])
def test_a_restart_between_two_turns(hga, tokens, small, tmp_path, kv):
    lines = f"{PROMPT}\nand then?\n".encode()
    asked = tmp_path / "asked"
    asked.write_bytes(lines)
    with asked.open("rb") as given:
        code, out, err = hga("run", small, *SAMPLED, "--kv", kv, stdin=given)
    assert code == 0, err
    turns = [json.loads(line)["tokens"] for line in out.splitlines() if line.startswith('{"')]
    words = ["--session", "s", "--kv-dir", tmp_path, "--kv", kv]
    again = [tokens(small, text, *words) for text in (PROMPT, "and then?")]
    assert len(turns) == 2 and again == turns
