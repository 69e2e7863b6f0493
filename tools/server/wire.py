"""Requests as they come over the wire, and what they ask for.

Every field that a client may send is named here; one that is unknown, or has a value that could
not be honoured, is an error that names it. Nothing is passed over in silence.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from hga.runtime.long_text import ALWAYS_ENCODED_CHARS, exceeds
from hga.runtime.sampler import SamplerError, SamplerOptions
from hga.tools.server.problems import ApiError, unsupported

if TYPE_CHECKING:
    from hga.runtime.engine import Engine
    from hga.runtime.grammar import Grammar

# Strings that end a reply, and their length.
_MOST_STOPS, _MOST_STOP_CHARS = 16, 256
_ROLES = ("system", "user", "assistant")
_Request = TypeVar("_Request", "ChatRequest", "CompletionRequest")


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream carries besides text."""

    include_usage: bool = False


class Part(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a message."""

    type: str
    text: str | None = None


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """One turn of a conversation; a name is for the chat template to use."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None


class NamedSchema(msgspec.Struct, forbid_unknown_fields=True):
    """A JSON schema as OpenAI wraps it; a reply is held to it whether `strict` or not."""

    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    """What a reply has to be; `schema`, with json_object, is llama.cpp's."""

    type: str
    json_schema: NamedSchema | None = None
    schema: dict[str, Any] | None = None


class _Common(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Fields of both kinds of request."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    user: str | None = None
    response_format: ResponseFormat | None = None
    json_schema: dict[str, Any] | None = None
    logit_bias: dict[str, float] | None = None


class ChatRequest(_Common):
    """The body of /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None


class CompletionRequest(_Common):
    """The body of /v1/completions."""

    prompt: str | list[Any]
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request comes to: the prompt's ids, how to choose tokens (`most`: how many, None:
    what the context holds), what ends the reply."""

    ids: list[int]
    sampling: SamplerOptions
    most: int | None
    stops: tuple[str, ...]
    grammar: "Grammar | None"
    stream: bool
    usage_in_stream: bool


def decode(body: bytes, kind: type[_Request]) -> _Request:
    """A request from its body; ApiError names what is wrong with it."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ApiError(400, f"the body is not a valid request: {reason}") from None


def chat(request: ChatRequest, engine: "Engine", defaults: SamplerOptions) -> Wanted:
    """What a chat request asks for; ApiError where it cannot be had."""
    _only(request, "logprobs", (None, False))
    _only(request, "top_logprobs", (None, 0))
    _only(request, "tools", (None, []))
    _only(request, "tool_choice", (None, "none", "auto"))
    _only(request, "store", (None, False))
    _only(request, "service_tier", (None, "auto", "default"))
    template = engine.template
    if template is None:
        raise ApiError(
            400, "the model has no chat template: /v1/completions completes a text as it is"
        )
    if not request.messages:
        raise ApiError(400, "messages: expected at least one", param="messages")
    messages = [_message(i, message) for i, message in enumerate(request.messages)]
    try:
        if sum(len(message["content"]) for message in messages) > ALWAYS_ENCODED_CHARS:
            _refuse_long(request, template.render(messages), engine)
        ids = template.render_ids(messages, engine.tokenizer, add_generation_prompt=True)
    except ValueError as error:
        raise ApiError(400, f"messages: {error}", param="messages") from None
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise ApiError(400, "max_tokens and max_completion_tokens exclude each other")
    most = request.max_completion_tokens
    return _wanted(request, ids, engine, defaults, request.max_tokens if most is None else most)


def completion(request: CompletionRequest, engine: "Engine", defaults: SamplerOptions) -> Wanted:
    """What a completion request asks for; ApiError where it cannot be had."""
    _only(request, "logprobs", (None, 0))
    _only(request, "echo", (None, False))
    _only(request, "suffix", (None, ""))
    _only(request, "best_of", (None, 1))
    prompt, tokenizer = request.prompt, engine.tokenizer
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        _refuse_long(request, prompt, engine)
        start = [] if tokenizer.bos is None else [tokenizer.bos]
        ids = start + tokenizer.encode(prompt)
    else:
        vocab = engine.plan.vocab_size
        for token in prompt:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab:
                raise ApiError(
                    400,
                    f"prompt: expected one text, or token ids from 0 to {vocab - 1}, "
                    f"found {token!r:.40}",
                    param="prompt",
                )
        ids = list(prompt)
    # OpenAI's own default; a base model would go on until the context is full.
    most = 16 if request.max_tokens is None else request.max_tokens
    return _wanted(request, ids, engine, defaults, most)


def _message(number: int, message: Message) -> dict[str, str]:
    where = f"messages[{number}]"
    role = "system" if message.role == "developer" else message.role
    if role not in _ROLES:
        raise unsupported(f"{where}.role", message.role, ", ".join(_ROLES))
    content = message.content
    if content is None:
        raise ApiError(400, f"{where}.content: expected text, found null", param=where)
    if isinstance(content, list):
        texts = []
        for part in content:
            if part.type != "text" or part.text is None:
                raise unsupported(f"{where}.content", part.type, "parts of type text")
            texts.append(part.text)
        content = "".join(texts)
    named = {} if message.name is None else {"name": message.name}
    return {"role": role, "content": content, **named}


def _only(request: _Common, name: str, allowed: tuple[Any, ...]) -> None:
    """Refuse a field whose value is another than those that change nothing."""
    value = getattr(request, name)
    if value not in allowed:
        words = ("nothing" if each is None else repr(each) for each in allowed)
        raise unsupported(name, value, ", ".join(words))


def _wanted(
    request: _Common, ids: list[int], engine: "Engine", defaults: SamplerOptions, most: int | None
) -> Wanted:
    _only(request, "n", (None, 1))
    _only(request, "logit_bias", (None, {}))
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options: only with stream", param="stream_options")
    if not ids:
        raise ApiError(400, "the prompt is empty")
    if most is not None and most < 1:
        raise ApiError(400, f"max_tokens: expected at least 1, found {most}", param="max_tokens")
    if len(ids) + (most or 1) > engine.ctx:
        reply = f" and the reply up to {most:,}" if most is not None else ""
        raise _too_long(request, f"has {len(ids):,} tokens{reply}", engine)
    return Wanted(
        ids,
        _sampling(request, defaults),
        most,
        _stops(request.stop),
        _grammar(request, engine),
        request.stream,
        request.stream_options is not None and request.stream_options.include_usage,
    )


def _refuse_long(request: _Common, text: str, engine: "Engine") -> None:
    """ApiError for a text that cannot fit, told without encoding all of it."""
    if exceeds(engine.tokenizer, text, engine.ctx):
        raise _too_long(request, f"of {len(text):,} characters has more tokens", engine)


def _too_long(request: _Common, what: str, engine: "Engine") -> ApiError:
    return ApiError(
        400,
        f"the prompt {what}, the context holds {engine.ctx:,}: "
        "shorten it, ask for less, or start the server with a larger --ctx",
        param="messages" if isinstance(request, ChatRequest) else "prompt",
        code="context_length_exceeded",
    )


def _sampling(request: _Common, defaults: SamplerOptions) -> SamplerOptions:
    names = (
        *("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "repeat_last_n"),
        *("presence_penalty", "frequency_penalty", "seed"),
    )
    given = {name: getattr(request, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("seed") == -1:
        del given["seed"]
    try:
        return replace(defaults, **given)
    except SamplerError as error:
        raise ApiError(400, str(error), param=str(error).partition(":")[0]) from None


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > _MOST_STOPS or any(not 0 < len(s) <= _MOST_STOP_CHARS for s in stops):
        raise ApiError(
            400,
            f"stop: expected at most {_MOST_STOPS} texts of 1 to {_MOST_STOP_CHARS} characters",
            param="stop",
        )
    return tuple(stops)


def _grammar(request: _Common, engine: "Engine") -> "Grammar | None":
    schema, wanted = request.json_schema, request.response_format
    if schema is not None and wanted is not None:
        raise ApiError(400, "json_schema and response_format exclude each other")
    if wanted is not None:
        if (wanted.json_schema is not None) != (wanted.type == "json_schema") or (
            wanted.schema is not None and wanted.type != "json_object"
        ):
            raise ApiError(
                400,
                "response_format: json_schema belongs to type json_schema, and schema to type"
                f" json_object; the type is {wanted.type!r:.40}",
                param="response_format",
            )
        if wanted.json_schema is not None:
            schema = wanted.json_schema.schema
        elif wanted.type == "json_object":
            schema = wanted.schema or {"type": "object"}
        elif wanted.type != "text":
            raise unsupported("response_format", wanted.type, "text, json_object, json_schema")
    if schema is None:
        return None
    try:
        return engine.grammars.from_json_schema(schema)
    except ValueError as error:
        raise ApiError(400, str(error), param="response_format") from None
