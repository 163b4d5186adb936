"""The model of many workers: where one thing limits, formula and simulation say what that thing lets through."""

from __future__ import annotations

import math
import os

import msgspec
import pytest
from bench.model.__main__ import main
from bench.model.bounds import Costs, Setting, bounds, filled, rate
from bench.model.costs import processors, timer_s
from bench.model.simulation import play
from hypothesis import given, settings
from hypothesis import strategies as st

FREE = Costs(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
#: About what this measures on a small machine.
USUAL = Costs(2e-6, 100e-6, 1e-6, 100e-6, 10e-6, 150e-6, 300e-6)


def costs(**some: float) -> Costs:
    return msgspec.structs.replace(FREE, **some)


def test_one_worker_that_only_computes_takes_what_its_processor_allows() -> None:
    one = Setting(workers=1, wait_s=0.0, concurrency=1)
    busy = costs(far_event=10e-6)
    assert rate(busy, one) == (pytest.approx(100_000), "workers' processors")
    assert play(busy, one, 20_000).rate == pytest.approx(100_000, rel=0.02)


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_handlers_that_wait_let_through_as_many_as_wait_at_once(workers: int) -> None:
    waiting = Setting(workers=workers, wait_s=0.005, concurrency=16)
    assert rate(FREE, waiting) == (pytest.approx(workers * 3200), "handlers")
    # Keys fall unevenly on partitions, and all wait for the worker that has the most of them.
    assert play(FREE, waiting, 20_000).rate == pytest.approx(workers * 3200, rel=0.12)


def test_a_slow_server_is_the_limit_however_many_workers_there_are() -> None:
    slow = costs(server_event=10e-6, server_message=5e-3)
    many = Setting(workers=64, partitions=0, lanes=32)
    full = 1 / (10e-6 + 5e-3 / 512)
    assert rate(slow, many) == (pytest.approx(full), "server")
    played = play(slow, many, 50_000)
    # What is under way at once fills no message, and the server is paid by the message.
    assert played.batch < 512
    assert played.rate == pytest.approx(1 / (10e-6 + 5e-3 / played.batch), rel=0.1)


def test_messages_that_are_stored_one_at_a_time_are_the_limit_of_a_partition() -> None:
    far_away = costs(hop_s=0.05)
    ordered = Setting(workers=1, wait_s=0.0, partitions=1, batch=100)
    assert rate(far_away, ordered) == (pytest.approx(1000), "publishing")
    assert play(far_away, ordered, 5000).rate == pytest.approx(1000, rel=0.05)
    # Where the order is not kept, many are under way.
    assert rate(far_away, msgspec.structs.replace(ordered, partitions=0, lanes=32))[0] == pytest.approx(32_000)


def test_more_workers_than_partitions_do_no_more() -> None:
    found = [rate(FREE, Setting(workers=workers, partitions=16))[0] for workers in (8, 16, 17, 256)]
    assert found[1] == pytest.approx(2 * found[0])
    assert found[1] == pytest.approx(found[2]) == pytest.approx(found[3])


def test_partitions_that_do_not_divide_evenly_leave_workers_waiting_for_one() -> None:
    assert rate(FREE, Setting(workers=3, partitions=4))[0] == pytest.approx(2 * rate(FREE, Setting(partitions=4))[0])


def test_processes_on_one_machine_share_its_processors() -> None:
    shared = Setting(workers=8, wait_s=0.0, cores=2)
    busy = costs(near_event=10e-6, far_event=30e-6)
    assert rate(busy, shared) == (pytest.approx(50_000), "the machine's processors")
    assert play(busy, shared, 20_000).rate == pytest.approx(50_000, rel=0.1)


def test_a_hot_key_is_one_event_at_a_time() -> None:
    hot = Setting(workers=64, partitions=64, hottest=0.1)
    assert rate(FREE, hot) == (pytest.approx(2000), "the hottest key")


def test_an_event_alone_takes_the_sum_of_its_steps() -> None:
    quiet = Setting(workers=1, wait_s=0.005)
    played = play(USUAL, quiet, 100, offered=10.0)
    steps = 2e-6 + 100e-6 + 300e-6 + 101e-6 + 300e-6 + 150e-6 + 0.005 + 10e-6
    assert played.quantile_s(0.5) == pytest.approx(steps)
    assert played.quantile_s(0.99) == pytest.approx(steps)
    assert played.batch == 1


def test_latency_grows_with_the_load_and_so_do_messages() -> None:
    setting = Setting(workers=2, wait_s=0.005)
    found = [play(USUAL, setting, 5000, offered=part * rate(USUAL, setting)[0]) for part in (0.1, 0.5, 0.95)]
    assert found[0].quantile_s(0.5) <= found[1].quantile_s(0.5) <= found[2].quantile_s(0.5)
    assert found[0].batch <= found[2].batch


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12),
    st.sampled_from([0, 1, 4, 16]),
    st.sampled_from([0.0, 0.001, 0.01]),
    st.integers(1, 32),
    st.sampled_from([0, 2]),
)
def test_what_is_played_never_beats_what_the_formulas_allow(
    workers: int, partitions: int, wait_s: float, concurrency: int, cores: int
) -> None:
    setting = Setting(workers, wait_s, concurrency, partitions, lanes=1 if partitions else 32, cores=cores)
    played = play(USUAL, setting, 3000)
    assert len(played.latencies_s) == 3000
    # The shares of partitions are uneven in the simulation, which may leave less than even ones would, and never more.
    assert played.rate <= rate(USUAL, setting)[0] * 1.001
    assert played.latencies_s[0] >= wait_s


def test_many_partitions_make_small_messages_which_cost_the_server_more() -> None:
    found = [filled(Setting(workers=256, wait_s=0.0, partitions=partitions)) for partitions in (1, 16, 256, 8192)]
    assert [setting.batch for setting in found] == [512, 256, 16, 1]
    few, many = rate(USUAL, found[1]), rate(USUAL, found[2])
    assert many[0] < few[0]
    assert many[1] in ("server", "sender")


def test_every_limit_has_a_name_and_nothing_free_is_one() -> None:
    found = bounds(USUAL, Setting(cores=2, hottest=0.01))
    assert all(0 < value < math.inf for value in found.values())
    assert len(found) == 7


def test_processors_that_others_use_too_make_every_step_longer_and_no_wait() -> None:
    setting = Setting(workers=8, cores=2)
    half = USUAL.stretched(2.0)
    assert (half.far_event, half.hop_s) == (2 * USUAL.far_event, USUAL.hop_s)
    assert rate(half, setting)[0] < rate(USUAL, setting)[0]
    assert 0 < processors(0.05) <= (os.cpu_count() or 1)


def test_a_timer_is_never_early() -> None:
    assert 0 <= timer_s(0.001, 4, seconds=0.05) < 0.1


@pytest.mark.timeout(300)
def test_the_program_prints_what_was_predicted_what_was_measured_and_how_far_that_is_off(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["--workers", "1", "--seconds", "0.3", "--repeats", "1", "--events", "4000", "--wait", "0.002"])
    said = capsys.readouterr().out
    for field in msgspec.structs.fields(Costs):
        assert field.name.removesuffix("_s") in said
    (line,) = [line for line in said.splitlines() if line.startswith("| 1 |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert len(cells) == 13
    assert [cell for cell in cells if cell.endswith("%")] == [cells[6], cells[9], cells[12]]
    assert [line.split("|")[1].strip() for line in said.splitlines()[-3:]] == ["16", "64", "256"]
