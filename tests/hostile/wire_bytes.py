"""What a hostile client writes to an HTTP server: requests that are wrong in one way, and a seeded
stream of such that are wrong in several."""

import json
import random
from collections.abc import Iterator
from typing import Final

CHAT: Final = b"/v1/chat/completions"
TEXT: Final = b"/v1/completions"
_JSON: Final = b"Content-Type: application/json"
_HOST: Final = b"Host: localhost"
_BODY: Final = json.dumps({"prompt": "hi", "max_tokens": 1, "temperature": 0}).encode()


def request(
    line: bytes, *headers: bytes, body: bytes = b"", end: bytes = b"\r\n", host: bytes = _HOST
) -> bytes:
    """A request with these lines, `end` after each."""
    lines = [line, *([host] if host else []), *headers, b"", b""]
    return end.join(lines) + body


def post(*headers: bytes, body: bytes = _BODY, length: bytes | None = None) -> bytes:
    """A completion; `length` may lie, b"" leaves it out."""
    stated = str(len(body)).encode() if length is None else length
    more = [b"Content-Length: " + stated] if stated else []
    return request(b"POST " + TEXT + b" HTTP/1.1", _JSON, *more, *headers, body=body)


def _chunks(*parts: bytes, extension: bytes = b"", last: bytes = b"0\r\n\r\n") -> bytes:
    pieces = [b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts]
    return b"".join(pieces) + last


def cases() -> dict[str, bytes]:
    """Bytes of one connection by name."""
    get = b"GET /health HTTP/1.1"
    chunked = b"Transfer-Encoding: chunked"
    targets = {
        "up": b"/../../etc/passwd",
        "up-encoded": b"/%2e%2e/%2e%2e/etc/passwd",
        "up-in-a-model": b"/v1/models/..%2f..%2fetc%2fpasswd",
        "percent-alone": b"/%",
        "percent-no-digits": b"/%zz",
        "percent-not-utf-8": b"/v1/models/%ff%fe",
        "percent-zero": b"/chat.js%00.html",
        "percent-line": b"/v1/models/a%0d%0aX:%20y",
        "absolute": b"http://localhost/health",
        "absolute-other": b"http://evil.example/health",
        "absolute-no-host": b"http:///health",
        "authority": b"localhost:80",
        "star": b"*",
        "slashes": b"//////health",
        "fragment": b"/health#x",
        "query-long": b"/health?" + b"q=1&" * 5000,
        "query-not-utf-8": b"/health?%ff=\xff",
        "bytes": b"/\xff\xfe",
        "not-a-path": b"health",
        "empty": b"",
        "spaces": b"/a b c",
        "backslashes": b"\\..\\..\\x",
        "long": b"/" + b"a" * 40_000,
    }
    made = {f"target-{name}": request(b"GET " + target + b" HTTP/1.1")
            for name, target in targets.items()}  # fmt: skip
    for name in (b"OPTIONS", b"TRACE", b"CONNECT", b"HEAD", b"DELETE", b"PATCH", b"get", b"PRI",
                 b"G\xffT", b"X" * 9000, b""):  # fmt: skip
        for target in (b"/", b"/health", CHAT):
            key = name[:8].decode("latin-1") or "none"
            made[f"method-{key}-{target.decode()}"] = request(name + b" " + target + b" HTTP/1.1")
    for version in (b"", b"HTTP/0.9", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/9.9", b"HTTP/",
                    b"HTTP/1.1.1", b"HTTP/11", b"http/1.1", b"SIP/2.0", b"HTTP/1.1 x"):  # fmt: skip
        made[f"version-{version.decode()}"] = request(b"GET /health " + version)
    headers: dict[str, list[bytes]] = {
        "folded": [b"X: a", b" b"],
        "no-colon": [b"nonsense"],
        "no-name": [b": x"],
        "space-before-colon": [b"X : y"],
        "zero-byte": [b"X: a\0b"],
        "control": [b"X: \x1b[2J"],
        "not-utf-8": [b"X: \xff\xfe"],
        "name-not-utf-8": [b"X\xff: y"],
        "long": [b"X: " + b"y" * 40_000],
        "flood": [b"X%d: y" % i for i in range(5000)],
        "host-twice": [b"Host: evil.example"],
        "key-not-utf-8": [b"Authorization: Bearer \xff\xfe"],
        "upgrade": [b"Connection: Upgrade", b"Upgrade: websocket"],
        "upgrade-h2c": [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c",
                        b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"],
        "expect": [b"Expect: 100-continue"],
        "expect-other": [b"Expect: a miracle"],
        "connection-list": [b"Connection: close, keep-alive, \xff"],
        "range": [b"Range: bytes=0-99999999999999999999,5-1"],
        "dates": [b"If-Modified-Since: \xff", b"If-None-Match: *"],
        "forwarded": [b"X-Forwarded-For: 1.2.3.4, \xff", b"X-Forwarded-Proto: \xff"],
    }  # fmt: skip
    for name, lines in headers.items():
        made[f"header-{name}"] = request(get, *lines)
    for host in (b"", b"Host:", b"Host: [::1", b"Host: ]", b"Host: localhost:99999999",
                 b"Host: evil.example", b"Host: \xff", b"Host: localhost, evil"):  # fmt: skip
        made[f"host {host.decode('latin-1')}"] = request(get, host=host)
    for length in (b"-1", b"+5", b"0x10", b"5, 5", b"5, 6", b"1e3", b"9" * 30, b"9" * 5000, b"\xb2",
                   b" ", b"5 5", b"2", b"99"):  # fmt: skip
        made[f"length-{length[:8].decode('latin-1')}"] = post(length=length)
    two = b"Content-Length: 5"
    made |= {
        "length-twice": post(two),
        "length-twice-the-same": post(b"Content-Length: %d" % len(_BODY)),
        "length-and-chunks": post(chunked, body=_chunks(_BODY)),
        "chunks": post(chunked, body=_chunks(_BODY[:9], _BODY[9:]), length=b""),
        "chunks-extended": post(chunked, body=_chunks(_BODY, extension=b';a="b";c'), length=b""),
        "chunks-extended-long": post(
            chunked, body=_chunks(_BODY, extension=b";" + b"a" * 40_000), length=b""
        ),
        "chunks-trailers": post(
            chunked, body=_chunks(_BODY, last=b"0\r\nHost: evil\r\nX: y\r\n\r\n"), length=b""
        ),
        "chunks-many": post(chunked, body=_chunks(*[b" "] * 9000), length=b""),
        "chunk-2-64": post(chunked, body=b"ffffffffffffffff\r\nx", length=b""),
        "chunk-negative": post(chunked, body=b"-5\r\nhello\r\n", length=b""),
        "chunk-no-number": post(chunked, body=b"zz\r\nhello\r\n", length=b""),
        "chunk-too-short": post(chunked, body=b"2\r\nhello\r\n0\r\n\r\n", length=b""),
        "chunks-then-cut": post(chunked, body=b"5\r\nhel", length=b""),
        "encoding-unknown": post(b"Transfer-Encoding: gzip, chunked", length=b""),
        "encoding-identity": post(b"Transfer-Encoding: identity"),
        "encoding-twice": post(chunked, chunked, body=_chunks(_BODY), length=b""),
        "encoding-disguised": post(b"Transfer-Encoding: xchunked", body=_chunks(_BODY), length=b""),
        "encoding-space": post(b"Transfer-Encoding : chunked", body=_chunks(_BODY), length=b""),
        "body-gzipped": post(b"Content-Encoding: gzip", body=b"\x1f\x8b\x08" + bytes(20)),
        "body-not-utf-8": post(body=b'{"prompt": "\xff\xfe"}'),
        "body-surrogate": post(body=b'{"prompt": "\\ud800", "max_tokens": 1}'),
        "body-zero-bytes": post(body=bytes(100)),
        "body-nested": post(body=b'{"prompt":' + b"[" * 100_000),
        "body-digits": post(body=b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}"),
        "body-infinite": post(body=b'{"prompt": "x", "temperature": 1e999}'),
        "body-nan": post(body=b'{"prompt": "x", "temperature": NaN}'),
        "body-keys-twice": post(body=b'{"prompt": "x", "prompt": "y", "max_tokens": 1}'),
        "body-bom": post(body=b"\xef\xbb\xbf" + _BODY),
        "body-utf-16": post(body=_BODY.decode().encode("utf-16")),
        "body-none": post(body=b""),
        "body-too-large": post(length=b"99999999999"),
        "body-missing": post(length=b"999"),
        "body-of-a-get": request(get, two, body=b"hello"),
        "pipelined": request(get) * 20,
        "pipelined-posts": post() * 5,
        "pipelined-after-an-error": request(b"GET /nowhere HTTP/1.1") * 3 + b"\0" * 50,
        "pipelined-nonsense": post() + b"\xff" * 200,
        "smuggled": post(
            chunked, body=b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", length=b"6"
        ),
        "bare-lf": request(get, b"X: y", end=b"\n"),
        "bare-cr": request(get, b"X: y", end=b"\r"),
        "line-ends-mixed": b"GET /health HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n",
        "blank-lines-first": b"\r\n" * 500 + request(get),
        "nothing": b"",
        "zero-bytes": bytes(5000),
        "line-without-end": b"A" * 100_000,
        "http-0.9": b"GET /health\r\n\r\n",
        "http-2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)),
        "tls": bytes((0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3)) + bytes(range(64)),
        "socks": b"\x05\x01\x00",
        "binary": bytes(range(256)) * 20,
        "smtp": b"EHLO localhost\r\n",
        "half-a-line": b"GET /hea",
        "half-a-head": b"GET /health HTTP/1.1\r\nHost: lo",
    }
    return made


def stream(seed: int) -> Iterator[bytes]:
    """Connections without end: parts of the cases cut, doubled, joined and with other bytes."""
    draw = random.Random(seed)
    # Long ones take long, and are no more hostile than short ones.
    short = [raw for raw in cases().values() if len(raw) < 5000]
    while True:
        raw = bytearray(draw.choice(short))
        for _ in range(draw.choice((1, 1, 2, 4))):
            at = draw.randrange(len(raw) + 1)
            way = draw.randrange(6)
            if way == 0:
                raw[at : at + 1] = bytes((draw.randrange(256),))
            elif way == 1:
                del raw[at : at + draw.choice((1, 3, 20))]
            elif way == 2:
                raw[at:at] = draw.choice((b"\r\n", b"\n", b"\0", b":", b" ", b"%", b"\xff", b"9"))
            elif way == 3:
                raw[at:at] = draw.choice(short)
            elif way == 4:
                raw += draw.choice(short)
            else:
                end = min(len(raw), at + draw.choice((5, 50)))
                raw[at:at] = raw[at:end] * draw.choice((1, 9))
        yield bytes(raw[: 1 << 16])
