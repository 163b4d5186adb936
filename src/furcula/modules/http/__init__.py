"""HTTP both ways: `http.listen` answers requests by a flow, `http.request` and `http.poll` ask other servers.

The way of a request: `server` (bytes) → `application` (ASGI) → `routes`, `body`, `media` (what is asked, and in which
form) → the flow → `exchange` (what comes back) → `answers` (as bytes). `streams` and `sockets` are answers that go on.
"""
