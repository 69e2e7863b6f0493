"""Every flag of every command, as data: names, the parser of its value, help.

The command line, the environment (`HGA_` and the name) and the configuration file are all read
through this table, so a value means the same wherever it is written. A flag that a later version
will offer is listed too, hidden, and refuses every value by name instead of ignoring it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hga.tools.errors import UsageError


@dataclass(frozen=True, slots=True)
class Flag:
    """One option. `name` is the attribute, the configuration key and, in capitals after `HGA_`,
    the environment variable; `parse` turns text into the value or raises ValueError. A switch
    takes no value on the command line; a counter is a switch that may be repeated. Values of
    `excludes` from a weaker source are dropped when this flag is given."""

    name: str
    options: tuple[str, ...]
    parse: Callable[[str], object]
    help: str
    metavar: str = ""
    group: str = "options"
    default: object = None
    switch: bool = False
    counter: bool = False
    hidden: bool = False
    excludes: tuple[str, ...] = ()


def parse_switch(text: str) -> bool:
    """1/true/yes/on or 0/false/no/off."""
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off", ""):
        return False
    raise UsageError(f"{text!r} is neither true nor false")


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A parser of whole numbers between `low` and `high`, both included."""
    bounds = f"from {low}" if high is None else f"from {low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise UsageError(f"{text!r} is not a whole number") from None
        if value < low or (high is not None and value > high):
            raise UsageError(f"{value} is out of range: expected a whole number {bounds}")
        return value

    return parse


def number(low: float, high: float = math.inf, *, above: bool = False) -> Callable[[str], float]:
    """A parser of finite numbers between `low` (not itself allowed when `above`) and `high`."""
    bounds = f"{'above' if above else 'from'} {low:g}"
    bounds += "" if math.isinf(high) else f" to {high:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise UsageError(f"{text!r} is not a number") from None
        if not math.isfinite(value) or value > high or value < low or (above and value == low):
            raise UsageError(f"{value:g} is out of range: expected a number {bounds}")
        return value

    return parse


def choice(*offered: str) -> Callable[[str], str]:
    """A parser that takes one of the words offered."""

    def parse(text: str) -> str:
        if text not in offered:
            raise UsageError(f"{text!r} is unknown: expected {', '.join(offered)}")
        return text

    return parse


def list_of(parse_one: Callable[[str], object]) -> Callable[[str], tuple[object, ...]]:
    """A parser of comma-separated values, at least one."""

    def parse(text: str) -> tuple[object, ...]:
        parts = [part.strip() for part in text.split(",")]
        if not all(parts):
            raise UsageError(f"{text!r} is not a list: expected values separated by commas")
        return tuple(parse_one(part) for part in parts)

    return parse


def parse_text(text: str) -> str:
    """Text as it is; refuses bytes that are not UTF-8 (they arrive as lone surrogates)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("the text is not valid UTF-8") from None
    return text


def parse_seed(text: str) -> int | None:
    """A seed from 0, or -1 for a new one each time (None)."""
    seed = whole(-1, 2**64 - 1)(text)
    return None if seed == -1 else seed


def parse_predict(text: str) -> int | None:
    """A number of tokens from 1, or -1 for no limit but the context (None)."""
    if text.strip() == "-1":
        return None
    return _tokens(text)


def _tokens(text: str) -> int:
    from hga.runtime.options import parse_tokens

    return parse_tokens(text)


def _size(text: str) -> int:
    from hga.runtime.options import parse_size

    return parse_size(text)


def _budget(text: str) -> str:
    from hga.runtime.options import parse_budget

    parse_budget(text)
    return text.strip()


def _offered(name: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        from hga.runtime.options import require_available

        require_available(name, text)
        return text

    return parse


def _later(text: str) -> object:
    raise UsageError("not available in this version")


_attention = _offered("attention")

MODEL = Flag(
    "model", ("-m", "--model"), parse_text,
    "packed file, GGUF file, safetensors folder, demo or gemma (default: demo)",
    "MODEL", "model",
)  # fmt: skip
JSON = Flag(
    "json", ("--json",), parse_switch, "end standard output with one JSON object of figures",
    group="output", default=False, switch=True,
)  # fmt: skip
QUIET = Flag(
    "quiet", ("--quiet",), parse_switch, "no notices and no progress, errors only",
    group="output", default=False, switch=True,
)  # fmt: skip
VERBOSE = Flag(
    "verbose", ("-v", "--verbose"), whole(0), "say more; twice: a traceback with an error",
    group="output", default=0, switch=True, counter=True,
)  # fmt: skip
CTX = Flag(
    "ctx", ("-c", "--ctx", "--ctx-size"), _tokens,
    "longest conversation in tokens, such as 8192 or 64k (default: the model's own)",
    "N", "model",
)  # fmt: skip
GEMMA = Flag(
    "accept_gemma_terms", ("--accept-gemma-terms",), parse_switch,
    "accept the Gemma Terms of Use before `gemma` is fetched",
    group="model", default=False, switch=True,
)  # fmt: skip
THREADS = Flag(
    "threads", ("-t", "--threads"), whole(1, 1024), "compute threads (default: all cores)",
    "N", "model",
)  # fmt: skip
MEM = Flag(
    "mem", ("--mem",), _size,
    "memory for weights, KV, indices and scratch together, such as 6g (default: no limit)",
    "SIZE", "model",
)  # fmt: skip
DEVICE = Flag(
    "device", ("--device",), _offered("device"), "cpu", "DEVICE", "model", default="cpu"
)  # fmt: skip
LATER = (
    Flag("io", ("--io",), _offered("io"), "", "MODE", default="auto", hidden=True),
    Flag("kv_dir", ("--kv-dir",), _later, "", "DIR", hidden=True),
    Flag("kv_type", ("--kv-type",), _later, "", "TYPE", hidden=True),
    Flag("session", ("--session",), _later, "", "NAME", hidden=True),
)
ENGINE = (MODEL, CTX, THREADS, MEM, DEVICE, GEMMA)
OUTPUT = (QUIET, VERBOSE)

SAMPLING = (
    Flag("temp", ("--temp", "--temperature"), number(0, 100),
         "temperature; 0 is greedy and deterministic", "X", "sampling"),
    Flag("top_k", ("--top-k",), whole(0), "the K likeliest tokens; 0: all", "K", "sampling"),
    Flag("top_p", ("--top-p",), number(0, 1, above=True),
         "the likeliest tokens of total probability P; 1: all", "P", "sampling"),
    Flag("min_p", ("--min-p",), number(0, 1),
         "tokens at least P times as likely as the likeliest; 0: all", "P", "sampling"),
    Flag("repeat_penalty", ("--repeat-penalty",), number(0.01, 100),
         "divide the logits of recent tokens by X; 1: off", "X", "sampling"),
    Flag("seed", ("-s", "--seed"), parse_seed, "same seed, same tokens; -1: a new one", "N",
         "sampling"),
)  # fmt: skip
ATTENTION = Flag(
    "attention", ("--attention",), _attention,
    "hga: groups of the past chosen per token; dense: all of the past (default: hga)",
    "RULE", "model", default="hga",
)  # fmt: skip
BUDGET = Flag(
    "budget", ("--budget",), _budget,
    "tokens attended per query: auto, a percentage such as 2%%, or a number (default: auto)",
    "TOKENS", "model", default="auto",
)  # fmt: skip

RUN = (
    *ENGINE, ATTENTION, BUDGET,
    Flag("prompt", ("-p", "--prompt"), parse_text, "answer TEXT once and exit", "TEXT", "input",
         excludes=("file",)),
    Flag("file", ("-f", "--file"), parse_text,
         "answer the text of FILE once and exit (-: all of standard input)", "FILE", "input",
         excludes=("prompt",)),
    Flag("system_prompt", ("-sys", "--system-prompt"), parse_text,
         "instructions ahead of the conversation", "TEXT", "input"),
    Flag("no_chat", ("--no-chat",), parse_switch,
         "complete the text as it is, without the model's chat template", group="input",
         default=False, switch=True),
    Flag("predict", ("-n", "--predict", "--n-predict"), parse_predict,
         "longest reply in tokens; -1: no limit (default: -1, 256 without a chat template)", "N",
         "sampling", default=0),
    *SAMPLING, JSON, *OUTPUT, *LATER,
)  # fmt: skip

PACK = (
    Flag("output", ("-o", "--output"), Path, "packed file to write (default: SOURCE's name, .hga)",
         "OUT.hga"),
    Flag("format", ("--format",), choice("auto", "q4", "q8", "fp8", "bf16"),
         "weight format; auto keeps every value of the source (default: auto)", "FORMAT",
         default="auto"),
    GEMMA, *OUTPUT,
)  # fmt: skip
INSPECT = (JSON, *OUTPUT)
VERIFY = OUTPUT

_EVAL_CTX = Flag(
    "ctx", CTX.options, _tokens,
    "tokens of a chunk (ppl, default: 2048), of the whole input (gap, cases)", "N", "model",
)  # fmt: skip
_EVAL_ENGINE = (MODEL, _EVAL_CTX, THREADS, MEM, DEVICE, GEMMA)
_TEXT_FILE = Flag("file", ("-f", "--file"), parse_text, "text file to score", "TEXT", "input",
                  excludes=("token_ids",))  # fmt: skip
EVAL_PPL = (
    *_EVAL_ENGINE,
    Flag("attention", ("--attention",), _attention,
         "dense scores in blocks; hga decodes token by token (default: dense)",
         "RULE", "model", default="dense"),
    BUDGET, _TEXT_FILE,
    Flag("chunks", ("--chunks",), whole(1), "score the first N chunks alone", "N", "input"),
    Flag("score", ("--score",), choice("half", "all"),
         "half: the second half of each chunk, as llama-perplexity; all: every position "
         "(default: half)", "WHICH", "input", default="half"),
    *OUTPUT, *LATER,
)  # fmt: skip
_ARMS = (
    Flag("attention", ("--attention",), list_of(_attention),
         "rules to compare, separated by commas (default: hga)", "LIST", "model",
         default=("hga",)),
    Flag("budget", ("--budget",), list_of(_budget),
         "budgets to compare, such as 1024,2%%,auto (default: auto)", "LIST", "model",
         default=("auto",)),
)  # fmt: skip
EVAL_GAP = (
    *_EVAL_ENGINE, *_ARMS, _TEXT_FILE,
    Flag("token_ids", ("--token-ids",), Path, "token ids, a one-dimensional array of integers",
         "FILE.npy", "input", excludes=("file",)),
    Flag("tail", ("--tail",), _tokens, "tokens decoded through each rule (default: 1024)", "N",
         "input", default=1024),
    *OUTPUT, *LATER,
)  # fmt: skip
EVAL_CASES = (
    *_EVAL_ENGINE, *_ARMS,
    Flag("cases", ("--cases",), Path, "arrays needle_NAME and answer_NAME", "FILE.npz", "input"),
    *OUTPUT, *LATER,
)  # fmt: skip

_counts = list_of(whole(0, 1 << 30))
BENCH = (
    MODEL, THREADS, MEM, DEVICE, GEMMA, ATTENTION, BUDGET,
    Flag("n_prompt", ("-p", "--n-prompt"), _counts, "tokens to prefill (default: 512)", "N,N",
         "tests", default=(512,)),
    Flag("n_gen", ("-n", "--n-gen"), whole(0, 1 << 30), "tokens to decode (default: 128)", "N",
         "tests", default=128),
    Flag("n_depth", ("-d", "--n-depth"), _counts,
         "tokens in the context before a test (default: 0)", "N,N", "tests", default=(0,)),
    Flag("repetitions", ("-r", "--repetitions"), whole(1, 1000),
         "times that a test is repeated (default: 3)", "N", "tests", default=3),
    Flag("output_format", ("-o", "--output-format"), choice("md", "json"),
         "md: a table and the JSON object last; json: the object alone (default: md)", "FORMAT",
         "output", default="md"),
    *OUTPUT, *LATER,
)  # fmt: skip

COMMANDS = {
    "run": RUN, "pack": PACK, "inspect": INSPECT, "verify": VERIFY,
    "bench": BENCH, "eval ppl": EVAL_PPL, "eval gap": EVAL_GAP, "eval cases": EVAL_CASES,
}  # fmt: skip
