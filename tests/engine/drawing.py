"""Random flows: hypothesis draws them as values, so that one which fails can be shrunk and read."""

from __future__ import annotations

from hypothesis import strategies as st
from tests.engine.reference import KINDS, Link, Node, Spec

FAILING = {"fail", "afail", "flaky", "splitfail", "timeout", "lanes_flaky", "keep"}


@st.composite
def specs(draw: st.DrawFn, most: int = 7) -> Spec:
    """A flow from one source: fan-outs, merges, splits, filters, failures, joins, cycles, every option."""
    spec = Spec(count=draw(st.integers(0, 40)), source=draw(st.sampled_from(["sync", "async", "sync", "thread"])))
    # Ends that wait for a consumer: (module, port). The last parts connect every one of them, or leave it open.
    open_ends: list[tuple[str, str]] = [("source", "outbox")]
    used: list[tuple[str, str]] = []

    def node(kind: str) -> Node:
        made = Node(
            f"m{len(spec.nodes)}",
            kind,
            modulus=draw(st.integers(2, 4)),
            rest=draw(st.integers(0, 3)),
            queue=draw(st.sampled_from([None, None, None, 1, 3])),
        )
        spec.nodes.append(made)
        return made

    def feed(target: str, inbox: str = "inbox", most_inputs: int = 2) -> None:
        ends = [end for end in [*open_ends, *used] if end[0] != target]
        for end in draw(st.lists(st.sampled_from(ends), min_size=1, max_size=most_inputs, unique=True)):
            join(end, target, inbox)

    def join(end: tuple[str, str], target: str, inbox: str = "inbox", ttl: int | None = None) -> None:
        branch = "required"
        queue = draw(st.sampled_from([None, None, None, 1, 5])) if ttl is None else None
        if ttl is None and draw(st.integers(0, 9)) == 0 and end[1] not in ("failed", "expired"):
            branch, queue = "best-effort", None
        spec.links.append(Link(end[0], end[1], target, inbox, branch=branch, queue=queue, ttl=ttl))
        if end in open_ends:
            open_ends.remove(end)
            used.append(end)

    def opens(made: Node) -> None:
        open_ends.append((made.name, "outbox"))
        if made.kind == "route":
            open_ends.append((made.name, "side"))
        if made.kind in FAILING and draw(st.booleans()):
            open_ends.append((made.name, "failed"))

    for _ in range(draw(st.integers(1, most))):
        what = draw(st.sampled_from(["plain", "plain", "plain", "plain", "diamond", "cycle"]))
        if what == "plain":
            made = node(draw(st.sampled_from(KINDS)))
            feed(made.name)
            opens(made)
        elif what == "diamond":
            # `one` gives each event an identity of its own, so that what meets again has one partner each.
            fork = node("one")
            feed(fork.name)
            branches = []
            for _ in range(2):
                branch = node(draw(st.sampled_from(["pass", "apass", "filter", "fail", "wide", "flaky", "map"])))
                spec.links.append(Link(fork.name, "outbox", branch.name))
                branches.append(branch)
            meeting = node("join")
            spec.links.append(Link(branches[0].name, "outbox", meeting.name, "left"))
            spec.links.append(Link(branches[1].name, "outbox", meeting.name, "right"))
            opens(meeting)
        else:
            body = node("body")
            turn = node("turn")
            feed(body.name, most_inputs=1)
            spec.links.append(Link(body.name, "outbox", turn.name))
            spec.links.append(Link(turn.name, "again", body.name, ttl=draw(st.integers(1, 4))))
            opens(turn)
            if draw(st.booleans()):
                open_ends.append((body.name, "expired"))
    if draw(st.booleans()):
        spec.dead_letter = node("sink").name
    sink = node("sink")
    for end in list(open_ends):
        if end == ("source", "outbox") or draw(st.integers(0, 3)):
            join(end, sink.name)
    if not any(link.target == sink.name for link in spec.links):
        join(draw(st.sampled_from(used)), sink.name)
    return spec
