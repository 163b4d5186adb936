"""stdin and stdout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from furcula.event import Event
from furcula.module import BatchFailed
from furcula.modules.standard import Stdin, Stdout

from .conftest import turns

# ------------------------------------------------------------------ stdin


class Pipe:
    def __init__(self) -> None:
        self.out, self.into = os.pipe()

    def write(self, raw: bytes) -> None:
        os.write(self.into, raw)

    def close(self) -> None:
        os.close(self.into)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    made = Pipe()
    monkeypatch.setattr(Stdin, "FD", made.out)
    yield made
    os.close(made.out)


async def test_what_comes_is_admitted_as_it_comes_and_the_end_is_the_end(bench: Any, pipe: Pipe) -> None:
    stdin = Stdin()
    await stdin.start(bench)
    pipe.write(b"a\nb\nhal")
    assert await bench.until(2) == ["a", "b"]
    pipe.write(b"f\n\nlast")
    pipe.close()
    await bench.until_ended()
    assert bench.datas() == ["a", "b", "half", "", "last"]
    await stdin.stop()


async def test_what_cannot_be_read_is_invalid(bench: Any, pipe: Pipe) -> None:
    stdin = Stdin(codec="json")
    await stdin.start(bench)
    pipe.write(b'{"a":1}\noops\xff\n2\n')
    pipe.close()
    await bench.until_ended()
    assert bench.datas() == [{"a": 1}, 2]
    assert bench.datas("invalid") == ["oops\\xff"]
    await stdin.stop()


async def test_a_file_is_read_like_a_pipe(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"\n".join(b"%d" % number for number in range(50_000)))
        file.seek(0)
        monkeypatch.setattr(Stdin, "FD", file.fileno())
        stdin = Stdin(codec="json")
        await stdin.start(bench)
        await bench.until_ended()
        assert bench.datas() == list(range(50_000))
        await stdin.stop()


async def test_a_flow_without_room_leaves_the_rest_in_the_pipe(bench: Any, pipe: Pipe) -> None:
    os.set_blocking(pipe.into, False)
    bench.room.clear()
    stdin = Stdin(codec="binary", framing={"delimiter": ";"})
    await stdin.start(bench)
    pipe.write(b"first;")
    await bench.until(1)
    sent = 0
    try:
        while True:
            sent += os.write(pipe.into, b"x" * 999 + b";")
            await turns(1)
    except BlockingIOError:
        pass  # the pipe is full
    assert len(bench.datas()) == 1
    bench.room.set()
    await bench.until(1 + sent // 1000)
    pipe.close()
    await bench.until_ended()
    await stdin.stop()


async def test_it_can_be_stopped_while_nothing_comes(bench: Any, pipe: Pipe) -> None:
    stdin = Stdin()
    await stdin.start(bench)
    await turns()
    stdin.cease()
    await stdin.stop()
    assert stdin._thread is not None
    assert not stdin._thread.is_alive()
    pipe.write(b"for the next reader\n")
    pipe.close()
    assert os.read(pipe.out, 100) == b"for the next reader\n"


async def test_it_can_be_stopped_while_it_waits_for_room(bench: Any, pipe: Pipe) -> None:
    bench.room.clear()
    stdin = Stdin()
    await stdin.start(bench)
    pipe.write(b"a\n")
    await bench.until(1)
    pipe.write(b"b\n")
    stdin.cease()
    await stdin.stop()
    assert not stdin._thread.is_alive()  # type: ignore[union-attr]
    pipe.close()


# ------------------------------------------------------------------ stdout


def test_text_is_printed_as_it_is_and_other_data_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    events = [Event("plain"), Event({"a": [1, None]}), Event(b"by\xfftes"), Event(None)]
    assert Stdout().process_batch(events) is events
    assert capsys.readouterr().out == 'plain\n{"a":[1,null]}\nby\\xfftes\nnull\n'
    Stdout(codec="json").process_batch([Event("plain")])
    assert capsys.readouterr().out == '"plain"\n'


async def test_a_line_may_begin_with_time_and_prefix(moved: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stdout = Stdout(prefix="shop:", timestamp=True)
    stdout.start(moved)
    stdout.process_batch([Event("hello")])
    line = capsys.readouterr().out
    assert re.fullmatch(r"\[2001-09-(08|09) \d\d:\d\d:40\.000000\] shop: hello\n", line)


def test_what_cannot_be_printed_fails_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BatchFailed) as caught:
        Stdout().process_batch([Event("a"), Event(object()), Event("b")])
    assert set(caught.value.errors) == {1}
    assert capsys.readouterr().out == "a\nb\n"


def run(code: str, *, command: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, as `python … command`."""
    source = "from furcula.event import Event\nfrom furcula.modules.standard import Stdout\n" + textwrap.dedent(code)
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(source)
        file.flush()
        return subprocess.run(
            ["/bin/bash", "-c", f"set -o pipefail; '{sys.executable}' '{file.name}' {command}"],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        )


def test_a_terminal_that_cannot_show_a_letter_gets_its_number() -> None:
    done = run("Stdout().process_batch([Event('grün')])", PYTHONIOENCODING="ascii")
    assert done.stdout == "gr\\xfcn\n"


def test_when_nobody_reads_any_more_events_fail_and_the_process_goes_on_and_ends_well() -> None:
    code = """
        import sys
        out = Stdout()
        failed = 0
        for _ in range(100):
            try:
                out.process_batch([Event("x" * 70_000)])
            except BrokenPipeError as error:
                failed += 1
                message = str(error)
        print(failed > 90, message, file=sys.stderr)
    """
    done = run(code, command="| head -c 1 >/dev/null")
    assert done.stderr == "True nobody reads standard output any more\n"
    assert done.returncode == 0
