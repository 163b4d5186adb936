"""Cases beside a flow: what they say, and what is wrong with them."""

from __future__ import annotations

import pytest

from furcula import ConfigurationError
from furcula.config import load
from furcula.config.cases import case_file, read_cases, run_case

FLOW = """
modules:
  n: shop:numbers
  a: {use: 'shop:label', with: {text: hi}}
  twice: {map: 'shop:double'}
  out: 'null'
  dead: 'null'
routes: [n -> a -> twice -> out, twice.failed -> dead]
"""


@pytest.fixture
def run(folder):
    (folder / "flow.yaml").write_text(FLOW)

    def run_text(text: str) -> list[list[str]]:
        (folder / "flow.test.yaml").write_text(text)
        flow = load(folder / "flow.yaml")
        return [run_case(flow, case, folder) for case in read_cases(case_file(folder / "flow.yaml"), flow)]

    return run_text


def test_a_case_that_holds_has_no_differences(run):
    assert run(
        """
        - name: numbers are doubled
          inputs: {n: [1, {data: 2, headers: {x: y}}]}
          expect: {out: [2, 4], dead: []}
          statistics: {admitted: 2, delivered: 2, open: 0}
        - name: headers are compared where they are given
          inputs: {n: [1]}
          expect: {out: [{data: 2, headers: {label: hi}}]}
        - name: a word cannot be doubled
          inputs: {n: [{}]}
          expect: {dead: [{}]}
          expect_failed: {twice: 1}
        - name: nothing in, nothing out
          expect: {out: []}
        - name: another function can stand in
          inputs: {n: [5]}
          replace: {twice: 'shop:negate'}
          expect: {out: [-5]}
        """
    ) == [[], [], [], [], []]


def test_differences_are_told_line_by_line(run):
    (differences,) = run(
        """
        - name: numbers are trebled
          inputs: {n: [1, 2]}
          expect: {out: [3, 4, 6]}
          expect_failed: {twice: [TypeError]}
          statistics: {dropped: 1}
        """
    )
    assert differences == [
        "out: expected 3 and got 2 events (- expected, + got)",
        "  - 3",
        "  + 2",
        "    4",
        "  - 6",
        "twice failed: expected 1 and got 0 events (- expected, + got)",
        '  - "TypeError"',
        "dropped: expected 1, got 0",
    ]


def test_what_is_wrong_with_the_cases_is_told_with_its_place(folder, run):
    text = """- inputs: {m: [1], a: [1], n: 1}
  expect: {ot: []}
- name: b
  inptus: {}
  statistics: {deliverd: 1, open: none}
"""
    with pytest.raises(ConfigurationError) as caught:
        run(text)
    file = folder / "flow.test.yaml"
    assert str(caught.value).splitlines() == [
        f"{file}:1:3: [0]: the field 'name' is missing",
        f"{file}:1:12: [0].inputs.m: there is no module 'm'",
        f"{file}:1:20: [0].inputs.a: a is not a source",
        f"{file}:1:31: [0].inputs.n: expected a list, not a whole number (given 1)",
        f"{file}:2:12: [0].expect.ot: there is no module 'ot', did you mean 'out'?",
        f"{file}:4:3: [1].inptus: there is no field 'inptus', did you mean 'inputs'?",
        f"{file}:5:16: [1].statistics.deliverd: there is no figure 'deliverd', did you mean 'delivered'?",
        f"{file}:5:35: [1].statistics.open: expected a whole number, not a string (given none)",
    ]


def test_cases_stand_beside_the_flow(tmp_path):
    assert case_file(tmp_path / "flow.yaml") is None
    (tmp_path / "flow_test.yaml").write_text("")
    assert case_file(tmp_path / "flow.yaml") == tmp_path / "flow_test.yaml"
    (tmp_path / "flow.test.yaml").write_text("")
    assert case_file(tmp_path / "flow.yaml") == tmp_path / "flow.test.yaml"
