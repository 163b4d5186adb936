"""match, modify, template: events chosen, changed and put into words."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest

from furcula.errors import FurculaError
from furcula.event import Event
from furcula.module import bind_arguments
from furcula.modules.match import Match
from furcula.modules.modify import Modify
from furcula.modules.template import Template

# ------------------------------------------------------------------ match


def test_match_parts_events_by_a_condition_written_as_in_yaml() -> None:
    match = Match(**{"where": "data.severity", "in": ["err", "crit"]})
    assert match.choose(Event({"severity": "err"})) == "outbox"
    assert match.choose(Event({"severity": "info"})) == "nomatch"
    assert match.choose(Event("no dict")) == "nomatch"


def test_match_takes_expressions_and_combinations() -> None:
    assert Match(expr="data.x > `3`").choose(Event({"x": 4})) == "outbox"
    assert Match(where={"where": "data.x", "gt": 3}).choose(Event({"x": 4})) == "outbox"
    assert Match(**{"not": {"where": "data.x", "gt": 3}}).choose(Event({"x": 4})) == "nomatch"
    both = Match(where="data.x", gt=3, expr="data.y")
    assert both.choose(Event({"x": 4})) == "nomatch"
    assert both.choose(Event({"x": 4, "y": 1})) == "outbox"


def test_match_refuses_what_is_no_condition() -> None:
    with pytest.raises(ValueError, match="did you mean 'matches'"):
        Match(where="data.x", matchs="a")
    with pytest.raises(ValueError, match="empty"):
        Match()


# ------------------------------------------------------------------ modify


def modified(data: Any, **operations: Any) -> Any:
    values, problems = bind_arguments(Modify, operations)  # as a flow does it, with conversion
    assert problems == []
    return Modify(**values).process(Event(data, {"host": "a"})).data


@pytest.mark.parametrize(
    ("operations", "before", "after"),
    [
        ({"set": {"data.x": 1, "data.deep.er": [2]}}, {}, {"x": 1, "deep": {"er": [2]}}),
        ({"copy": {"headers.host": "data.host"}}, {}, {"host": "a"}),
        ({"rename": {"data.a": "data.b"}}, {"a": 1}, {"b": 1}),
        (
            {"merge": {"data": {"a": {"y": 2}, "l": [2]}}},
            {"a": {"x": 1}, "l": [1]},
            {"a": {"x": 1, "y": 2}, "l": [1, 2]},
        ),
        ({"template": {"data.text": "{{ data.a }} on {{ headers.host }}"}}, {"a": 1}, {"a": 1, "text": "1 on a"}),
        (
            {"extract": {"path": "data.line", "pattern": r"(?P<user>\w+) logged (?P<how>in|out)"}},
            {"line": "> ada logged in"},
            {"line": "> ada logged in", "user": "ada", "how": "in"},
        ),
        (
            {"extract": {"path": "data", "pattern": r"(?P<a>\d)(?P<b>x)?", "target": "data"}},
            "7",
            {"a": "7"},
        ),
        ({"replace": {"data.t": [r"\d+", "#"]}}, {"t": "a1b22"}, {"t": "a#b#"}),
        ({"join": {"data.l": ", "}}, {"l": [1, "b"]}, {"l": "1, b"}),
        ({"add": {"data.l": 2, "data.new": 1}}, {"l": [1]}, {"l": [1, 2], "new": [1]}),
        ({"remove": {"data.l": 1}}, {"l": [1, 2]}, {"l": [2]}),
        ({"upper": ["data.a"], "lower": "data.b"}, {"a": "x", "b": "Y"}, {"a": "X", "b": "y"}),
        ({"delete": ["data.a"]}, {"a": 1, "b": 2}, {"b": 2}),
        (
            {"set": {"data.a": "Word"}, "lower": "data.a", "copy": {"data.a": "data.b"}, "delete": "data.c"},
            {"c": 1},
            {"a": "word", "b": "Word"},
        ),
        ({"steps": [{"lower": "data"}, {"replace": {"data": ["a", "b"]}}, {"upper": "data"}]}, "Aa", "BB"),
    ],
)
def test_modify(operations: dict[str, Any], before: Any, after: Any) -> None:
    assert modified(before, **operations) == after


@pytest.mark.parametrize(
    ("operations", "data", "error"),
    [
        ({"copy": {"data.a": "data.b"}}, {}, KeyError),
        ({"rename": {"data.a": "data.b"}}, {}, KeyError),
        ({"delete": ["data.a"]}, {}, KeyError),
        ({"merge": {"data": {"a": 1}}}, "text", KeyError),
        ({"template": {"data.t": "{{ data.nothing }}"}}, {}, jinja2.UndefinedError),
        ({"extract": {"path": "data", "pattern": "(?P<a>x)"}}, "y", ValueError),
        ({"upper": "data"}, 5, TypeError),
        ({"join": {"data": ","}}, "text", TypeError),
        ({"remove": {"data": 1}}, [2], ValueError),
        ({"set": {"data.a.b": 1}}, {"a": "text"}, KeyError),
    ],
)
def test_what_cannot_be_done_makes_the_event_fail(operations: dict[str, Any], data: Any, error: type) -> None:
    with pytest.raises(error):
        modified(data, **operations)


def test_what_is_written_in_the_flow_is_not_changed_by_events() -> None:
    modify = Modify(set={"data.list": []}, add={"data.list": {"n": 1}}, merge={"data": {"more": []}})
    first, second = modify.process(Event({})), modify.process(Event({}))
    first.data["list"].append(2)
    first.data["list"][0]["n"] = 5
    first.data["more"].append(1)
    assert second.data == {"list": [{"n": 1}], "more": []}


async def test_modify_tells_the_time_by_the_flow_s_clock(moved: Any) -> None:
    modify = Modify(time={"data.day": "%Y-%m-%d"})
    modify.start(moved)
    assert modify.process(Event({})).data == {"day": "2001-09-09"}
    modify = Modify(time="data.at")
    modify.start(moved)
    assert modify.process(Event({})).data == {"at": "2001-09-09T01:46:40+00:00"}


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        ({}, "nothing to do"),
        ({"set": {"date.x": 1}}, "set: .*a path begins with"),
        ({"template": {"data.x": "{{ "}}, "template: the template is wrong in line 1"),
        ({"extract": {"path": "data", "pattern": "x"}}, "no named group"),
        ({"extract": {"path": "data"}}, "extract: write"),
        ({"replace": {"data": ("(", "x")}}, "not a regular expression"),
        ({"steps": [{"sett": {"data.x": 1}}]}, "did you mean 'set'"),
    ],
)
def test_modify_refuses_what_it_cannot_do(operations: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Modify(**operations)


# ------------------------------------------------------------------ template


def rendered(text: str, event: Event[Any]) -> Any:
    return Template(template=text).process(event).data


def test_a_template_sees_data_headers_and_the_event() -> None:
    event = Event({"name": "Ada", "items": [1, 2]}, {"host": "h"}, key="k")
    text = "{{ data.name|upper }} {{ data['items']|sum }} {{ headers.host }} {{ event.key }} {{ event.id }}"
    assert rendered(text, event) == f"ADA 3 h k {event.id}"


def test_a_text_without_placeholders_is_itself() -> None:
    assert rendered("50 % { }", Event(1)) == "50 % { }"


def test_a_template_can_go_to_a_path() -> None:
    event = Template(template="{{ data.a }}!", target="headers.title").process(Event({"a": 1}))
    assert (event.data, event.headers) == ({"a": 1}, {"title": "1!"})


@pytest.mark.parametrize(
    "text",
    [
        "{{ data.nothing }}",
        "{{ nothing }}",
        "{{ data.a.b.c }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ event._event }}",
        "{{ event.set('data', 1) }}",
        "{{ data.items_.append(1) }}",
        "{{ data.clear() }}",
    ],
)
def test_what_a_template_may_not_or_cannot_say_makes_the_event_fail(text: str) -> None:
    event = Event({"a": 1, "items_": []})
    with pytest.raises(jinja2.TemplateError):
        rendered(text, event)
    assert event.data == {"a": 1, "items_": []}


def test_a_wrong_template_is_refused() -> None:
    with pytest.raises(ValueError, match="wrong in line 2"):
        Template(template="fine\n{% if %}")
    with pytest.raises(ValueError, match="needs one of"):
        Template()
    with pytest.raises(ValueError, match="a path begins with"):
        Template(template="x", target="text")


async def test_a_template_can_stand_in_a_file_beside_the_flow(bench: Any) -> None:
    (bench.folder / "mail.txt").write_text("Dear {{ data }}")
    template = Template(file="mail.txt")
    template.start(bench)
    assert template.process(Event("Ada")).data == "Dear Ada"
    with pytest.raises(FurculaError, match=r"cannot read its template .*nothing\.txt"):
        Template(file="nothing.txt").start(bench)
    (bench.folder / "wrong.txt").write_text("{{")
    with pytest.raises(FurculaError, match=r"wrong\.txt: the template is wrong in line 1"):
        Template(file="wrong.txt").start(bench)
