"""Counters of a server, as Prometheus reads them."""

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hga.tools.server.problems import ApiError
    from hga.tools.server.worker import Done

_HELP = {
    "requests_total": "requests that ended, by HTTP status",
    "prompt_tokens_total": "tokens of prompts",
    "cached_tokens_total": "tokens of prompts that were not computed again",
    "reply_tokens_total": "tokens generated",
    "prefill_seconds_total": "time spent on prompts",
    "decode_seconds_total": "time spent on replies",
    "requests_waiting": "requests in the queue",
    "requests_running": "requests being answered",
    "uptime_seconds": "time since the start",
    "resident_bytes": "memory of the process",
}


class Counts:
    """Counts from one thread, read by another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begin = time.monotonic()
        self._by_status: dict[int, int] = {}
        self._sums = dict.fromkeys(
            (
                *("prompt_tokens_total", "cached_tokens_total", "reply_tokens_total"),
                *("prefill_seconds_total", "decode_seconds_total"),
            ),
            0.0,
        )

    def add(self, outcome: "Done | ApiError") -> None:
        """Count a job that ended, or a request that never became one."""
        with self._lock:
            status = getattr(outcome, "status", 200)
            self._by_status[status] = self._by_status.get(status, 0) + 1
            if status != 200:
                return
            for name in self._sums:
                field = name.removesuffix("_total").replace("_seconds", "_s")
                self._sums[name] += getattr(outcome, field)

    def text(self, waiting: int, running: int, resident: int) -> str:
        """The text exposition format, version 0.0.4."""
        with self._lock:
            by_status, sums = dict(self._by_status), dict(self._sums)
        now = {
            "requests_waiting": waiting,
            "requests_running": running,
            "uptime_seconds": round(time.monotonic() - self._begin, 3),
            "resident_bytes": resident,
        }
        lines = []
        for name, about in _HELP.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP hga_{name} {about}", f"# TYPE hga_{name} {kind}"]
            if name == "requests_total":
                pairs = sorted(by_status.items())
                lines += [f'hga_{name}{{status="{status}"}} {n}' for status, n in pairs]
            else:
                value = sums.get(name, now.get(name, 0))
                lines.append(f"hga_{name} {value:.6f}".rstrip("0").rstrip("."))
        return "\n".join(lines) + "\n"
