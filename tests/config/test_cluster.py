"""`cluster:` in a flow file."""

from __future__ import annotations

import pytest

from furcula.config import dump, loads
from furcula.errors import ConfigurationError
from furcula.options import Cluster

FLOW = """\
flow: shop
modules:
  source: {use: generate}
  price: {map: "builtins:str", stage: price}
  out: {use: log}
cluster:
  replicas: 3
  duplicate_window: 5m
  max_bytes: 2GB
"""


def test_what_the_file_says_of_the_cluster_is_in_the_flow_and_is_written_again() -> None:
    flow = loads(FLOW)
    assert flow.cluster == Cluster(replicas=3, duplicate_window="5m", max_bytes="2GB")  # type: ignore[arg-type]
    assert (flow["price"].stage, flow["out"].stage) == ("price", "main")
    assert loads(dump(flow)).cluster == flow.cluster


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("replica: 3", "there is no field 'replica', did you mean 'replicas'?"),
        ("lease: 0.1", "lease must be half a second or more"),
        ("storage: disk", "expected one of file, memory (given disk)"),
        ("partitions: 0", "partitions must be 1 or more"),
        ("dead_letters_for: 0", "dead_letters_for must be a tenth of a second or more"),
    ],
)
def test_what_is_wrong_there_is_told_with_its_place(line: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        loads(FLOW + f"  {line}\n")
    assert said in str(raised.value)
    assert ":10:" in str(raised.value)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"duplicate_window": 0}, "duplicate_window must be a tenth of a second or more"),
        ({"max_bytes": 0}, "max_bytes must be 1 or more"),
        ({"replicas": 6}, "replicas must be 5 or fewer"),
        ({"replicas": 0}, "replicas must be 1 or more"),
    ],
)
def test_what_the_server_would_refuse_or_take_for_no_limit_is_refused(option: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Cluster(**option)  # type: ignore[arg-type]


def test_a_stage_is_a_name() -> None:
    with pytest.raises(ConfigurationError, match=r"the stage 'a b' must be letters, digits, - and _"):
        loads(FLOW.replace("stage: price", "stage: a b"))
