"""JSON schemas on the command line: given as text or in a file, compiled for a model."""

from typing import TYPE_CHECKING

from hga.runtime.durable import named
from hga.runtime.grammar import MAX_SCHEMA_BYTES
from hga.tools.errors import UsageError
from hga.tools.folders import expand
from hga.tools.texts import decode

if TYPE_CHECKING:
    from hga.runtime.engine import Engine
    from hga.runtime.grammar import Grammar


def read_schema(given: str) -> str:
    """The text of a schema given as FILE or TEXT (which begins with a brace)."""
    if given.lstrip().startswith("{"):
        return given
    path = expand(given)
    if not path.is_file():
        raise UsageError(f"no file {given!r}: expected a file with a JSON schema, or its text")
    size = path.stat().st_size
    if size > MAX_SCHEMA_BYTES:
        raise UsageError(
            f"{given}: expected a JSON schema of at most {MAX_SCHEMA_BYTES:,} bytes, found {size:,}"
        )
    with named(path):
        data = path.read_bytes()
    return decode(data, given)


def compile_schema(engine: "Engine", given: str | None) -> "Grammar | None":
    """The grammar of what a flag names; None where it was not given."""
    return None if given is None else engine.grammars.from_json_schema(read_schema(given))
