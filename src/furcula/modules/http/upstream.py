"""What can go wrong with a server that we ask. Whoever asked us is told that, and nothing of what the server said.

For an option `retry`, the classes tell apart what is worth another try:

    retry: {attempts: 5, errors: ["furcula.modules.http.upstream:UpstreamUnavailable"]}
"""

from __future__ import annotations

from furcula.statuses import BadGateway, GatewayTimeout

__all__ = ["UpstreamFailed", "UpstreamRefused", "UpstreamTimeout", "UpstreamUnavailable"]


class UpstreamFailed(BadGateway):
    """A server that we asked did not do it. The message is for us; who asked us gets a bare 502.

    Attributes:
        upstream_status: The status it answered with, or None.
        retry_after_s: Seconds after which it wants to be asked again, or None.
    """

    worth_a_try = False

    def __init__(self, message: str, *, upstream_status: int | None = None, retry_after_s: float | None = None):
        super().__init__(message)
        self.detail = ""
        self.retryable = self.worth_a_try
        self.upstream_status = upstream_status
        self.retry_after_s = retry_after_s


class UpstreamRefused(UpstreamFailed):
    """It will not do it: the same request would be answered in the same way."""


class UpstreamUnavailable(UpstreamFailed):
    """It cannot do it now: no connection, or a status of 408, 425, 429 or 5xx. Another try may succeed."""

    worth_a_try = True


class UpstreamTimeout(UpstreamUnavailable, GatewayTimeout):
    """It did not answer in time. Who asked us gets a bare 504."""

    status = 504
    title = GatewayTimeout.title
