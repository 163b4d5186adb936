"""What is promised on each path of a flow."""

from __future__ import annotations

from typing import ClassVar

from furcula import Event, Flow, Options, Retry, Source
from furcula.explain import MAX_PATHS, explain
from furcula.options import Cluster


class Positioned(Source):
    acknowledges: ClassVar[str] = "position"

    def events(self):
        yield 1


class Asked(Source):
    acknowledges: ClassVar[str] = "request"
    inboxes = ("inbox",)

    def events(self):
        yield 1

    def process(self, event: Event) -> None: ...


def numbers():
    yield 1


def handle(event: Event) -> Event:
    return event


async def wait(event: Event) -> Event:
    return event


def is_some(data: object) -> bool:
    return data is not None


def plain(data: object) -> object:
    return data


def chain(*, source=Positioned, name="a", subject=wait, **options):
    flow = Flow("test")
    flow.source(source, "in") >> flow.module(subject, name, **options) >> flow.module(handle, "out")
    return flow


def only(flow):
    (path,) = explain(flow).paths
    return path


def test_a_source_with_positions_promises_at_least_once_and_may_read_again():
    path = only(chain())
    assert path.delivery == "at least once"
    assert path.reasons == ("in goes on only past events that are settled",)
    assert path.duplicates == ("after a crash in reads again what was not settled",)
    assert path.loss == ()
    assert path.order == ()


def test_a_generator_promises_at_most_once_because_nobody_can_be_told():
    path = only(chain(source=numbers))
    assert path.delivery == "at most once"
    assert path.reasons == ("in cannot be told what became of its events",)
    assert path.loss == ("a crash loses what in had admitted and was not settled",)


def test_a_queue_that_drops_weakens_the_path():
    path = only(chain(queue=5, overflow="drop-oldest"))
    assert path.delivery == "at most once"
    assert path.reasons == ("a may drop the oldest when its queue is full",)
    assert path.loss == ("a: overflow drop-oldest, counted",)


def test_a_best_effort_branch_weakens_its_own_path_only():
    flow = Flow("test")
    source = flow.source(Positioned, "in")
    for name in ("sure", "maybe"):
        flow.module(handle, name)
    flow.connect(source, "sure")
    flow.connect(source, "maybe", branch="best-effort")
    assert [(path.modules[-1], path.delivery) for path in explain(flow).paths] == [
        ("sure", "at least once"),
        ("maybe", "at most once"),
    ]


def test_where_order_is_given_up_is_named():
    assert only(chain(concurrency=4, order="none")).order == ("given up at a (order: none)",)
    assert only(chain(concurrency=4)).order == ()
    path = only(chain(options=Options(key="data.id", retry=Retry(attempts=3))))
    assert path.order == ("kept per key at a",)
    assert path.duplicates[1:] == ("a may handle an event up to 3 times (retry)",)


def test_a_merge_and_a_join_are_named():
    flow = Flow("test")
    one, two = flow.source(Positioned, "one"), flow.source(Positioned, "two")
    (one, two) >> flow.module(handle, "merged")
    assert "merged merges 2 routes as events arrive, each in its order" in explain(flow).paths[0].order
    flow = Flow("test")
    source = flow.source(Positioned, "in")
    joined = flow.module(handle, "joined", inboxes=("left", "right"), join=True)
    source >> joined["left"]
    source >> joined["right"]
    assert explain(flow).paths[0].order == ("at joined by completion of its joins",)


def test_a_cycle_keeps_order_per_turn_and_ends_the_path():
    flow = Flow("test", ttl=3)
    source, a, b = flow.source(Positioned, "in"), flow.module(handle, "a"), flow.module(handle, "b")
    source >> a >> b
    b["again"] >> a
    path = only(flow)
    assert path.modules == ("in", "a", "b")
    assert "kept per turn only in the cycle through a" in path.order


def test_failures_go_to_their_route_or_the_dead_letter_module_or_are_refused():
    flow = chain()
    assert only(flow).failures == ("all -> logged, counted, refused at in, which goes on",)
    flow.module(handle, "dead")
    flow.dead_letter = "dead"
    assert only(flow).failures == ("all -> dead (dead letter)",)
    flow["a"].failed >> flow.module(handle, "mend")
    assert only(flow).failures == ("a -> mend", "out -> dead (dead letter)")


def test_a_filter_drops_on_purpose_and_an_unconnected_outbox_is_named():
    class Two:
        outboxes = ("outbox", "other", "rest")
        optional = ("rest",)

        def process(self, event: Event) -> Event:
            return event

    flow = Flow("test")
    (
        flow.source(Positioned, "in")
        >> flow.filter(is_some, "some")
        >> flow.module(Two, "two")
        >> flow.module(handle, "out")
    )
    assert only(flow).loss == (
        "on purpose: some filters",
        "two.other leads nowhere: dropped, counted",
        "on purpose: two drops what leaves by rest",
    )


def test_the_full_circle_ends_where_it_began():
    flow = Flow("test")
    http = flow.module(Asked, "http")
    http >> flow.module(handle, "work") >> http
    path = only(flow)
    assert path.title == "http -> work -> http"
    assert path.reasons == ("http answers when an event is settled, and refuses what failed",)
    assert path.failures == ("all -> logged, counted, refused by http",)


def test_a_flow_without_sources_is_entered_from_outside():
    flow = Flow("test")
    flow.module(handle, "a") >> flow.module(handle, "b")
    assert only(flow).reasons == ("whoever puts events into a can wait until they are settled",)


def test_thousands_of_millions_of_paths_are_told_in_a_few_that_go_along_every_route():
    flow = Flow("test")
    last = flow.source(Positioned, "in")
    for number in range(40):
        left, right = flow.map(plain, f"left{number}"), flow.map(plain, f"right{number}")
        middle = flow.map(plain, f"middle{number}")
        last >> (left, right) >> middle
        last = middle
    told = explain(flow)
    assert len(told.paths) == 2 <= MAX_PATHS
    assert {name for path in told.paths for name in path.modules} == set(flow.places)
    assert told.more == 2**40 - 2
    assert str(told).endswith("... and 1,099,511,627,774 more paths, each along routes that are told above")


def test_ports_are_named_in_the_title():
    flow = Flow("test")
    source, a, b = flow.source(Positioned, "in"), flow.module(handle, "a"), flow.module(handle, "b")
    source >> a
    a["good"] >> b
    a["bad"] >> b
    assert [path.title for path in explain(flow).paths] == ["in -> a.good -> b", "in -> a.bad -> b"]


def test_the_text_is_six_lines_for_each_path():
    assert str(explain(chain(order="none", concurrency=2))) == (
        "in -> a -> out\n"
        "  delivery    at least once: in goes on only past events that are settled\n"
        "  order       given up at a (order: none)\n"
        "  loss        none\n"
        "  duplicates  after a crash in reads again what was not settled\n"
        "  failures    all -> logged, counted, refused at in, which goes on"
    )


def staged(source=Positioned, **options):
    """in -> a, and b in a stage of its own."""
    flow = Flow("test")
    flow.source(source, "in") >> flow.module(handle, "a") >> flow.module(wait, "b", stage="far", **options)
    return flow


def test_a_flow_in_one_stage_says_nothing_of_stages():
    assert only(chain()).stages == ()
    assert "stages" not in str(explain(chain()))


def test_where_a_route_leaves_its_stage_is_said_how_its_events_are_shared():
    assert only(staged(order="none")).stages[1] == "a -> b (main to far): shared by all workers of far, in no order"
    assert only(staged()).stages[1] == "a -> b (main to far): in order, at one worker of far at a time"
    flow = staged(key="data.id")
    flow.cluster = Cluster(partitions=8)
    assert only(flow).stages[1] == (
        "a -> b (main to far): in order by key, a key's events at one worker of far; with --cluster in 8 partitions, "
        "of which each is at one"
    )


def test_what_each_way_to_run_stages_promises_is_told_with_the_flows_own_limits():
    flow = staged(key="data.id")
    flow.cluster = Cluster(duplicate_window="30s", max_deliveries=3)
    processes, cluster = only(flow).stages[2:]
    assert processes.startswith("--processes: settled when the far side reports; sent again when a worker dies")
    assert "it may be handled twice" in processes
    assert cluster.startswith("--cluster: delivered when stored")
    assert "recognised within 30 s" in cluster
    assert "after 3 tries" in cluster


def test_a_source_that_runs_once_and_one_that_runs_in_every_worker_are_told_apart():
    assert only(staged()).stages[0] == "in runs in one worker at a time"
    flow = staged()
    flow.places["in"].options = Options.of(flow.places["in"].options, single=False)
    assert only(flow).stages[0] == "in runs in every worker of main, whose events are not in order with each other"


def test_an_answer_goes_back_to_the_worker_where_somebody_waits():
    flow = Flow("test")
    http = flow.module(Asked, "http")
    http >> flow.module(handle, "work", stage="far", order="none") >> http
    stages = only(flow).stages
    assert "work -> http (far to main): back to the worker where somebody waits" in stages
    assert stages[-1].startswith("--cluster: what somebody waits for at http goes by request, and is not stored")
    assert not any("goes by request" in said for said in only(staged()).stages)


def test_failures_that_leave_their_stage_are_told_too():
    flow = chain()
    flow["a"].failed >> flow.module(handle, "mend", stage="hospital")
    assert any(said.startswith("a.failed -> mend (main to hospital): in order") for said in only(flow).stages)
    flow = chain()
    flow.module(handle, "dead", stage="hospital")
    flow.dead_letter = "dead"
    assert any(said.startswith("failures of a, out -> dead (to hospital): in order") for said in only(flow).stages)


def test_in_the_text_each_fact_about_stages_has_a_line():
    text = str(explain(staged(order="none")))
    assert "\n  stages      in runs in one worker at a time\n              a -> b (main to far): shared by all" in text


def test_a_module_that_more_workers_would_not_make_faster_is_warned_of():
    (warning,) = staged().warnings()
    assert warning.path == "modules.b"
    assert "b is entered from the stage main, and one worker at a time will take it: say key or order: none" in str(
        warning
    )
    assert staged(key="data.id").warnings() == []
    assert staged(order="none").warnings() == []
    assert chain().warnings() == []


def test_what_pairs_by_lineage_and_what_takes_failures_is_not_warned_of():
    flow = Flow("test")
    source = flow.source(Positioned, "in")
    joined = flow.module(handle, "joined", inboxes=("left", "right"), join=True, stage="far")
    source >> (joined["left"], joined["right"])
    assert flow.warnings() == []
    flow = chain()
    flow["a"].failed >> flow.module(handle, "dead", stage="far")
    assert flow.warnings() == []


def test_a_flow_with_nothing_in_it_has_nothing_to_tell():
    assert str(explain(Flow("empty"))) == "empty: no path leads from a source to a sink"
