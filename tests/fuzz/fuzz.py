"""Coverage-guided fuzzing of one parser with atheris (`make fuzz`).

    python tests/fuzz/fuzz.py TARGET [libFuzzer options, such as -max_total_time=60]

Begins with the seed corpus. What it finds on the way is kept in a temporary folder, an input that
breaks a parser in the current one, as `crash-…`: it belongs into the corpus with its fix.
"""

import sys
import tempfile
from pathlib import Path

import atheris

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent), str(_HERE.parent / "hostile")]

with atheris.instrument_imports(include=["hga.models", "hga.runtime", "hga.kvstore", "hga.tools"]):
    import forge
    import targets
    import tiny_checkpoints


def main() -> None:
    """Fuzz until an option of libFuzzer ends it."""
    name, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        built = targets.build(tiny_checkpoints, forge, Path(folder))
        found = Path(folder) / "found"
        found.mkdir()
        corpus = [str(found), str(_HERE / "corpus" / name)]
        words = [sys.argv[0], "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]
        atheris.Setup([*words, *options, *corpus], lambda data: targets.run(built[name], data))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
