"""json.validate."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from furcula import Event
from furcula.errors import FurculaError
from furcula.modules.json_validate import JsonValidate
from furcula.statuses import UnprocessableContent

from .conftest import Bench

ORDER: dict[str, Any] = {
    "type": "object",
    "required": ["sku"],
    "properties": {
        "sku": {"type": "string"},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}},
    },
    "$defs": {"line": {"properties": {"qty": {"type": "integer", "minimum": 1}}}},
}


def test_what_the_schema_allows_passes_as_it_is() -> None:
    event = Event({"sku": "a", "lines": [{"qty": 1}]})
    data = event.data
    assert JsonValidate(schema=ORDER).process(event) is event
    assert event.data is data


def test_what_it_does_not_allow_is_refused_with_paths_and_messages() -> None:
    with pytest.raises(UnprocessableContent) as caught:
        JsonValidate(schema=ORDER).process(Event({"lines": [{"qty": 1}, {"qty": 0}]}))
    errors = sorted(caught.value.extension["errors"], key=lambda error: error["path"])
    assert errors == [
        {"path": "", "message": "'sku' is a required property"},
        {"path": "lines.1.qty", "message": "0 is less than the minimum of 1"},
    ]
    assert caught.value.detail.startswith("the schema does not allow this: ")


def test_no_more_than_twenty_errors_are_told_and_none_at_length() -> None:
    data = {"sku": "a", "lines": [{"qty": "x" * 10_000}] * 30}
    with pytest.raises(UnprocessableContent, match="and there are more") as caught:
        JsonValidate(schema=ORDER).process(Event(data))
    errors = caught.value.extension["errors"]
    assert len(errors) == 20
    assert max(len(error["message"]) for error in errors) == 300


def test_data_deeper_than_can_be_followed_is_refused() -> None:
    schema = {"additionalProperties": {"$ref": "#"}, "type": "object"}
    data: Any = {}
    for _ in range(5000):
        data = {"a": data}
    with pytest.raises(UnprocessableContent, match="nested more deeply"):
        JsonValidate(schema=schema).process(Event(data))


def test_the_schema_s_own_draft_is_heeded() -> None:
    draft_4 = {"$schema": "http://json-schema.org/draft-04/schema#", "maximum": 3, "exclusiveMaximum": True}
    with pytest.raises(UnprocessableContent):
        JsonValidate(schema=draft_4).process(Event(3))
    with pytest.raises(ValueError, match="it is no schema, at exclusiveMaximum"):
        JsonValidate(schema={"maximum": 3, "exclusiveMaximum": True})


async def test_a_file_refers_to_its_neighbours_and_each_is_read_once(bench: Bench) -> None:
    (bench.folder / "parts").mkdir()
    (bench.folder / "order.json").write_text(json.dumps({"properties": {"line": {"$ref": "parts/line.json"}}}))
    (bench.folder / "parts/line.json").write_text(
        json.dumps({"properties": {"more": {"$ref": "../order.json"}, "n": {"type": "string"}}})
    )
    validate = JsonValidate(schema="order.json")
    validate.start(bench)
    (bench.folder / "parts/line.json").unlink()
    assert validate.process(Event({"line": {"more": {}}}))
    with pytest.raises(UnprocessableContent) as caught:
        validate.process(Event({"line": {"more": {"line": {"n": 1}}}}))
    assert caught.value.extension["errors"][0]["path"] == "line.more.line.n"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("#/$defs/gone", r"its \$ref '/\$defs/gone' leads nowhere"),
        ("gone.json", "leads nowhere: .*No such file"),
        ("../outside.json", "it is not in .*; put a copy there"),
        ("http://127.0.0.1:9/x.json", "it is not fetched; put a copy beside the schema"),
        ("file:///etc/passwd", "it is not fetched"),
        ("notes.txt", "notes.txt is not JSON"),
    ],
)
async def test_a_reference_that_leads_nowhere_is_found_at_the_start(reference: str, message: str, bench: Bench) -> None:
    (bench.folder / "in").mkdir()
    (bench.folder / "outside.json").write_text("{}")
    (bench.folder / "in/notes.txt").write_text("x")
    (bench.folder / "in/a.json").write_text(json.dumps({"properties": {"x": {"items": {"$ref": reference}}}}))
    with pytest.raises(FurculaError, match=message):
        JsonValidate(schema="in/a.json").start(bench)


def test_a_schema_in_the_flow_has_no_neighbours() -> None:
    with pytest.raises(ValueError, match="has no folder; put it into a file"):
        JsonValidate(schema={"$ref": "a.json"})


async def test_a_file_that_is_missing_or_wrong_is_named_at_the_start(bench: Bench) -> None:
    with pytest.raises(FurculaError, match=r"bench cannot read its schema .*gone\.json"):
        JsonValidate(schema="gone.json").start(bench)
    (bench.folder / "bad.json").write_text('{"type": "strin"}')
    with pytest.raises(FurculaError, match=r"bench: the schema .*bad\.json: it is no schema, at type: 'strin'"):
        JsonValidate(schema="bad.json").start(bench)


def test_without_the_library_the_extra_is_named() -> None:
    program = (
        "import sys; sys.modules['jsonschema'] = None\n"
        "from furcula.errors import ConfigurationError\n"
        "from furcula.registry import resolve\n"
        "try: resolve('json.validate')\n"
        "except ConfigurationError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "JSON Schema needs an optional library: pip install 'furcula[schema]'\n"
