"""Errors of the HTTP interface, in the shape that OpenAI's clients expect."""

from typing import Final

INVALID: Final = "invalid_request_error"


class ApiError(Exception):
    """A request cannot be served: `status` is the HTTP code, `param` the field at fault, `code` a
    word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code
        # Whether it is in the counters already.
        self.counted = False

    def body(self) -> dict[str, object]:
        """The JSON object of the answer."""
        return {
            "error": {
                "message": str(self),
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


def unsupported(param: str, found: object, supported: str) -> ApiError:
    """A field has a value that this server cannot honour."""
    return ApiError(
        400,
        f"{param}: {found!r:.60} is not supported (supported: {supported})",
        param=param,
        code="unsupported_value",
    )
