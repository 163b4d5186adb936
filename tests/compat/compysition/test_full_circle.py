"""The full-circle example of Compysition's README, with its imports changed and its undefined names repaired."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.examples.running import EXAMPLES, LIMIT_S, Program, running

EXAMPLE = EXAMPLES / "compat/compysition_full_circle.py"

#: Runs it as it stands, on any free port, and with a log that says which.
RUN = f"""
import logging, runpy
from furcula.compat.compysition.module import WSGIServer
logging.basicConfig(level=logging.INFO)
WSGIServer.port = 0
runpy.run_path({str(EXAMPLE)!r}, run_name="__main__")
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it is stopped by a signal")

ORDER = "<order><customer>{}</customer><line sku='apple' quantity='{}'/></order>"


@pytest.fixture
def program() -> Iterator[Program]:
    with running("-c", RUN, PYTHONPATH=str(EXAMPLE.parent)) as program:
        program.url()
        yield program


def connect(program: Program) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(program.url().removeprefix("http://"), timeout=LIMIT_S)


def send(connection: http.client.HTTPConnection, body: str, password: str = "lovelace") -> None:
    credentials = b64encode(f"ada:{password}".encode()).decode()
    headers = {"authorization": f"Basic {credentials}", "content-type": "application/xml"}
    connection.request("POST", "/anything", body, headers)


def ask(program: Program, body: str, password: str = "lovelace") -> tuple[int, str, http.client.HTTPMessage]:
    connection = connect(program)
    try:
        send(connection, body, password)
        response = connection.getresponse()
        return response.status, response.read().decode(), response.headers
    finally:
        connection.close()


def stop(program: Program) -> None:
    program.signal(signal.SIGTERM)
    assert program.end() == 0, program
    assert "Traceback" not in str(program)


def test_a_request_goes_the_whole_way_round_and_a_signal_ends_it(program: Program) -> None:
    status, text, headers = ask(program, ORDER.format("Ada", 3))
    assert status == 200
    assert "<acknowledgement><customer>Ada</customer><total>120</total></acknowledgement>" in text
    assert headers["content-type"] == "application/xml"
    stop(program)


def test_a_wrong_password_is_a_401_with_its_challenge(program: Program) -> None:
    for password in ("wrong", "", "lovelace2"):
        status, text, headers = ask(program, ORDER.format("Ada", 3), password)
        assert status == 401
        assert headers["www-authenticate"] == 'Basic realm="compysition", charset="UTF-8"'
        assert "lovelace" not in text
    connection = connect(program)
    connection.request("GET", "/")
    response = connection.getresponse()
    assert (response.status, response.headers["www-authenticate"][:5]) == (401, "Basic")
    connection.close()
    stop(program)


def test_what_cannot_be_transformed_or_executed_is_answered_as_what_it_is(program: Program) -> None:
    status, text, _ = ask(program, "<order>")
    assert (status, "not XML: " in text, "line 1, column" in text) == (400, True, True)
    status, text, _ = ask(program, '<!DOCTYPE a SYSTEM "file:///etc/passwd"><order/>')
    assert (status, "<!DOCTYPE" in text) == (400, True)
    status, text, _ = ask(program, "<order/>")
    assert (status, "an order needs at least one line" in text) == (422, True)
    # Nothing is connected to the executor's error queue, and its request is answered all the same.
    status, text, _ = ask(program, ORDER.format("Ada", 3).replace("apple", "kiwi"))
    assert (status, "there is no 'kiwi' in the shop" in text) == (422, True)


def test_many_at_once_each_get_their_own_answer(program: Program) -> None:
    def order(number: int) -> tuple[int, str]:
        body = "<" if number % 4 == 0 else ORDER.format(f"c{number}", number)
        return ask(program, body, "wrong" if number % 4 == 1 else "lovelace")[:2]

    with ThreadPoolExecutor(25) as pool:
        answers = list(pool.map(order, range(100)))
    assert [status for status, _ in answers] == [400, 401, 200, 200] * 25
    for number, (status, text) in enumerate(answers):
        if status == 200:
            assert f"<customer>c{number}</customer><total>{40 * number}</total>" in text
    stop(program)


def test_requests_that_are_inside_are_answered_before_a_signal_ends_it() -> None:
    slowly = RUN.replace("runpy.run_path", _GATE + "runpy.run_path")
    with running("-c", slowly, PYTHONPATH=str(EXAMPLE.parent)) as program:
        connections = [connect(program) for _ in range(10)]
        for number, connection in enumerate(connections):
            send(connection, ORDER.format(f"c{number}", 1))
        program.until(lambda lines: lines.count("inside") == 10)
        program.signal(signal.SIGTERM)
        for number, connection in enumerate(connections):
            response = connection.getresponse()
            assert (response.status, f"c{number}<" in response.read().decode()) == (200, True)
            connection.close()
        assert program.end() == 0, program


#: Executors say when they are inside, and go on when the flow drains.
_GATE = """
import asyncio, signal
import mymodules.module as theirs
consume, gate = theirs.SomeRequestExecutor.consume, asyncio.Event()
async def wait_inside(self, event, *args, **kwargs):
    print("inside", flush=True)
    await gate.wait()
    await consume(self, event, *args, **kwargs)
theirs.SomeRequestExecutor.consume = wait_inside
from furcula.compat.compysition import Director
on_signal = Director._on_signal
def open_gate(self):
    on_signal(self)
    self._loop.call_soon_threadsafe(gate.set)
Director._on_signal = open_gate
"""


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_command_in_its_first_lines_works(program: Program) -> None:
    found = re.search(r"curl .*", EXAMPLE.read_text())
    assert found is not None
    command = f"{found[0]} -s".replace("http://127.0.0.1:8080", program.url())
    done = subprocess.run(
        command, shell=True, cwd=EXAMPLES, capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    assert "<customer>Countess Lovelace</customer><total>240</total>" in done.stdout


#: What stands in Compysition's README, and no more of it than is compared here.
SEED = """
director = Director()
wsgi = director.register_module(WSGIServer, "wsgi")
auth = director.register_module(BasicAuth, "auth")
submit_transform = director.register_module(Transformer, "submit_transform", xsls['submit'])
acknowledge_transform = director.register_module(Transformer, "acknowledge_transform", my_xsl_files['acknowledge.xsl'])
request_executor = director.register_module(SomeRequestExecutor, "request_executor")
router.connect(wsgi, auth)
router.connect(auth, submit_transform)
router.connect_error(auth, wsgi) # Redirect auth errors to the wsgi server as a 401 Unaothorized Error
router.connect(submit_transform, request_executor)
router.connect_error(submit_transform, wsgi)
router.connect(request_executor, acknowledge_transform)
router.connect(acknowledge_transform, wsgi)
router.start()
router.block()
"""


def test_only_imports_and_undefined_names_of_the_readme_were_changed() -> None:
    repaired = SEED.replace("router.", "director.").replace("my_xsl_files[", "xsls[").replace("'", '"')
    ours = EXAMPLE.read_text().partition("as xsls")[2].partition("\n")[2]
    statements = [re.sub(r"\s+", " ", line.strip()) for line in ours.splitlines()]
    statements = [line for line in statements if line and not line.startswith(("from ", "import "))]
    assert statements == repaired.strip().splitlines()
