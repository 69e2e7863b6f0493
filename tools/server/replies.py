"""The JSON of replies: objects of OpenAI's interface, whole or as the pieces of a stream."""

import json
import time
import uuid
from typing import Any

from hga.tools.server.worker import Done


class Form:
    """The JSON of replies; one object serves one reply."""

    prefix, kind = "", ""

    def __init__(self, model: str) -> None:
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time())}
        self._model = model

    def _object(self, kind: str, choice: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
        choices = [] if choice is None else [{"index": 0, **choice, "logprobs": None}]
        return {**self._head, "object": kind, "model": self._model, "choices": choices, **more}

    def whole(self, text: str, done: Done) -> dict[str, Any]:
        """The object of a reply that is not streamed."""
        raise NotImplementedError

    def begin(self) -> dict[str, Any] | None:
        """The first object of a stream, where there is one before any text."""
        return None

    def piece(self, text: str) -> dict[str, Any]:
        """The object of a piece of text."""
        raise NotImplementedError

    def end(self, done: Done) -> dict[str, Any]:
        """The object that says how the reply ended."""
        raise NotImplementedError

    def usage(self, done: Done) -> dict[str, Any]:
        """The object that carries the tokens of a stream."""
        return self._object(self.kind, None, **_usage(done))


class ChatForm(Form):
    prefix, kind = "chatcmpl", "chat.completion.chunk"

    def whole(self, text: str, done: Done) -> dict[str, Any]:
        choice = {
            "message": {"role": "assistant", "content": text, "refusal": None},
            "finish_reason": done.finish,
        }
        return self._object("chat.completion", choice, **_usage(done))

    def begin(self) -> dict[str, Any] | None:
        return self._delta({"role": "assistant", "content": ""}, None)

    def piece(self, text: str) -> dict[str, Any]:
        return self._delta({"content": text}, None)

    def end(self, done: Done) -> dict[str, Any]:
        return self._delta({}, done.finish)

    def _delta(self, delta: dict[str, str], finish: str | None) -> dict[str, Any]:
        return self._object(self.kind, {"delta": delta, "finish_reason": finish})


class TextForm(Form):
    prefix, kind = "cmpl", "text_completion"

    def whole(self, text: str, done: Done) -> dict[str, Any]:
        return self._object(self.kind, {"text": text, "finish_reason": done.finish}, **_usage(done))

    def piece(self, text: str) -> dict[str, Any]:
        return self._object(self.kind, {"text": text, "finish_reason": None})

    def end(self, done: Done) -> dict[str, Any]:
        return self._object(self.kind, {"text": "", "finish_reason": done.finish})


def _usage(done: Done) -> dict[str, Any]:
    return {
        "usage": {
            "prompt_tokens": done.prompt_tokens,
            "completion_tokens": done.reply_tokens,
            "total_tokens": done.prompt_tokens + done.reply_tokens,
            "prompt_tokens_details": {"cached_tokens": done.cached_tokens},
        },
        "timings": {
            "prefill_s": round(done.prefill_s, 4),
            "decode_s": round(done.decode_s, 4),
        },
    }


def event_line(value: dict[str, Any]) -> bytes:
    """An object as a server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
