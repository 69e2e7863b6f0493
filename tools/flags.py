"""Every flag of every command, as data: names, the parser of its value, help.

The command line, the environment (`HGA_` and the name) and the configuration file are all read
through this table, so a value means the same wherever it is written.
"""

from pathlib import Path

from hga.tools.errors import UsageError
from hga.tools.flag import (
    ATTENTION,
    BUDGET,
    CTX,
    DEVICE,
    ENGINE,
    EXPERT_CACHE,
    EXPERT_HINTS,
    GEMMA,
    GPU_MEM,
    IO,
    JSON,
    JSON_SCHEMA,
    KV,
    KV_DIR,
    KV_TYPE,
    MEM,
    MODEL,
    OUTPUT,
    PREFILL,
    SAMPLING,
    SAMPLING_BUT_SEED,
    SKETCH_BITS,
    THREADS,
    Flag,
    parse_budget,
    parse_predict,
    parse_size,
    parse_tokens,
)
from hga.tools.flag_values import (
    choice,
    list_of,
    number,
    one_or_all,
    parse_switch,
    parse_text,
    whole,
)

__all__ = ["COMMANDS", "Flag"]


def _session_name(text: str) -> str:
    from hga.runtime.saved import session_folder

    session_folder(Path(), text)
    return text


class _Rule:
    """A parser of an attention rule that a session can be set to; more than `hga run` offers."""

    @property
    def words(self) -> tuple[str, ...]:
        from hga.kvstore.route import RULES

        return tuple(RULES)

    def __call__(self, text: str) -> str:
        if text not in self.words:
            raise UsageError(f"unknown attention {text!r}: expected {', '.join(self.words)}")
        return text


_rule = _Rule()


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
    Flag("markdown", ("--markdown",), choice("auto", "on", "off"),
         "style the Markdown of replies on a terminal: on, off, or auto: in a chat, but not JSON "
         "(default: auto)", "WHEN", "output", default="auto"),
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
BATCH = (
    *ENGINE, ATTENTION, BUDGET, PREFILL, SKETCH_BITS, KV_TYPE, KV, KV_DIR, IO,
    Flag("output", ("-o", "--output"), Path, "folder for outputs and the journal; made if missing",
         "OUTDIR", "output"),
    Flag("out", ("--out",), choice("files", "md", "jsonl"),
         "files: one output a file; md or jsonl: all of them in results.md or results.jsonl "
         "(default: files)", "FORM", "output", default="files"),
    Flag("task", ("--task",), parse_text,
         "summarize, or a file with a prompt, in which {document} says where the document goes "
         "(default: summarize; with --schema, what the schema describes)", "TASK", "input"),
    Flag("json_schema", ("--schema", "-j", "--json-schema"), parse_text,
         "answers are JSON of this schema, a file or its text", "FILE|TEXT", "input"),
    Flag("resume", ("--resume",), parse_switch,
         "go on with the batch in OUTDIR: what is done and has not changed is not done again",
         group="input", default=False, switch=True, excludes=("overwrite",)),
    Flag("overwrite", ("--overwrite",), parse_switch, "begin anew over a batch in OUTDIR",
         group="input", default=False, switch=True, excludes=("resume",)),
    Flag("hidden", ("--hidden",), parse_switch,
         "also read hidden and generated files in folders (.git, node_modules, …)",
         group="input", default=False, switch=True),
    Flag("long", ("--long",), choice("reduce", "fail"),
         "documents longer than the context: reduce answers them in parts and merges the answers, "
         "fail reports them (default: reduce)", "HOW", "input", default="reduce"),
    Flag("no_chat", ("--no-chat",), parse_switch,
         "continue plain text, without the model's chat template", group="input", default=False,
         switch=True),
    Flag("ray", ("--ray",), parse_text,
         "hand files to workers on the Ray cluster at ADDRESS (needs hga[cluster])", "ADDRESS",
         "cluster"),
    Flag("ray_workers", ("--ray-workers",), whole(1, 10_000),
         "workers, each with the model open (default: one a node)", "N", "cluster"),
    Flag("predict", ("-n", "--predict", "--n-predict"), parse_tokens,
         "longest reply in tokens (default: 512)", "N", "sampling", default=512),
    *SAMPLING_BUT_SEED,
    Flag("seed", ("-s", "--seed"), whole(0, 2**63 - 1),
         "of every reply: same seed, same replies (default: 0)", "N", "sampling", default=0),
    JSON, *OUTPUT,
)  # fmt: skip
SERVE = (
    *ENGINE, ATTENTION, BUDGET, PREFILL, SKETCH_BITS, KV_TYPE, KV, KV_DIR, IO,
    Flag("host", ("--host",), parse_text, "address to listen on (default: 127.0.0.1)", "ADDRESS",
         "server", default="127.0.0.1"),
    Flag("port", ("--port",), whole(0, 65535), "port; 0: any that is free (default: 8080)", "N",
         "server", default=8080),
    Flag("api_key", ("--api-key",), parse_text,
         "what clients have to send (better in HGA_API_KEY: a command line can be read by others)",
         "KEY", "server"),
    Flag("alias", ("--alias",), parse_text, "the model's name for clients", "NAME", "server"),
    Flag("queue", ("--queue",), whole(1, 10_000),
         "requests that may wait; more are told to come back (default: 64)", "N", "server",
         default=64),
    Flag("timeout", ("--timeout",), number(1, 1e6),
         "seconds from a request's arrival to the end of its reply (default: 3600)", "SECONDS",
         "server", default=3600.0),
    Flag("max_body", ("--max-body",), parse_size, "longest request (default: 16m)", "SIZE",
         "server", default=16 << 20),
    Flag("cors", ("--cors",), list_of(parse_text),
         "sites whose pages may ask, such as https://example.org (default: none)", "ORIGINS",
         "server", default=()),
    *OUTPUT,
)  # fmt: skip
INSPECT = (JSON, *OUTPUT)
VERIFY = (JSON, *OUTPUT)
PLAN = (*ENGINE, ATTENTION, BUDGET, SKETCH_BITS, KV_TYPE, KV, JSON, *OUTPUT)
DOCTOR = (THREADS, KV_DIR, IO, JSON, *OUTPUT)
SESSIONS_LIST = SESSIONS_SHOW = (KV_DIR, JSON, *OUTPUT)
SESSIONS_RM = (KV_DIR, *OUTPUT)
SESSIONS_REPAIR = (CTX, THREADS, MEM, EXPERT_CACHE, EXPERT_HINTS, GEMMA, KV, KV_DIR, IO, *OUTPUT)
SESSIONS_FORK = (
    KV_DIR,
    Flag("turns", ("--turns",), whole(0), "the first N turns alone (default: all)", "N"),
    *OUTPUT,
)

# For who asks everywhere for what these commands always print.
_JSON_ALWAYS = Flag(
    "json", ("--json",), parse_switch, "the same: the last line is a JSON object in any case",
    group="output", default=False, switch=True,
)  # fmt: skip
_EVAL_ENGINE = (
    MODEL, THREADS, MEM, EXPERT_CACHE, EXPERT_HINTS, DEVICE, GPU_MEM, GEMMA, SKETCH_BITS, KV_TYPE,
)  # fmt: skip


def _lengths(about: str) -> Flag:
    return Flag("ctx", CTX.options, list_of(parse_tokens), about, "LIST", "model")


_TEXT_FILE = Flag("file", ("-f", "--file"), parse_text, "text file to score", "TEXT", "input",
                  excludes=("token_ids",))  # fmt: skip
EVAL_PPL = (
    *_EVAL_ENGINE,
    Flag("ctx", CTX.options, parse_tokens, "tokens of a chunk (default: 2048)", "N", "model"),
    Flag("attention", ("--attention",), _rule,
         "dense scores in blocks; others decode token by token (default: dense)",
         "RULE", "model", default="dense"),
    BUDGET, _TEXT_FILE,
    Flag("chunks", ("--chunks",), whole(1), "score the first N chunks alone", "N", "input"),
    Flag("score", ("--score",), choice("half", "all"),
         "half: the second half of each chunk, as llama-perplexity; all: every position "
         "(default: half)", "WHICH", "input", default="half"),
    _JSON_ALWAYS, *OUTPUT,
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
    Flag("budget", ("--budget",), list_of(parse_budget),
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
    Flag("tail", ("--tail",), parse_tokens, "tokens decoded through each rule (default: 1024)", "N",
         "input", default=1024),
    Flag("segments", ("--segments",), whole(1), "evenly spaced places of the text to measure at; "
         "from 2 on the interval is over them (default: 1)", "N", "input", default=1),
    _PLOT, _JSON_ALWAYS, *OUTPUT,
)  # fmt: skip
EVAL_CASES = (
    *_EVAL_ENGINE,
    Flag("ctx", CTX.options, parse_tokens, "longest case in tokens (default: as needed)", "N",
         "model"),
    *_ARMS,
    Flag("cases", ("--cases",), Path, "arrays needle_NAME and answer_NAME", "FILE.npz", "input"),
    _JSON_ALWAYS, *OUTPUT,
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
    _PLOT, _JSON_ALWAYS, *OUTPUT,
)  # fmt: skip
EVAL_RULER = (
    *_generated("documents per task and length (default: 1)"),
    Flag("task", ("--task",), one_or_all(RULER_TASKS),
         "vt: variables that hold a value through assignments; cwe: common words; fwe: frequent "
         "coded words; extract: many facts of one document; all (default: all)", "TASK", "input",
         default=RULER_TASKS),
    Flag("facts", ("--facts",), whole(1, 500), "facts stated and asked per document of extract "
         "(default: 16)", "N", "input", default=16),
    _PLOT, _JSON_ALWAYS, *OUTPUT,
)  # fmt: skip

_counts = list_of(whole(0, 1 << 30))
BENCH = (
    MODEL, THREADS, MEM, EXPERT_CACHE, EXPERT_HINTS, DEVICE, GPU_MEM, GEMMA, ATTENTION, BUDGET,
    PREFILL,
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
    _PLOT, _JSON_ALWAYS, *OUTPUT,
)  # fmt: skip

HELP = (
    Flag("man", ("--man",), parse_switch, "print the manual page (hga help --man | man -l -)",
         default=False, switch=True, excludes=("guide",)),
    Flag("guide", ("--guide",), parse_switch, "print all topics as one Markdown document",
         default=False, switch=True, excludes=("man",)),
    *OUTPUT,
)  # fmt: skip
COMPLETION = OUTPUT

COMMANDS = {
    "run": RUN, "batch": BATCH, "serve": SERVE, "pack": PACK, "inspect": INSPECT, "verify": VERIFY,
    "plan": PLAN, "doctor": DOCTOR,
    "sessions list": SESSIONS_LIST, "sessions show": SESSIONS_SHOW, "sessions rm": SESSIONS_RM,
    "sessions fork": SESSIONS_FORK, "sessions repair": SESSIONS_REPAIR,
    "bench": BENCH, "eval ppl": EVAL_PPL, "eval gap": EVAL_GAP, "eval cases": EVAL_CASES,
    "eval needle": EVAL_NEEDLE, "eval ruler": EVAL_RULER, "help": HELP, "completion": COMPLETION,
}  # fmt: skip
