"""The full circle over HTTP: both forms of it answer what its page says."""

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
from pathlib import Path

import pytest
from tests.examples.running import EXAMPLES, LIMIT_S, running
from tests.services import free_port

FOLDER = EXAMPLES / "circle"
FORMS = ["circle/circle.yaml", "circle.circle:flow"]


@pytest.fixture(scope="module", params=FORMS)
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """The flow in one of its forms, running."""
    port = free_port()
    with running("-m", "furcula", "run", request.param, PORT=str(port)) as program:
        program.until_it_listens(port)
        yield port
        if sys.platform != "win32":
            program.signal(signal.SIGTERM)
            assert program.end() == 0, program
            (said,) = [line for line in program.errors if line.startswith("admitted ")]
            admitted, rest = re.findall(r"admitted (\d+) = delivered \d+ \+ dropped 0 \+ (.*)", said)[0]
            assert (int(admitted) > 0, rest) == (True, "failed 0 + in flight 0"), program


def commands() -> list[tuple[str, str]]:
    """The commands of the page that have an answer, each with it."""
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    said = [said for block in blocks for said in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(command, answer) for command, _, answer in (one.partition("\n") for one in said)]


def test_the_page_has_commands() -> None:
    assert len(commands()) >= 6


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize(("command", "answer"), commands())
def test_each_command_of_the_page_answers_what_the_page_shows(command: str, answer: str, port: int) -> None:
    asked = command.replace("127.0.0.1:8080", f"127.0.0.1:{port}")
    done = subprocess.run(asked, shell=True, cwd=EXAMPLES, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    pattern = ".*".join(re.escape(part) for part in answer.strip().split("..."))
    printed = done.stdout.replace("\r\n", "\n").strip()
    assert re.fullmatch(pattern, printed, re.DOTALL), printed


def ask(port: int, body: str, password: str = "lovelace") -> tuple[int, str]:
    credentials = b64encode(f"ada:{password}".encode()).decode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    try:
        headers = {"authorization": f"Basic {credentials}", "content-type": "application/xml"}
        connection.request("POST", "/orders", body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_many_at_once_each_get_their_own_answer(port: int) -> None:
    def order(number: int) -> tuple[int, str]:
        if number % 5 == 0:
            return ask(port, "<order>")
        customer = f"<order><customer>c{number}</customer><line sku='pear' quantity='{number}'/></order>"
        return ask(port, customer, "wrong" if number % 5 == 1 else "lovelace")

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(order, range(100)))
    assert [status for status, _ in answers] == [400, 401, 200, 200, 200] * 20
    for number, (status, text) in enumerate(answers):
        if status == 200:
            assert f"<customer>c{number}</customer>" in text
            assert f"<total>{number * 55 / 100:.2f}</total>" in text


def test_what_would_be_run_or_read_is_only_text(port: int) -> None:
    status, text = ask(port, "<order><customer>{{ 7*7 }}</customer><line sku=\"') or ('\" quantity='1'/></order>")
    assert status == 422
    assert "there is no" in text
    status, text = ask(port, "<order><customer>{{ 7*7 }}&lt;b/></customer><line sku='pear' quantity='1'/></order>")
    assert status == 200
    assert "<customer>{{ 7*7 }}&lt;b/&gt;</customer>" in text


def test_both_forms_are_the_same_flow() -> None:
    explained = []
    for form in FORMS:
        command = [sys.executable, "-m", "furcula", "explain", form]
        done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=LIMIT_S, check=True)
        explained.append(done.stdout)
    assert explained[0] == explained[1]
    assert "http -> auth -> submit -> read -> execute -> acknowledge -> http" in explained[0]


@pytest.mark.parametrize("form", FORMS)
def test_there_is_nothing_to_be_warned_about(form: str) -> None:
    command = [sys.executable, "-m", "furcula", "check", form]
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert "warning" not in (done.stdout + done.stderr).lower()


def test_the_page_links_to_every_file_beside_it() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([\w.]+)\)", page))
    files = {
        file.name for file in FOLDER.iterdir() if file.is_file() and file.name not in ("README.md", "acknowledge.xsl")
    }
    assert files <= linked
    assert all(Path(FOLDER / name).exists() for name in linked)
