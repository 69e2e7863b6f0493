"""What is asked of every document: instructions before it, which all files share, a closing line
after it, and how the answers to the parts of a document longer than the context become one."""

from dataclasses import dataclass

from hga.tools.errors import UsageError
from hga.tools.folders import expand
from hga.tools.schemas import read_schema
from hga.tools.texts import read_text

PLACE = "{document}"

_SUMMARIZE = (
    "Summarize the document below: what it is about, its main points, and the results, names,"
    " numbers and dates that matter. Write plain sentences, and nothing that is not in the"
    " document.",
    "Now write the summary of the document above.",
    "Summary:",
)
_EXTRACT = (
    "Extract from the document below the data that the JSON schema describes. Write nothing that"
    " is not in the document.",
    "Now write the JSON value for the document above.",
    "JSON:",
)


@dataclass(frozen=True, slots=True)
class Task:
    """`before` and `after` stand around the document; `lead` follows it for a model without a
    chat template. `schema` is the text of a JSON schema that replies are held to."""

    name: str
    before: str
    after: str
    lead: str
    schema: str | None = None

    def merging(self) -> "Task":
        """The task that makes one answer of those to consecutive parts."""
        before = (
            "Below are answers about the consecutive parts of one long document, in order. Each"
            f" follows these instructions:\n\n{self.before.strip()}\n\nMerge them into one answer"
            " for the whole document, by the same instructions. Keep what matters of every part.\n"
        )
        return Task(self.name, before, "Now write the merged answer.", self.lead, self.schema)


def load_task(given: str | None, schema: str | None) -> Task:
    """The task of `--task` (summarize, or a file with a prompt; None: what the schema describes,
    else a summary) and `--schema`. Raises UsageError."""
    text = None if schema is None else read_schema(schema)
    if given is None and text is not None:
        name, (before, after, lead) = "extract", _EXTRACT
    elif given in (None, "summarize"):
        name, (before, after, lead) = "summarize", _SUMMARIZE
    else:
        assert given is not None
        name, before, after, lead = _from_file(given)
    if text is not None:
        before += f"\n\nThe answer is one JSON value of this schema:\n{text.strip()}"
    return Task(name, before.rstrip() + "\n\n", after, lead, text)


def _from_file(given: str) -> tuple[str, str, str, str]:
    """(name, before, after, lead): the document goes where the prompt says {document}, or after
    it."""
    path = expand(given)
    if not path.is_file():
        raise UsageError(f"no task {given!r}: expected summarize, or a file with a prompt")
    prompt = read_text(path)
    if not prompt.strip():
        raise UsageError(f"{given}: the prompt is empty")
    if prompt.count(PLACE) > 1:
        raise UsageError(f"{given}: {PLACE} stands {prompt.count(PLACE)} times: expected once")
    before, _, after = prompt.partition(PLACE)
    return path.name, before, after.strip(), after.strip()
