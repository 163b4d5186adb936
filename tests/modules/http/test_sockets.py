"""WebSockets of http.listen."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from tests.modules.http.serving import answers, serving

from furcula import Event, Flow
from furcula.modules.http.sockets import WINDOW
from furcula.statuses import Forbidden


def chat(handle: Any, **arguments: Any) -> Flow:
    return answers(handle, routes=arguments.pop("routes", ["WS /chat/{room}", "GET /"]), **arguments)


async def test_a_message_is_an_event_and_what_comes_back_goes_to_its_connection() -> None:
    def handle(event: Event) -> Event:
        assert event.headers["method"] == "WS"
        return Event({"room": event.headers["params"]["room"], "said": event.data}, {"x": 1})

    async with (
        serving(chat(handle)) as served,
        served.http.ws_connect(f"{served.url}/chat/one") as one,
        served.http.ws_connect(f"{served.url}/chat/two?x=1") as two,
    ):
        await one.send_json({"a": 1})
        await two.send_str('"hi"')
        await one.send_bytes(b"raw")
        assert await one.receive_json(timeout=5) == {"room": "one", "said": {"a": 1}}
        assert await two.receive_json(timeout=5) == {"room": "two", "said": "hi"}
        assert (await one.receive_json(timeout=5))["said"] == "cmF3"
    assert served.statistics.delivered == 3


async def test_many_answers_or_none_may_come_of_a_message() -> None:
    def handle(event: Event) -> Any:
        for n in range(event.data):
            yield Event(n)

    async with serving(chat(handle)) as served, served.http.ws_connect(f"{served.url}/chat/a") as ws:
        for count in (0, 3, 2):
            await ws.send_json(count)
        assert [await ws.receive_json(timeout=5) for _ in range(5)] == [0, 1, 2, 0, 1]
    assert served.statistics.origins["listen"].reasons == {"dropped filtered": 1}


async def test_an_event_may_be_addressed_to_all_connections_or_to_some() -> None:
    """A chat room, and an HTTP request and a source that speak to it."""
    flow = Flow("rooms")
    http = flow.use("http.listen", "listen", port=0, routes=["WS /chat", {"route": "POST /say", "outbox": "say"}])
    inlet = flow.use("inlet", "news")

    @flow.module
    def everyone(event: Event) -> Event:
        event.headers["connection"] = "*"
        return event

    http >> everyone >> http
    http["say"] >> everyone
    inlet >> http
    async with serving(flow) as served, served.http.ws_connect(f"{served.url}/chat") as one:
        async with served.http.ws_connect(f"{served.url}/chat") as two:
            await one.send_json("hello")
            assert await one.receive_json(timeout=5) == "hello"
            assert await two.receive_json(timeout=5) == "hello"
            assert (await served.text("POST", "/say", json="over http"))[0] == 202
            assert await one.receive_json(timeout=5) == "over http"
            assert await two.receive_json(timeout=5) == "over http"
            slot = await served.director.put("news", Event("news", {"connection": "*"}), settled=True)
            assert slot.fate == "delivered"
            assert await two.receive_json(timeout=5) == "news"
        slot = await served.director.put("news", Event("lost", {"connection": "nobody"}), settled=True)
        assert (slot.fate, slot.failure.message) == ("failed", "there is no connection 'nobody'")


async def test_a_message_that_fails_is_told_so_and_the_connection_goes_on() -> None:
    flow = Flow("fails")
    http = flow.use("http.listen", "listen", port=0, routes=["WS /ws"])

    @flow.module
    def handle(event: Event) -> Event:
        if event.data == "forbidden":
            raise Forbidden("not you")
        if event.data == "broken":
            raise ValueError("secret")
        return event

    http >> handle >> http
    async with serving(flow) as served, served.http.ws_connect(f"{served.url}/ws") as ws:
        await ws.send_str("{")
        assert (await ws.receive_json(timeout=5))["status"] == 400
        await ws.send_json("forbidden")
        assert await ws.receive_json(timeout=5) == {
            "type": "about:blank",
            "title": "Forbidden",
            "status": 403,
            "detail": "not you",
        }
        await ws.send_json("broken")
        assert await ws.receive_json(timeout=5) == {
            "type": "about:blank",
            "title": "Internal Server Error",
            "status": 500,
        }
        await ws.send_json("fine")
        assert await ws.receive_json(timeout=5) == "fine"


async def test_connections_are_announced_where_that_is_asked_for() -> None:
    flow = Flow("announced")
    http = flow.use("http.listen", "listen", port=0, routes=["WS /ws"], announce=True)
    told: list[tuple[str, str]] = []

    def note(what: str) -> Any:
        def keep(event: Event) -> None:
            told.append((what, event.headers["connection"]))

        return keep

    http >> flow.module(lambda event: event, "echo") >> http
    http["opened"] >> flow.module(note("opened"), "opened")
    http["closed"] >> flow.module(note("closed"), "closed")
    async with serving(flow) as served:
        async with served.http.ws_connect(f"{served.url}/ws") as ws:
            await ws.send_json(1)
            await ws.receive(timeout=5)
        async with asyncio.timeout(10):
            while len(told) < 2:
                await asyncio.sleep(0)
    assert [what for what, _ in told] == ["opened", "closed"]
    assert told[0][1] == told[1][1]


async def test_a_page_of_another_site_may_not_connect_unless_it_is_named() -> None:
    headers = {"Origin": "https://evil.example"}
    async with serving(chat(None)) as served:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await served.http.ws_connect(f"{served.url}/chat/a", headers=headers)
        assert caught.value.status == 403
        own = {"Origin": served.url}
        async with served.http.ws_connect(f"{served.url}/chat/a", headers=own) as ws:
            await ws.send_json(1)
            assert (await ws.receive(timeout=5)).data == "1"
    flow = chat(None, cors=["https://evil.example"])
    async with serving(flow) as served, served.http.ws_connect(f"{served.url}/chat/a", headers=headers) as ws:
        await ws.send_json(2)
        assert await ws.receive_json(timeout=5) == 2


async def test_text_is_taken_and_given_as_it_is_where_the_route_says_so() -> None:
    flow = chat(lambda event: Event(event.data + "!"), routes=[{"route": "WS /ws", "codec": "text"}])
    async with serving(flow) as served, served.http.ws_connect(f"{served.url}/ws") as ws:
        await ws.send_str("{not json")
        assert (await ws.receive(timeout=5)).data == "{not json!"


async def test_a_path_without_a_websocket_is_a_404_and_one_without_an_upgrade_a_426() -> None:
    async with serving(chat(None)) as served:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await served.http.ws_connect(f"{served.url}/nothing")
        assert caught.value.status == 404
        assert (await served.text("GET", "/chat/a"))[0] == 426


async def test_a_connection_that_does_not_read_is_closed_beyond_the_backlog() -> None:
    def flood(event: Event) -> Any:
        for _ in range(400):
            yield Event("x" * 100_000)

    async with serving(chat(flood, backlog=20)) as served:
        ws = await served.http.ws_connect(f"{served.url}/chat/a", max_msg_size=0)
        await ws.send_json(1)
        async with asyncio.timeout(20):
            while served.director.statistics().failed < 1:
                await asyncio.sleep(0.01)
        received = 0
        while (await ws.receive(timeout=10)).type is aiohttp.WSMsgType.TEXT:
            received += 1
        assert received < 400
        assert ws.close_code in (1008, 1006)


async def test_a_message_beyond_its_limit_closes_its_connection() -> None:
    async with serving(chat(None, max_message="10KB")) as served:
        ws = await served.http.ws_connect(f"{served.url}/chat/a")
        await ws.send_str("x" * 20_000)
        assert (await ws.receive(timeout=10)).type is aiohttp.WSMsgType.CLOSE
        assert ws.close_code == 1009


async def test_a_client_that_leaves_cancels_what_its_messages_are_at() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(event: Event) -> Event:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return event

    async with serving(chat(slow)) as served:
        ws = await served.http.ws_connect(f"{served.url}/chat/a")
        await ws.send_json(1)
        await started.wait()
        await ws.close()
        async with asyncio.timeout(10):
            await cancelled.wait()


async def test_connections_are_answered_and_then_closed_when_the_flow_stops() -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow(event: Event) -> Event:
        started.set()
        await go_on.wait()
        return event

    async with serving(chat(slow)) as served:
        ws = await served.http.ws_connect(f"{served.url}/chat/a")
        await ws.send_json("last")
        await started.wait()
        stopping = asyncio.create_task(served.director.stop("10s"))
        while not served.listen.site.ceased:
            await asyncio.sleep(0)
        go_on.set()
        assert await ws.receive_json(timeout=5) == "last"
        assert (await ws.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE
        assert ws.close_code == 1001
        await stopping


async def test_a_busy_connection_is_read_no_faster_than_its_messages_are_handled() -> None:
    most = 0
    handling = 0

    async def slow(event: Event) -> Event:
        nonlocal most, handling
        handling += 1
        most = max(most, handling)
        await asyncio.sleep(0)
        handling -= 1
        return event

    flow = Flow("busy")
    http = flow.use("http.listen", "listen", port=0, routes=["WS /ws"])
    http >> flow.module(slow, concurrency=200, queue=500) >> http
    async with serving(flow) as served, served.http.ws_connect(f"{served.url}/ws") as ws:
        for n in range(1000):
            await ws.send_json(n)
        assert [await ws.receive_json(timeout=10) for _ in range(1000)] == list(range(1000))
    assert most <= 64


async def until(true: Any, limit_s: float = 10) -> None:
    async with asyncio.timeout(limit_s):
        while not true():
            await asyncio.sleep(0)


class Hanging:
    """What handles a message until it is cancelled, or told to go on."""

    def __init__(self) -> None:
        self.begun = self.cancelled = 0
        self.go_on = asyncio.Event()

    async def handle(self, event: Event) -> Event:
        self.begun += 1
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return event


def hanging(handle: Any, **options: Any) -> Flow:
    flow = Flow("hanging")
    http = flow.use("http.listen", "listen", port=0, routes=["WS /ws"])
    http >> flow.module(handle, "hang", **options) >> http
    return flow


async def test_a_client_that_leaves_is_noticed_while_as_many_of_its_messages_as_may_are_in_the_flow() -> None:
    hang = Hanging()
    async with serving(hanging(hang.handle, concurrency=2 * WINDOW)) as served:
        ws = await served.http.ws_connect(f"{served.url}/ws")
        for _ in range(WINDOW):
            await ws.send_json(1)
        await until(lambda: hang.begun == WINDOW)
        await ws.close()
        await until(lambda: hang.cancelled == WINDOW)


async def test_a_client_that_leaves_is_noticed_while_its_messages_wait_for_room_in_the_flow() -> None:
    hang = Hanging()
    async with serving(hanging(hang.handle, concurrency=1, queue=1)) as served:
        ws = await served.http.ws_connect(f"{served.url}/ws")
        for _ in range(20):
            await ws.send_json(1)
        await until(lambda: hang.begun == 1)
        await ws.close()
        await until(lambda: hang.cancelled == 1)
        await until(lambda: len(served.listen.site.sockets) == 0)
    assert served.statistics.admitted < 20


async def test_messages_that_wait_for_room_keep_their_order() -> None:
    async def handle(event: Event) -> Event:
        await asyncio.sleep(0)
        return event

    flow = hanging(handle, concurrency=1, queue=1)
    async with serving(flow) as served, served.http.ws_connect(f"{served.url}/ws") as ws:
        for n in range(300):
            await ws.send_json(n)
        assert [await ws.receive_json(timeout=10) for _ in range(300)] == list(range(300))


async def test_messages_that_were_read_and_wait_for_room_are_answered_when_the_flow_stops() -> None:
    hang = Hanging()
    async with serving(hanging(hang.handle, concurrency=1, queue=1)) as served:
        ws = await served.http.ws_connect(f"{served.url}/ws")
        for n in range(6):
            await ws.send_json(n)
        connection = next(iter(served.listen.site.sockets._open.values()))
        await until(lambda: len(connection.asking) + len(connection.held) == 6)
        assert connection.held
        stopping = asyncio.create_task(served.director.stop("10s"))
        await until(lambda: served.listen.site.ceased)
        hang.go_on.set()
        assert [await ws.receive_json(timeout=5) for _ in range(6)] == list(range(6))
        assert (await ws.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE
        await stopping


async def test_announcements_wait_for_room_and_those_who_leave_before_their_turn_are_not_announced() -> None:
    hang = Hanging()
    flow = Flow("announced")
    http = flow.use("http.listen", "listen", port=0, routes=["WS /ws"], announce=True)
    http >> flow.module(lambda event: event, "echo") >> http
    http["opened"] >> flow.module(hang.handle, "opened", concurrency=1, queue=2)
    closed: list[str] = []
    http["closed"] >> flow.module(lambda event: closed.append(event.headers["connection"]), "closed")
    async with serving(flow) as served:
        for _ in range(20):
            ws = await served.http.ws_connect(f"{served.url}/ws")
            await until(lambda: len(served.listen.site.sockets) == 1)
            await ws.close()
            await until(lambda: len(served.listen.site.sockets) == 0)
        assert served.director.statistics().modules["opened"].depth <= 3
        last = await served.http.ws_connect(f"{served.url}/ws")
        await last.send_json("after my announcement")
        connection = next(iter(served.listen.site.sockets._open.values()))
        await until(lambda: connection.held)
        assert hang.begun == 1
        hang.go_on.set()
        assert await last.receive_json(timeout=5) == "after my announcement"
        await last.close()
        await until(lambda: len(closed) == hang.begun)
    assert len(closed) == len({*closed}) <= 6


async def test_the_end_of_a_connection_waits_for_room_for_a_while_and_is_then_told_in_any_case(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("furcula.modules.http.sockets.FAREWELL_S", 0.01)
    hang = Hanging()
    flow = Flow("announced")
    http = flow.use("http.listen", "listen", port=0, routes=["WS /ws"], announce=True)
    http >> flow.module(lambda event: event, "echo") >> http
    opened: list[str] = []
    http["opened"] >> flow.module(lambda event: opened.append(event.headers["connection"]), "opened")
    http["closed"] >> flow.module(hang.handle, "closed", concurrency=1, queue=1)
    async with serving(flow) as served:
        several = [await served.http.ws_connect(f"{served.url}/ws") for _ in range(6)]
        await until(lambda: len(opened) == 6)
        for ws in several:
            await ws.close()
        await until(lambda: served.listen.site.sockets._serving == set())
        # Nobody is announced as open while there is no room to say that they have gone again.
        late = await served.http.ws_connect(f"{served.url}/ws")
        await until(lambda: len(served.listen.site.sockets) == 1)
        assert len(opened) == 6
        hang.go_on.set()
        await until(lambda: hang.begun == 6 and len(opened) == 7)
        await late.close()
        await until(lambda: hang.begun == 7)


async def test_an_event_for_several_connections_reaches_those_that_are_still_there() -> None:
    flow = Flow("several")
    http = flow.use("http.listen", "listen", port=0, routes=["WS /ws", "POST /push"], announce=True)
    ids: list[str] = []

    @flow.module
    def address(event: Event) -> Event:
        event.headers["connection"] = event.data
        return event

    http["opened"] >> flow.module(lambda event: ids.append(event.headers["connection"]), "opened")
    http >> address >> http
    async with serving(flow) as served:
        stays = await served.http.ws_connect(f"{served.url}/ws")
        leaves = await served.http.ws_connect(f"{served.url}/ws")
        await until(lambda: len(ids) == 2)
        await leaves.close()
        await until(lambda: len(served.listen.site.sockets) == 1)
        assert (await served.json("POST", "/push", json=ids))[0] == 202
        assert await stays.receive_json(timeout=5) == ids
        assert (await served.json("POST", "/push", json=["nobody", 7, {}]))[0] == 404
        assert (await served.json("POST", "/push", json=[]))[0] == 202
        await stays.close()


async def opened_by_asgi(flow: Flow, *fields: tuple[bytes, bytes], **more: Any) -> list[Any]:
    """What is sent to a client of another server that sends one message and leaves when it has been answered."""
    sent: list[Any] = []
    answered = asyncio.Event()
    coming = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "1"}]

    async def receive() -> Any:
        if coming:
            return coming.pop(0)
        await answered.wait()
        return {"type": "websocket.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "websocket.send":
            answered.set()

    scope = {"type": "websocket", "path": "/ws", "headers": [(b"host", b"test"), *fields], **more}
    async with asyncio.timeout(10):
        await flow.asgi(scope, receive, send)
    await flow.asgi.stop()
    return sent


def headers_back() -> Flow:
    return answers(lambda event: Event(event.headers), routes=["WS /ws"], port=None)


async def test_what_a_server_may_leave_out_of_a_websocket_may_be_missing() -> None:
    accepted, said = await opened_by_asgi(headers_back())
    assert accepted == {"type": "websocket.accept"}
    headers = json.loads(said["text"])
    assert headers["client"] == ""
    assert "query" not in headers


async def test_header_fields_that_come_more_than_once_are_one_list() -> None:
    fields = [(b"x", b"1"), (b"cookie", b"a=1"), (b"x", b"2"), (b"cookie", b"b=2")]
    _, said = await opened_by_asgi(headers_back(), *fields)
    assert json.loads(said["text"])["request"] == {"host": "test", "x": "1, 2", "cookie": "a=1; b=2"}


@pytest.mark.parametrize("origin", [b"http://[", b"http://[test", b"null", b"", b"http://test.evil", b"http://evil"])
async def test_an_origin_that_is_not_ours_may_not_connect_whatever_it_is(origin: bytes) -> None:
    assert await opened_by_asgi(headers_back(), (b"origin", origin)) == [{"type": "websocket.close", "code": 1008}]
