"""Flag: one option as data, and the flags that several commands take."""

from collections.abc import Callable
from dataclasses import dataclass

from hga.tools.flag_values import ListOf, number, parse_switch, parse_text, whole


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

    @property
    def words(self) -> tuple[str, ...]:
        """The words that the value is one of, or a list of; empty where it is something else."""
        parse = self.parse.parse_one if isinstance(self.parse, ListOf) else self.parse
        found: tuple[str, ...] = getattr(parse, "words", ())
        return found


def parse_seed(text: str) -> int | None:
    """A seed from 0, or -1 for a new one each time (None)."""
    seed = whole(-1, 2**64 - 1)(text)
    return None if seed == -1 else seed


def parse_predict(text: str) -> int | None:
    """A number of tokens from 1, or -1 for no limit but the context (None)."""
    if text.strip() == "-1":
        return None
    return parse_tokens(text)


def parse_tokens(text: str) -> int:
    """A length in tokens such as 4096 or 64k."""
    from hga.runtime import options

    return options.parse_tokens(text)


def parse_size(text: str) -> int:
    """Bytes of a size such as 6g."""
    from hga.runtime import options

    return options.parse_size(text)


def parse_budget(text: str) -> str:
    """A budget as written, checked."""
    from hga.runtime import options

    options.parse_budget(text)
    return text.strip()


@dataclass(frozen=True, slots=True)
class Offered:
    """A parser that takes what this version offers for an option of the engine."""

    name: str

    @property
    def words(self) -> tuple[str, ...]:
        """What may be written."""
        from hga.runtime.options import offered_for

        return offered_for(self.name)

    def __call__(self, text: str) -> str:
        """The word; raises OptionError for any other."""
        from hga.runtime.options import require_available

        require_available(self.name, text)
        return text


def offered(name: str) -> Offered:
    """A parser that takes what this version offers for an option."""
    return Offered(name)


_attention = offered("attention")

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
    "ctx", ("-c", "--ctx", "--ctx-size"), parse_tokens,
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
    "mem", ("--mem",), parse_size,
    "memory for weights, KV, indices and scratch together, such as 6g (default: no limit)",
    "SIZE", "model",
)  # fmt: skip
EXPERT_CACHE = Flag(
    "expert_cache", ("--expert-cache",), parse_size,
    "memory for experts of a mixture of experts, such as 2g (default: what --mem leaves)",
    "SIZE", "model",
)  # fmt: skip
EXPERT_HINTS = Flag(
    "expert_hints", ("--expert-hints",), offered("expert_hints"),
    "read the next layer's experts ahead: on, off, or auto: while that is measured to help "
    "(default: auto)", "HOW", "model", default="auto",
)  # fmt: skip
DEVICE = Flag(
    "device", ("--device",), offered("device"),
    "where to compute: cpu, or cuda: an NVIDIA GPU through torch and Triton (default: cpu)",
    "DEVICE", "model", default="cpu",
)  # fmt: skip
GPU_MEM = Flag(
    "gpu_mem", ("--gpu-mem",), parse_size,
    "most GPU memory with --device cuda, such as 8g; what does not fit lies in host memory "
    "(default: no limit)", "SIZE", "model",
)  # fmt: skip
IO = Flag(
    "io", ("--io",), offered("io"),
    "how keys and values on disk are read: auto, uring, threads or mmap (default: auto)",
    "MODE", "model", default="auto",
)  # fmt: skip
KV = Flag(
    "kv", ("--kv",), offered("kv"),
    "where keys and values lie: ram, disk, or auto: in memory if --mem holds them (default: auto)",
    "WHERE", "model", default="auto",
)  # fmt: skip
KV_TYPE = Flag(
    "kv_type", ("--kv-type",), offered("kv_type"),
    "how keys and values are stored: bf16 (two bytes each, held as float16), or q8: int8 with "
    "scales, half of it (default: bf16)", "TYPE", "model", default="bf16",
)  # fmt: skip
KV_DIR = Flag(
    "kv_dir", ("--kv-dir",), parse_text,
    "folder of saved conversations, and of keys and values on disk (default: hga/sessions in the "
    "state folder, hga/kv in the cache folder)", "DIR", "model",
)  # fmt: skip
ENGINE = (MODEL, CTX, THREADS, MEM, EXPERT_CACHE, EXPERT_HINTS, DEVICE, GPU_MEM, GEMMA)
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
SAMPLING_BUT_SEED = tuple(flag for flag in SAMPLING if flag.name != "seed")
ATTENTION = Flag(
    "attention", ("--attention",), _attention,
    "hga: groups of the past chosen per token; hga-paper: the same by the published rule; dense: "
    "all of the past (default: hga)",
    "RULE", "model", default="hga",
)  # fmt: skip
BUDGET = Flag(
    "budget", ("--budget",), parse_budget,
    "tokens attended per query: auto, a percentage such as 2%%, or a number (default: auto)",
    "TOKENS", "model", default="auto",
)  # fmt: skip

PREFILL = Flag(
    "prefill", ("--prefill",), offered("prefill"),
    "how prompts attend: exact, or hga: by routed units, several times faster from some ten "
    "thousand tokens on (default: exact)", "HOW", "model", default="exact",
)  # fmt: skip

SKETCH_BITS = Flag(
    "sketch_bits", ("--sketch-bits",), whole(1, 2),
    "bits per dimension of the index that routes: 2, or 1 for half of it, coarser (default: 2)",
    "N", "model", default=2,
)  # fmt: skip
