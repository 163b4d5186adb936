"""HTTP statuses as exceptions: what a module raises to say how the client that asked is to be answered.

    raise NotFound("there is no order 7")

The failed event is answered with the status, as problem details (RFC 9457) in JSON or XML, whatever route it takes back
to `http.listen`, and also when nothing catches it. What is said here is shown to the client; any other exception is
answered with a bare 500 and nothing of its text. Statuses and their titles are those of RFC 9110, and of RFC 6585
(428, 429, 431), RFC 7725 (451), RFC 8470 (425) and RFC 4918 (423, 424).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from furcula.errors import FurculaError

__all__ = [
    "BadGateway",
    "BadRequest",
    "Conflict",
    "ContentTooLarge",
    "ExpectationFailed",
    "FailedDependency",
    "Forbidden",
    "GatewayTimeout",
    "Gone",
    "HttpError",
    "InternalServerError",
    "LengthRequired",
    "Locked",
    "MethodNotAllowed",
    "MisdirectedRequest",
    "NotAcceptable",
    "NotFound",
    "NotModified",
    "NotSupported",
    "PaymentRequired",
    "PreconditionFailed",
    "PreconditionRequired",
    "ProxyAuthenticationRequired",
    "RangeNotSatisfiable",
    "RequestHeaderFieldsTooLarge",
    "RequestTimeout",
    "ServiceUnavailable",
    "TooEarly",
    "TooManyRequests",
    "Unauthorized",
    "UnavailableForLegalReasons",
    "UnprocessableContent",
    "UnsupportedMediaType",
    "UpgradeRequired",
    "UriTooLong",
    "error_for",
]


class HttpError(FurculaError):
    """The root of all of them. Raise one of its children, or this with a `status` of your own.

    Args:
        detail: What went wrong this time, for the client to read. It is shown.
        status: Another status than the class's own.
        headers: Header fields of the answer.
        type: A URI that names the kind of problem.
        extension: Further members of the problem details: `errors=[...]`, `balance=30`.
    """

    status: int = 500
    title: ClassVar[str] = "Internal Server Error"

    def __init__(
        self,
        detail: str = "",
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        type: str = "",
        **extension: Any,
    ):
        super().__init__(detail or self.title)
        if status is not None:
            if not 300 <= status <= 599:
                raise ValueError(f"{status} is not a status of an error (300 to 599)")
            self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.type = type
        self.extension = extension
        # Whoever sent it may try again later, and the status says so.
        self.retryable = self.status in (408, 425, 429, 502, 503, 504)

    def problem(self) -> dict[str, Any]:
        """The members of the problem details that this error adds: `detail`, `type` and extensions."""
        said: dict[str, Any] = {"type": self.type} if self.type else {}
        if self.detail:
            said["detail"] = self.detail
        return {**self.extension, **said}


class NotModified(HttpError):
    """304: what the client has is still right. Answered without a body."""

    status = 304
    title = "Not Modified"


class BadRequest(HttpError):
    """400: the request cannot be understood."""

    status = 400
    title = "Bad Request"


class Unauthorized(HttpError):
    """401: credentials are missing or wrong.

    Args:
        challenge: The `WWW-Authenticate` field that a 401 has to carry: `Basic realm="shop"`.
    """

    status = 401
    title = "Unauthorized"

    def __init__(self, detail: str = "", *, challenge: str, **rest: Any):
        headers = {"www-authenticate": challenge, **(rest.pop("headers", None) or {})}
        super().__init__(detail, headers=headers, **rest)


class PaymentRequired(HttpError):
    """402"""

    status = 402
    title = "Payment Required"


class Forbidden(HttpError):
    """403: whoever asks is known, and may not."""

    status = 403
    title = "Forbidden"


class NotFound(HttpError):
    """404: there is no such thing."""

    status = 404
    title = "Not Found"


class MethodNotAllowed(HttpError):
    """405: the thing exists, and cannot be asked in this way.

    Args:
        allow: The methods that can be used; they become the `Allow` field.
    """

    status = 405
    title = "Method Not Allowed"

    def __init__(self, detail: str = "", *, allow: Iterable[str], **rest: Any):
        headers = {"allow": ", ".join(allow), **(rest.pop("headers", None) or {})}
        super().__init__(detail, headers=headers, **rest)


class NotAcceptable(HttpError):
    """406: the answer cannot be given in a form that the client accepts."""

    status = 406
    title = "Not Acceptable"


class ProxyAuthenticationRequired(HttpError):
    """407"""

    status = 407
    title = "Proxy Authentication Required"


class RequestTimeout(HttpError):
    """408: the request did not come in time."""

    status = 408
    title = "Request Timeout"


class Conflict(HttpError):
    """409: it cannot be done in the present state of things."""

    status = 409
    title = "Conflict"


class Gone(HttpError):
    """410: it was there once, and will not be again."""

    status = 410
    title = "Gone"


class LengthRequired(HttpError):
    """411"""

    status = 411
    title = "Length Required"


class PreconditionFailed(HttpError):
    """412: a condition of the client (`If-Match`) does not hold."""

    status = 412
    title = "Precondition Failed"


class ContentTooLarge(HttpError):
    """413: the body is longer than is taken here."""

    status = 413
    title = "Content Too Large"


class UriTooLong(HttpError):
    """414"""

    status = 414
    title = "URI Too Long"


class UnsupportedMediaType(HttpError):
    """415: the body is of a type that is not taken here."""

    status = 415
    title = "Unsupported Media Type"


class RangeNotSatisfiable(HttpError):
    """416"""

    status = 416
    title = "Range Not Satisfiable"


class ExpectationFailed(HttpError):
    """417"""

    status = 417
    title = "Expectation Failed"


class MisdirectedRequest(HttpError):
    """421"""

    status = 421
    title = "Misdirected Request"


class UnprocessableContent(HttpError):
    """422: the body can be read, and makes no sense: `raise UnprocessableContent(errors=[...])`."""

    status = 422
    title = "Unprocessable Content"


class Locked(HttpError):
    """423"""

    status = 423
    title = "Locked"


class FailedDependency(HttpError):
    """424"""

    status = 424
    title = "Failed Dependency"


class TooEarly(HttpError):
    """425"""

    status = 425
    title = "Too Early"


class UpgradeRequired(HttpError):
    """426"""

    status = 426
    title = "Upgrade Required"


class PreconditionRequired(HttpError):
    """428: the request must be conditional, so that nobody's change is lost."""

    status = 428
    title = "Precondition Required"


class _Later(HttpError):
    def __init__(self, detail: str = "", *, retry_after: float | None = None, **rest: Any):
        headers = rest.pop("headers", None) or {}
        if retry_after is not None:
            # Whole seconds, rounded up: a client that comes back a moment early is refused again.
            headers = {"retry-after": str(max(1, int(-(-retry_after // 1)))), **headers}
        super().__init__(detail, headers=headers, **rest)


class TooManyRequests(_Later):
    """429: this client asks too often.

    Args:
        retry_after: Seconds after which it may ask again.
    """

    status = 429
    title = "Too Many Requests"


class RequestHeaderFieldsTooLarge(HttpError):
    """431"""

    status = 431
    title = "Request Header Fields Too Large"


class UnavailableForLegalReasons(HttpError):
    """451"""

    status = 451
    title = "Unavailable For Legal Reasons"


class InternalServerError(HttpError):
    """500: something broke here. Any exception that is not one of these is answered so."""


class NotSupported(HttpError):
    """501 Not Implemented. (`NotImplementedError` is Python's own.)"""

    status = 501
    title = "Not Implemented"


class BadGateway(HttpError):
    """502: a server that we asked answered nonsense."""

    status = 502
    title = "Bad Gateway"


class ServiceUnavailable(_Later):
    """503: not now.

    Args:
        retry_after: Seconds after which the client may ask again.
    """

    status = 503
    title = "Service Unavailable"


class GatewayTimeout(HttpError):
    """504: no answer in time."""

    status = 504
    title = "Gateway Timeout"


_BY_STATUS = {
    kind.status: kind for kind in vars().copy().values() if isinstance(kind, type) and issubclass(kind, HttpError)
}


def title_of(status: int) -> str:
    """The title that goes with a status."""
    kind = _BY_STATUS.get(status)
    return kind.title if kind is not None else ("Client Error" if status < 500 else "Server Error")


def error_for(status: int, detail: str = "") -> HttpError:
    """The error that stands for a status, where only its number is known."""
    kind = _BY_STATUS.get(status, HttpError)
    if kind is Unauthorized or kind is MethodNotAllowed:
        return HttpError(detail, status=status)
    return kind(detail, status=status)
