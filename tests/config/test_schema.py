"""The JSON Schema takes what the loader takes, and refuses the plainest mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from furcula import registry
from furcula.config import schema

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))
FLOWS = [file for file in EXAMPLES if not file.stem.endswith(("_test", ".test"))]


def wrong(value: Any, rules: dict[str, Any], path: str = "$") -> list[str]:
    """A validator for the part of JSON Schema that we write."""
    known = {
        "$schema", "title", "description", "default", "writeOnly", "type", "enum", "const", "pattern", "minimum",
        "minProperties", "properties", "required", "additionalProperties", "items", "anyOf", "oneOf", "allOf", "if",
        "then",
    }  # fmt: skip
    assert set(rules) <= known, set(rules) - known
    found = []
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "number": (int, float)}
    if "type" in rules:
        kind = rules["type"]
        fits = isinstance(value, int) if kind == "integer" else isinstance(value, types[kind])
        if not fits or (kind in ("integer", "number") and isinstance(value, bool)):
            return [f"{path}: not {kind}"]
    if "enum" in rules and value not in rules["enum"]:
        found.append(f"{path}: not in enum")
    if "const" in rules and value != rules["const"]:
        found.append(f"{path}: not {rules['const']}")
    if "pattern" in rules and isinstance(value, str) and not re.search(rules["pattern"], value):
        found.append(f"{path}: does not match {rules['pattern']}")
    if "minimum" in rules and isinstance(value, int | float) and value < rules["minimum"]:
        found.append(f"{path}: below {rules['minimum']}")
    if isinstance(value, dict):
        found += [f"{path}: {name} is missing" for name in rules.get("required", ()) if name not in value]
        if len(value) < rules.get("minProperties", 0):
            found.append(f"{path}: too few")
        for name, item in value.items():
            rest = rules.get("additionalProperties", True)
            below = rules.get("properties", {}).get(name, rest)
            if below is False:
                found.append(f"{path}: {name} is unknown")
            elif below is not True:
                found += wrong(item, below, f"{path}.{name}")
    if isinstance(value, list) and "items" in rules:
        for index, item in enumerate(value):
            found += wrong(item, rules["items"], f"{path}[{index}]")
    if "anyOf" in rules:
        attempts = [wrong(value, option, path) for option in rules["anyOf"]]
        found += [problem for attempt in attempts for problem in attempt] if all(attempts) else []
    if "oneOf" in rules and sum(not wrong(value, option, path) for option in rules["oneOf"]) != 1:
        found.append(f"{path}: not exactly one")
    for rule in rules.get("allOf", ()):
        found += wrong(value, rule, path)
    if "if" in rules and not wrong(value, rules["if"], path):
        found += wrong(value, rules["then"], path)
    return found


@pytest.fixture(scope="module")
def rules() -> dict[str, Any]:
    return schema()


def test_it_is_json(rules):
    assert json.loads(json.dumps(rules)) == rules


def test_every_kind_has_its_arguments(rules):
    module = rules["properties"]["modules"]["additionalProperties"]["anyOf"][1]
    told = {rule["if"]["properties"]["use"]["const"]: rule["then"] for rule in module["allOf"]}
    assert set(told) == set(registry.kinds())
    assert "every" in told["interval"]["properties"]["with"]["properties"]


GOOD = """
flow: a
dead_letter: dead
ttl: 3
modules:
  n: shop:numbers
  i: {use: interval, with: {every: 250ms}}
  a: {use: shop:send, with: {anything: goes}, concurrency: 4, retry: {attempts: 3, delay: 1s}, key: data.id}
  b: {map: shop:double, queue: "${PLACES:-5}", overflow: drop-newest}
  inner: {use: ./inner.yaml}
  dead: stdout
routes:
  - n, i -> a -> b
  - {from: a.failed, to: [dead], branch: best-effort}
"""


def test_a_good_file_is_taken(rules):
    assert wrong(yaml.safe_load(GOOD), rules) == []


@pytest.mark.parametrize("file", FLOWS, ids=[file.name for file in FLOWS])
def test_the_examples_are_taken(rules, file):
    assert wrong(yaml.safe_load(file.read_text()), rules) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"modules": {}}, "too few"),
        ({"colour": 1}, "colour is unknown"),
        ({"ttl": 0}, "below 1"),
        ({"modules": {"a": {"use": "stdout", "map": "a:b"}}}, "not exactly one"),
        ({"modules": {"a": {"map": "a:b", "concurency": 1}}}, "concurency is unknown"),
        ({"modules": {"a": {"map": "a:b", "order": "some"}}}, "not in enum"),
        ({"modules": {"a": {"map": "a:b", "concurrency": "many"}}}, "does not match"),
        ({"modules": {"a": {"use": "interval", "with": {"evry": 1}}}}, "evry is unknown"),
        ({"routes": ["a b"]}, "does not match"),
        ({"routes": [{"from": "a"}]}, "to is missing"),
    ],
)
def test_a_plain_mistake_is_refused(rules, change, told):
    found = wrong({**yaml.safe_load(GOOD), **change}, rules)
    assert any(told in problem for problem in found), found
