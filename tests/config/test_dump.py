"""A flow written out and read again is the same flow."""

from __future__ import annotations

import pytest

from furcula import ConfigurationError, Event, Flow, Retry
from furcula.config import dump, load, loads


def same(one, other):
    assert list(one.places) == list(other.places)
    for name, place in one.places.items():
        twin = other.places[name]
        for part in ("subject", "is_source", "role", "options", "inboxes", "outboxes", "use", "arguments"):
            assert getattr(place, part) == getattr(twin, part), (name, part)
    for route, twin in zip(one.routes, other.routes, strict=True):
        parts = ("source", "outbox", "target", "inbox", "branch", "queue", "overflow", "ttl")
        assert [getattr(route, part) for part in parts] == [getattr(twin, part) for part in parts]
    assert (one.name, one.dead_letter, one.ttl) == (other.name, other.dead_letter, other.ttl)


FILE = """
flow: everything
dead_letter: dead
ttl: 5
modules:
  n: {use: 'shop:numbers_up_to', with: {limit: 3}}
  r: shop:rows
  i: {use: interval, with: {every: 250ms, data: {"no": '010', when: '22:30', day: '2024-01-01', n: [1, 2.5, null, true]}}}
  a:
    use: shop:send
    with: {password: '${PW}', port: 8, size: 10MB, every: 1.5s, rates: {x: 0.1}, mode: '1e3'}
    concurrency: 3
    order: none
    key: data.id
    queue: 9
    overflow: fail
    retry: {attempts: 4, delay: 250ms, factor: 1.5, errors: [TimeoutError, 'json.decoder:JSONDecodeError'], breaker: {failures: 2}}
    timeout: 2s
    keep: original
    isolate_context: true
  k: {use: 'shop:label', key: 'shop:ident', with: {text: 'literal $${A}', limits: {high: 4}, tags: ['on', '1_0']}}
  p: {use: 'shop:Picky', with: {level: 2}}
  j: {use: 'shop:label', inboxes: [left, right], outboxes: [good, bad], join: true, join_timeout: 5s}
  t: {map: 'shop:double', thread: true}
  m: {map: 'math:sqrt'}
  u: {map: 'builtins:str.upper'}
  out: 'null'
  dead: 'null'
routes:
  - n, r, i -> a -> k -> p -> t -> m -> u -> out
  - p.other -> j.left
  - {from: k, to: j.right, branch: best-effort, queue: 3, overflow: drop-oldest}
  - {from: t, to: a, ttl: 2}
  - j.good -> out
"""  # noqa: E501


def test_everything_a_file_can_say_survives_being_written_and_read(folder):
    flow = loads(FILE, folder=folder, environment={"PW": "p"})
    written = dump(flow)
    again = loads(written, folder=folder, environment={"PW": "p"})
    same(flow, again)
    assert dump(again) == written


def test_a_flow_inside_a_flow_is_written_flat(folder):
    (folder / "inner.yaml").write_text("modules: {a: {map: 'shop:double'}, d: 'null'}\nroutes: []\ndead_letter: d")
    flow = loads(
        "modules: {n: 'shop:numbers', inner: {use: inner.yaml}, out: 'null'}\nroutes: ['n -> inner -> out']",
        folder=folder,
    )
    same(flow, loads(dump(flow), folder=folder))


def price(event: Event) -> Event:
    return event


def ticks():
    yield 1


class Local:
    def process(self, event: Event) -> Event:
        return event


def test_a_flow_made_in_python_can_be_written():
    flow = Flow("python")
    source = flow.source(ticks)
    place = flow.module(price, options=None, retry=Retry(attempts=5, errors=(KeyError,)))
    source >> place >> flow.use(Local) >> flow.use("null", "end")
    place.failed >> flow["end"]
    same(flow, loads(dump(flow)))


def test_what_cannot_be_named_is_told_all_at_once():
    def inside(event: Event) -> Event:
        return event

    flow = Flow("nameless")
    flow.source([1, 2], "numbers") >> flow.map(lambda n: n, "shorthand") >> flow.module(inside)
    with pytest.raises(ConfigurationError) as caught:
        dump(flow)
    rest = ": a file can name only what stands at the top of an importable module"
    assert [(problem.path, problem.message.removesuffix(rest)) for problem in caught.value.problems] == [
        ("modules.numbers", "list cannot be found by import"),
        ("modules.shorthand", "a lambda has no name"),
        (
            "modules.inside",
            "test_what_cannot_be_named_is_told_all_at_once.<locals>.inside is defined inside a function",
        ),
    ]


def test_a_dump_is_a_file_that_can_be_loaded(folder):
    flow = loads(FILE, folder=folder, environment={"PW": "p"})
    (folder / "written.yaml").write_text(dump(flow))
    same(flow, load(folder / "written.yaml", environment={"PW": "p"}))
