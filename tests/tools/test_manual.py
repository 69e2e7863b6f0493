"""The manual page: made from the command line, accepted by man without a warning."""

import re
import shutil
import subprocess

import pytest

from hga.tools import cli, manual
from hga.tools.command_tree import read_tree
from hga.tools.manual import manual_page


@pytest.fixture(scope="module")
def tree():
    return read_tree(cli.build_parser())


@pytest.fixture(scope="module")
def page(tree):
    return manual_page(tree)


def plain(roff):
    """The words of a page, without fonts and escapes."""
    text = re.sub(r"\\f[BIR]", "", roff)
    return text.replace("\\-", "-").replace("\\&", "").replace("\\(aq", "'")


def test_it_has_every_command_and_every_flag_in_its_words(tree, page):
    text = plain(page)
    for command in tree.walk():
        assert f"hga {command.name}".strip() in text
        for flag in command.flags:
            entry = ", ".join(flag.options) + (f" {flag.metavar}" if flag.metavar else "")
            assert f".TP\n{entry}\n" in text, (command.name, entry)
            assert f"HGA_{flag.name.upper()}\n" in text


def test_the_file_in_docs_is_that_page(page, repo_root):
    written = (repo_root / "docs" / "hga.1").read_text(encoding="utf-8")
    assert written == page, "`make docs` makes it anew"


def test_the_command_prints_it(page, capsys):
    assert cli.main(["help", "--man"]) == 0
    assert capsys.readouterr().out == page


def test_no_line_is_a_request_by_accident(page):
    requests = {line.split(" ")[0] for line in page.splitlines() if line[:1] in (".", "'")}
    assert requests <= {".TH", ".SH", ".SS", ".TP", ".PP", ".IP", ".RS", ".RE", ".nf", ".fi", ".B",
                        ".BR", ".br", ".ad", ".nh"}  # fmt: skip
    assert page.isascii()


def test_text_is_kept_as_it_stands():
    text = manual._text("'a\\b' - `--x` ~^ é …")
    assert text == "\\(aqa\\eb\\(aq \\- \\fB\\-\\-x\\fR \\(ti\\(ha \\[u00E9] ..."
    assert manual._text(".profile") == "\\&.profile"


@pytest.mark.parametrize("width", [60, 80])
def test_man_renders_it_without_a_warning(page, tmp_path, width):
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    path = tmp_path / "hga.1"
    path.write_text(page, encoding="utf-8")
    done = subprocess.run(
        ["groff", "-man", "-Tascii", "-ww", "-b", f"-rLL={width}n", "-P-cbou", str(path)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    out = done.stdout
    assert "--expert-hints HOW" in out and "temp = 0.2" in out and "130" in out
    code = re.findall(r"^ +export HGA_CTX=16k HGA_TEMP=0.2$", out, re.MULTILINE)
    assert code, "code keeps its line"
