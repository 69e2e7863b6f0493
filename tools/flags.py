"""Every flag of every command, as data: names, the parser of its value, help.

The command line, the environment (`HGA_` and the name) and the configuration file are all read
through this table, so a value means the same wherever it is written. A flag that a later version
will offer is listed too, hidden, and refuses every value by name instead of ignoring it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hga.tools.errors import UsageError
from hga.tools.flag_values import (
    choice,
    list_of,
    number,
    one_or_all,
    parse_switch,
    parse_text,
    whole,
)


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


def _session_name(text: str) -> str:
    from hga.runtime.saved import session_folder

    session_folder(Path(), text)
    return text


def _rule(text: str) -> str:
    """An attention rule that a session can be set to; more than `hga run` offers."""
    from hga.kvstore.route import RULES

    if text not in RULES:
        raise UsageError(f"unknown attention {text!r}: expected {', '.join(RULES)}")
    return text


def _offered(name: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        from hga.runtime.options import require_available

        require_available(name, text)
        return text

    return parse


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
EXPERT_CACHE = Flag(
    "expert_cache", ("--expert-cache",), _size,
    "memory for experts of a mixture of experts, such as 2g (default: what --mem leaves)",
    "SIZE", "model",
)  # fmt: skip
EXPERT_HINTS = Flag(
    "expert_hints", ("--expert-hints",), _offered("expert_hints"),
    "read the next layer's experts ahead: on, off, or auto: while that is measured to help "
    "(default: auto)", "HOW", "model", default="auto",
)  # fmt: skip
DEVICE = Flag(
    "device", ("--device",), _offered("device"), "cpu", "DEVICE", "model", default="cpu"
)  # fmt: skip
IO = Flag(
    "io", ("--io",), _offered("io"),
    "how keys and values on disk are read: auto, uring, threads or mmap (default: auto)",
    "MODE", "model", default="auto",
)  # fmt: skip
KV = Flag(
    "kv", ("--kv",), _offered("kv"),
    "where keys and values lie: ram, disk, or auto: in memory if --mem holds them (default: auto)",
    "WHERE", "model", default="auto",
)  # fmt: skip
KV_TYPE = Flag(
    "kv_type", ("--kv-type",), _offered("kv_type"),
    "how keys and values are stored: bf16 (two bytes each, held as float16), or q8: int8 with "
    "scales, half of it (default: bf16)", "TYPE", "model", default="bf16",
)  # fmt: skip
KV_DIR = Flag(
    "kv_dir", ("--kv-dir",), parse_text,
    "folder of saved conversations, and of keys and values on disk (default: hga/sessions in the "
    "state folder, hga/kv in the cache folder)", "DIR", "model",
)  # fmt: skip
ENGINE = (MODEL, CTX, THREADS, MEM, EXPERT_CACHE, EXPERT_HINTS, DEVICE, GEMMA)
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
JSON_SCHEMA = Flag(
    "json_schema", ("-j", "--json-schema"), parse_text,
    "hold replies to a JSON schema, a file or its text", "FILE|TEXT", "sampling",
)  # fmt: skip
ATTENTION = Flag(
    "attention", ("--attention",), _attention,
    "hga: groups of the past chosen per token; hga-paper: the same by the published rule; dense: "
    "all of the past (default: hga)",
    "RULE", "model", default="hga",
)  # fmt: skip
BUDGET = Flag(
    "budget", ("--budget",), _budget,
    "tokens attended per query: auto, a percentage such as 2%%, or a number (default: auto)",
    "TOKENS", "model", default="auto",
)  # fmt: skip

PREFILL = Flag(
    "prefill", ("--prefill",), _offered("prefill"),
    "how prompts attend: exact, or hga: by routed units, several times faster from some ten "
    "thousand tokens on (default: exact)", "HOW", "model", default="exact",
)  # fmt: skip

SKETCH_BITS = Flag(
    "sketch_bits", ("--sketch-bits",), whole(1, 2),
    "bits per dimension of the index that routes: 2, or 1 for half of it, coarser (default: 2)",
    "N", "model", default=2,
)  # fmt: skip

RUN = (
    *ENGINE, ATTENTION, BUDGET, PREFILL, SKETCH_BITS, KV_TYPE, KV, KV_DIR, IO,
    Flag("session", ("--session",), _session_name,
         "a conversation that is saved after every reply: opened, or begun", "NAME", "input"),
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
    JSON_SCHEMA, *SAMPLING, JSON,
    Flag("trace", ("--trace",), Path,
         "write what every token read and waited for, a line of JSON each", "FILE", "output"),
    *OUTPUT,
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
PLAN = (*ENGINE, ATTENTION, BUDGET, SKETCH_BITS, KV_TYPE, KV, JSON, *OUTPUT)
DOCTOR = (THREADS, KV_DIR, IO, JSON, *OUTPUT)
SESSIONS_LIST = SESSIONS_SHOW = (KV_DIR, JSON, *OUTPUT)
SESSIONS_RM = (KV_DIR, *OUTPUT)
SESSIONS_FORK = (
    KV_DIR,
    Flag("turns", ("--turns",), whole(0), "the first N turns alone (default: all)", "N"),
    *OUTPUT,
)

_EVAL_ENGINE = (
    MODEL, THREADS, MEM, EXPERT_CACHE, EXPERT_HINTS, DEVICE, GEMMA, SKETCH_BITS, KV_TYPE,
)  # fmt: skip


def _lengths(about: str) -> Flag:
    return Flag("ctx", CTX.options, list_of(_tokens), about, "LIST", "model")


_TEXT_FILE = Flag("file", ("-f", "--file"), parse_text, "text file to score", "TEXT", "input",
                  excludes=("token_ids",))  # fmt: skip
EVAL_PPL = (
    *_EVAL_ENGINE,
    Flag("ctx", CTX.options, _tokens, "tokens of a chunk (default: 2048)", "N", "model"),
    Flag("attention", ("--attention",), _rule,
         "dense scores in blocks; others decode token by token (default: dense)",
         "RULE", "model", default="dense"),
    BUDGET, _TEXT_FILE,
    Flag("chunks", ("--chunks",), whole(1), "score the first N chunks alone", "N", "input"),
    Flag("score", ("--score",), choice("half", "all"),
         "half: the second half of each chunk, as llama-perplexity; all: every position "
         "(default: half)", "WHICH", "input", default="half"),
    *OUTPUT,
)  # fmt: skip
_RECALL = Flag(
    "recall", ("--recall",), parse_switch,
    "also measure the share of the exact attention mass that was read (slow)", group="model",
    default=False, switch=True,
)  # fmt: skip
_ARMS = (
    Flag("attention", ("--attention",), list_of(_rule),
         "rules to compare, separated by commas: hga, dense, hga-paper (the published rule), "
         "oracle (as hga, but by the true mass) (default: hga)", "LIST", "model", default=("hga",)),
    Flag("budget", ("--budget",), list_of(_budget),
         "budgets to compare, such as 1024,2%%,auto (default: auto)", "LIST", "model",
         default=("auto",)),
    _RECALL,
)  # fmt: skip
_PLOT = Flag("plot", ("--plot",), Path, "draw the result (needs hga[plot])", "OUT.png", "output")
EVAL_GAP = (
    *_EVAL_ENGINE,
    _lengths("lengths of the context; one gives the JSON object, several a list of such objects "
             "under \"depths\""),
    *_ARMS, PREFILL, _TEXT_FILE,
    Flag("token_ids", ("--token-ids",), Path, "token ids, a one-dimensional array of integers",
         "FILE.npy", "input", excludes=("file",)),
    Flag("tail", ("--tail",), _tokens, "tokens decoded through each rule (default: 1024)", "N",
         "input", default=1024),
    Flag("segments", ("--segments",), whole(1), "evenly spaced places of the text to measure at; "
         "from 2 on the interval is over them (default: 1)", "N", "input", default=1),
    _PLOT, *OUTPUT,
)  # fmt: skip
EVAL_CASES = (
    *_EVAL_ENGINE,
    Flag("ctx", CTX.options, _tokens, "longest case in tokens (default: as needed)", "N", "model"),
    *_ARMS,
    Flag("cases", ("--cases",), Path, "arrays needle_NAME and answer_NAME", "FILE.npz", "input"),
    *OUTPUT,
)  # fmt: skip

NEEDLE_KINDS = ("single", "multikey", "multivalue")
RULER_TASKS = ("vt", "cwe", "fwe", "extract")


def _generated(samples: str) -> tuple[Flag, ...]:
    return (
        *_EVAL_ENGINE,
        _lengths("lengths of the context in tokens, question and answer included"),
        *_ARMS,
        Flag("samples", ("--samples",), whole(1), samples, "N", "input", default=1),
        Flag("seed", ("-s", "--seed"), whole(0, 2**32 - 1), "same seed, same cases (default: 0)",
             "N", "input", default=0),
        Flag("haystack", ("--haystack",), list_of(Path), "text files to hide the facts in, in turn "
             "(default: the documentation that comes with Python)", "FILES", "input"),
        Flag("no_chat", ("--no-chat",), parse_switch,
             "continue plain text, without the model's chat template", group="input",
             default=False, switch=True),
    )  # fmt: skip


EVAL_NEEDLE = (
    *_generated("times that every depth is tried, per length and kind (default: 1)"),
    Flag("depths", ("--depths",), whole(1, 100), "places between beginning and end of the context "
         "(default: 9)", "N", "input", default=9),
    Flag("kind", ("--kind",), one_or_all(NEEDLE_KINDS),
         "single: one needle of its template; multikey: eight more of the same; multivalue: four "
         "values of one key, all wanted; all (default: all)", "KIND", "input",
         default=NEEDLE_KINDS),
    _PLOT, *OUTPUT,
)  # fmt: skip
EVAL_RULER = (
    *_generated("documents per task and length (default: 1)"),
    Flag("task", ("--task",), one_or_all(RULER_TASKS),
         "vt: variables that hold a value through assignments; cwe: common words; fwe: frequent "
         "coded words; extract: many facts of one document; all (default: all)", "TASK", "input",
         default=RULER_TASKS),
    Flag("facts", ("--facts",), whole(1, 500), "facts stated and asked per document of extract "
         "(default: 16)", "N", "input", default=16),
    _PLOT, *OUTPUT,
)  # fmt: skip

_counts = list_of(whole(0, 1 << 30))
BENCH = (
    MODEL, THREADS, MEM, EXPERT_CACHE, EXPERT_HINTS, DEVICE, GEMMA, ATTENTION, BUDGET, PREFILL,
    SKETCH_BITS, KV_TYPE, KV, KV_DIR, IO,
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
    _PLOT, *OUTPUT,
)  # fmt: skip

COMMANDS = {
    "run": RUN, "pack": PACK, "inspect": INSPECT, "verify": VERIFY,
    "plan": PLAN, "doctor": DOCTOR,
    "sessions list": SESSIONS_LIST, "sessions show": SESSIONS_SHOW, "sessions rm": SESSIONS_RM,
    "sessions fork": SESSIONS_FORK,
    "bench": BENCH, "eval ppl": EVAL_PPL, "eval gap": EVAL_GAP, "eval cases": EVAL_CASES,
    "eval needle": EVAL_NEEDLE, "eval ruler": EVAL_RULER,
}  # fmt: skip
