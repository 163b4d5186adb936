"""A page in a real browser: fetch, EventSource and WebSocket against one flow."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, async_playwright
from tests.modules.http.serving import serving

from furcula import Event, Flow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

PAGE = """<!doctype html><meta charset="utf-8"><title>furcula</title>
<pre id="fetch"></pre><pre id="problem"></pre><pre id="events"></pre><pre id="socket"></pre>
<script>
const show = (id, value) => { document.getElementById(id).textContent = JSON.stringify(value); };
(async () => {
  const answer = await fetch("/orders/7?size=large", {
    method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify({sku: "é-1"}),
  });
  show("fetch", [answer.status, await answer.json()]);
  const form = new FormData();
  form.append("note", "hello");
  form.append("file", new Blob(["abc"], {type: "text/plain"}), "a.txt");
  const refused = await fetch("/upload", {method: "POST", body: form});
  show("problem", [refused.status, refused.headers.get("content-type"), await refused.json()]);
})();
const heard = [];
const source = new EventSource("/ticks");
source.addEventListener("tick", (message) => {
  heard.push(JSON.parse(message.data).n);
  if (heard.length === 3) { source.close(); show("events", heard); }
});
const socket = new WebSocket("ws://" + location.host + "/chat");
const said = [];
socket.onopen = () => { socket.send(JSON.stringify({n: 1})); socket.send(JSON.stringify({n: 2})); };
socket.onmessage = (message) => {
  said.push(JSON.parse(message.data));
  if (said.length === 2) { socket.close(); show("socket", said); }
};
</script>"""


def site() -> Flow:
    flow = Flow("site")
    routes: list[Any] = [
        {"route": "GET /", "outbox": "page"},
        "POST /orders/{id:int}",
        {"route": "POST /upload", "outbox": "upload"},
        {"route": "GET /ticks", "outbox": "ticks", "reply": "sse"},
        {"route": "WS /chat", "outbox": "chat"},
    ]
    http = flow.use("http.listen", "listen", port=0, routes=routes)

    @flow.module
    def page(event: Event) -> Event:
        return Event(PAGE, {"response": {"content-type": "text/html; charset=utf-8"}})

    @flow.module
    def order(event: Event) -> Event:
        return Event({**event.data, "id": event.headers["params"]["id"], **event.headers["query"]})

    @flow.module
    def upload(event: Event) -> Event:
        from furcula.statuses import Conflict

        file = event.data["file"]
        raise Conflict(f"{event.data['note']} {file['filename']} {file['data'].decode()}")

    @flow.module
    def ticks(event: Event) -> Any:
        for n in range(3):
            yield Event({"n": n}, {"event": "tick"})

    @flow.module
    def chat(event: Event) -> Event:
        event.data["n"] *= 10
        return event

    http["page"] >> page >> http
    http >> order >> http
    http["upload"] >> upload >> http
    http["ticks"] >> ticks >> http
    http["chat"] >> chat >> http
    return flow


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium on this machine; `make machine` installs it")
        pytest.skip("no Chromium on this machine; `make machine` installs it")
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"], timeout=60_000
        )
        yield started
        await started.close()


async def test_a_page_fetches_hears_events_and_talks_over_a_websocket(browser: Browser) -> None:
    errors: list[str] = []
    async with serving(site()) as served:
        page = await browser.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(served.url)
        shown = {}
        for name in ("fetch", "problem", "events", "socket"):
            await page.wait_for_function(f"document.getElementById('{name}').textContent !== ''", timeout=20_000)
            shown[name] = await page.evaluate(f"JSON.parse(document.getElementById('{name}').textContent)")
        await page.close()
    problem = {"type": "about:blank", "title": "Conflict", "status": 409, "detail": "hello a.txt abc"}
    assert shown["fetch"] == [200, {"sku": "é-1", "id": 7, "size": "large"}]
    assert shown["problem"] == [409, "application/problem+json", problem]
    assert shown["events"] == [0, 1, 2]
    assert shown["socket"] == [{"n": 10}, {"n": 20}]
    assert errors == []
