"""The text of files: encodings, HTML, PDF, and what is refused by name."""

import stat
import sys
import time

import pytest

from hga.tools.batch import documents
from hga.tools.batch.documents import DocumentError, read_document
from hga.tools.batch.html import html_text

FRENCH = "Le café est très agréable, à côté de la forêt.\n"
GERMAN = "Die Größe der Übung überrascht: Äpfel, Öl und Straße. Das ist für später.\n"
CURLY = "“curly” – it’s 5 €; naïve façade\n"
RUSSIAN = "Привет, как дела? Это документ на русском языке о погоде. " * 3
JAPANESE = "これは日本語の文書です。天気がいいですね。会議は三時からです。" * 3
CHINESE = "这是一个中文文档。今天天气很好,我们去公园散步。" * 3


def text(data, name="a.txt"):
    return read_document(data, name).text


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"plain\n", "plain\n"),
        ("naïve ✓ 🙂".encode(), "naïve ✓ 🙂"),
        (b"\xef\xbb\xbfmarked", "marked"),
        ("sechzehn ✓".encode("utf-16"), "sechzehn ✓"),
        ("zweiunddreißig".encode("utf-32"), "zweiunddreißig"),
        (b"one\r\ntwo\rthree\n", "one\ntwo\nthree\n"),
        (FRENCH.encode("latin-1"), FRENCH),
        (GERMAN.encode("cp1252"), GERMAN),
        (CURLY.encode("cp1252"), CURLY),
        ("# Größe in px\nx = 3  # für später\n".encode("latin-1"),
         "# Größe in px\nx = 3  # für später\n"),
        (RUSSIAN.encode("cp1251"), RUSSIAN),
        (RUSSIAN.encode("koi8-r"), RUSSIAN),
        (JAPANESE.encode("shift_jis"), JAPANESE),
        (CHINESE.encode("gbk"), CHINESE),
        (b"\x1b[31mred\x1b[0m log line", "\x1b[31mred\x1b[0m log line"),
        (b"MZ is not a program here", "MZ is not a program here"),
        (b"ID3 tags are explained below", "ID3 tags are explained below"),
    ],
)  # fmt: skip
def test_text_in_its_encoding(data, expected):
    assert text(data) == expected


def test_a_guessed_encoding_is_said():
    assert read_document(FRENCH.encode("latin-1"), "a").note == (
        "read as cp1252, which its text suggests"
    )
    assert read_document("x".encode("utf-16"), "a").note == "utf-16"
    assert read_document(FRENCH.encode(), "a").note == ""


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no text in it"),
        (b" \n\t\xc2\xa0", "no text in it"),
        (b"\x89PNG\r\n\x1a\n", "binary file: PNG image"),
        (b"PK\x03\x04....", "binary file: ZIP archive or Office document"),
        (b"\x7fELF\x02\x01", "binary file: program"),
        (b"GGUF\x03\0\0\0", "binary file: GGUF model"),
        (b"{\\rtf1 hi}", "binary file: RTF document"),
        (b"text and\0more", "binary file: a zero byte at offset 8"),
        ("no mark".encode("utf-16-le"), "binary file: a zero byte at offset 1"),
        (b"\xff\xfe\x00\xd8", "damaged utf-16 text: byte offset 2"),
        (bytes(range(128, 256)) * 20, "not text of a known encoding"),
        (b"%PDF-1.7 nothing", "damaged PDF"),
    ],
)
def test_what_is_not_text_is_refused_by_name(data, reason):
    with pytest.raises(DocumentError, match=reason) as failure:
        text(data)
    assert "\n" not in str(failure.value)


def test_sizes_are_bounded(monkeypatch):
    monkeypatch.setattr(documents, "MAX_FILE_BYTES", 10)
    with pytest.raises(DocumentError, match="11 bytes: at most 10 are read"):
        text(b"x" * 11)
    monkeypatch.setattr(documents, "MAX_TEXT_CHARS", 5)
    with pytest.raises(DocumentError, match="6 characters of text: at most 5"):
        text(b"x" * 6)


PAGE = """<!DOCTYPE html><html><head><title>My page</title><style>p {}</style></head>
<body><script>alert(1)</script><h1>Head &amp; shoulders</h1>
<p>Some <b>bold</b>
   text<br>next line.</p><!-- hidden --><noscript>no</noscript>
<ul><li>one</li><li> two <a href="x">link</a></li></ul>
<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>
<pre>def f():
    return 1</pre><template>never</template></body></html>"""


def test_html_is_what_a_reader_sees():
    assert text(PAGE.encode(), "p.html") == (
        "My page\n\n# Head & shoulders\n\nSome bold text\nnext line.\n\n- one\n- two link\n\n"
        "a | b\n1 | 2\n\ndef f():\n    return 1\n"
    )
    # Without the ending, by its beginning.
    assert text(PAGE.encode(), "page") == text(PAGE.encode(), "p.html")
    assert text(b"a < b and <b>this</b> is no page", "x.md") == "a < b and <b>this</b> is no page"


def test_html_in_the_encoding_it_declares():
    page = '<html><head><meta charset="iso-8859-2"></head><body>Zażółć gęślą jaźń</body></html>'
    found = read_document(page.encode("iso-8859-2"), "p.html")
    assert found.text == "Zażółć gęślą jaźń\n" and found.note == "iso8859-2"
    wrong = page.replace("iso-8859-2", "no-such-thing")
    assert "Zażółć" in text(wrong.encode(), "p.html")


@pytest.mark.parametrize(
    "declared", ["idna", "punycode", "undefined", "unicode_escape", "raw-unicode-escape", "hex"]
)
def test_html_that_declares_what_is_no_encoding_of_pages(declared):
    page = (
        f'<html><meta charset="{declared}"><body>Zażółć \\ud800 gęślą jaźń-{"a" * 99}</body></html>'
    )
    assert "Zażółć \\ud800 gęślą" in text(page.encode(), "p.html")


def test_html_nested_deep_is_read():
    page = "<html><body>" + "<div>" * 9_000 + "deep" + "</div>" * 9_000 + "</body></html>"
    assert text(page.encode(), "p.html").strip() == "deep"
    with pytest.raises(DocumentError, match="no text in it"):
        text(b"<html><body><script>x</script></body></html>", "p.html")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("tag", ["<div>", "<B x=1>", "<ul><li>", "<script><p></script><i>"])
def test_html_whose_nesting_takes_minutes_is_refused(tag):
    with pytest.raises(DocumentError, match="HTML nested 200,000 deep: at most 10,000"):
        html_text(tag * 200_000)


@pytest.mark.timeout(60)
def test_html_that_only_looks_deep_is_read():
    for page in ("<p>x" * 20_000, "<br>x" * 20_000, "<b>x</b>" * 20_000):
        assert html_text(page).count("x") == 20_000
    script = "<script>" + "if (a<b) {} " * 20_000 + "</script>"
    assert html_text(script + "<p>x") == "x\n"


@pytest.mark.timeout(60)
def test_long_runs_of_spaces_take_no_longer_than_others():
    assert html_text("<pre>" + " " * 1_000_000 + "x") == " " * 1_000_000 + "x\n"
    assert html_text("<table><tr><td>a<td> b <tr><td>c</table>") == "a | b\nc\n"


def pdf(*pages):
    """A PDF with one line of text a page, as a program would write it."""
    kids = " ".join(f"{3 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
    ]
    font = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    for i, line in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({line}) Tj ET" if line else ""
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {4 + 2 * i} 0 R"
            f" /Resources << /Font << /F1 {font} >> >> >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    data, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode()
    start = len(data)
    data += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    data += b"".join(f"{offset:010} 00000 n \n".encode() for offset in offsets)
    trailer = f"<< /Size {len(objects) + 1} /Root 1 0 R >>"
    return data + f"trailer\n{trailer}\nstartxref\n{start}\n%%EOF\n".encode()


def test_pdf_pages_in_order():
    assert text(pdf("Heat pumps cost 12,000 euros.", "Page two.")) == (
        "Heat pumps cost 12,000 euros.\n\nPage two."
    )
    # A wrong table is made anew from the objects; a file that was cut short is refused.
    assert text(pdf("Whole.").replace(b"startxref\n", b"startxref\n9")) == "Whole."
    with pytest.raises(DocumentError, match="damaged PDF"):
        text(pdf("Whole.")[:-60])


def test_pdf_without_text_and_with_a_password(tmp_path):
    with pytest.raises(DocumentError, match="PDF without text: 2 scanned pages"):
        text(pdf("", ""))
    import io

    from pypdf import PdfReader, PdfWriter

    writer, out = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf("secret")))), io.BytesIO()
    writer.encrypt("password", algorithm="RC4-128")
    writer.write(out)
    with pytest.raises(DocumentError, match="PDF that needs a password"):
        text(out.getvalue())


@pytest.fixture
def stalling_reader(tmp_path, monkeypatch):
    """A reader of PDF that never ends."""
    script = tmp_path / "reader"
    script.write_text("#!/bin/sh\ncat >/dev/null\nexec sleep 60\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(script))


def test_a_pdf_that_stalls_its_reader_is_given_up(stalling_reader, monkeypatch):
    monkeypatch.setattr(documents, "PDF_SECONDS", 0.5)
    begin = time.monotonic()
    with pytest.raises(DocumentError, match="not read within"):
        text(pdf("x" * 100_000))
    assert time.monotonic() - begin < 10


def test_nobody_waits_for_a_pdf_after_an_interrupt(stalling_reader):
    begin = time.monotonic()
    with pytest.raises(DocumentError):
        read_document(pdf("x"), "a.pdf", lambda: time.monotonic() > begin + 0.3)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(("package", "data"), [("selectolax", PAGE.encode()), ("pypdf", pdf("x"))])
def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch, package, data):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise ImportError('hidden by the test')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DocumentError, match=f"pip install {package}"):
        text(data)
