"""What a flow needs of JetStream: names, streams, how each module's events are divided; and how that is set up.

Each stage that others send to has one stream, whose messages go to one worker each. Subjects below `furcula.<flow>`:

* `to.<stage>.<module>.<partition>`: events for a module. All that has one key is in one partition.
* `fence.<stage>.<module>.<partition>.<from module>.<from partition>`: holds one message, the sign of whoever may write
  into that partition from there. See `sending.py`.
* `dead.<stage>.<module>`: dead letters, in a stream of their own.
* `ask.<stage>.<module>`, `home.<worker>`, `beat.<worker>`: without a stream. See `asking.py` and `members.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, Literal

import msgspec
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, KeyValueConfig, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, BadRequestError, KeyDeletedError, KeyNotFoundError, NotFoundError
from nats.js.kv import KeyValue

from furcula.cluster.client import Client, tried
from furcula.engine.parts import Cut, cuts, key_of, share_of
from furcula.engine.plan import plan
from furcula.errors import ConfigurationError, FurculaError, Problem
from furcula.event import Event
from furcula.flow import FlowGraph
from furcula.options import Cluster
from furcula.transports.nats import token

__all__ = ["Change", "Entry", "Layout", "Mode"]

#: What of a stream may be changed, and is compared.
_FIELDS: Final = ("max_msgs", "max_bytes", "max_age", "num_replicas", "duplicate_window", "storage", "subjects")

#: How the events of a module are divided among the workers of its stage: by their key; all to one worker, in order; or
#: to whoever is free.
Mode = Literal["keyed", "ordered", "shared"]

_RECORD: Final = "layout"

#: Where a stream says how many of its messages may be fences.
_FENCES: Final = "furcula_fences"
#: The longest name of a stream that the server takes, in bytes.
_LONGEST: Final = 255
#: What the server says where a stream may not have as many bytes as it asks for.
_NO_ROOM: Final = (10023, 10028, 10047, 10120, 10122)
#: ... where it is one of its own, and another is to store each message too.
_ALONE: Final = 10074


class Entry(msgspec.Struct, frozen=True):
    """A module that other stages send to.

    Attributes:
        module: Its name.
        stage: Of the module.
        mode: How its events are divided.
        partitions: Into how many parts. 1 unless they are divided by key.
    """

    module: str
    stage: str
    mode: Mode
    partitions: int


class Change(msgspec.Struct, frozen=True):
    """One thing that setting up makes or changes.

    Attributes:
        what: In words.
        live: It may be done while workers run.
        made: It makes something that is missing, and changes nothing.
        possible: The server can do it. Otherwise the stream has to be deleted first, by whoever may lose what it holds.
    """

    what: str
    live: bool = True
    made: bool = False
    possible: bool = True


class Layout:
    """What one flow needs.

    Args:
        flow: The flow.

    Attributes:
        cuts: The routes between stages.
        entries: By module, what other stages send to.
        stages: All stages, in the order of the flow's modules.

    Raises:
        ConfigurationError: The flow cannot run in stages.
    """

    def __init__(self, flow: FlowGraph):
        self.flow = flow
        self.options: Cluster = flow.cluster
        self.cuts: list[Cut] = list(cuts(flow, plan(flow)).values())
        self.stages = list(dict.fromkeys(place.stage for place in flow.places.values()))
        self.entries = {cut.target: self._entry(cut) for cut in self.cuts}
        problems = [
            Problem(f"stages on many machines cannot share the queue in a file of {name!r}: their streams are durable")
            for name, place in flow.places.items()
            if name in self.entries and not isinstance(place.options.queue, int | None)
        ]
        self._name = token(flow.name)
        names = [self.dead, f"KV_{self.bucket}", *map(self.stream, self._sent_to)]
        if any(len(name) > _LONGEST for name in names):
            problems.append(
                Problem(f"the name of the flow, {flow.name[:40]!r}..., is too long for the server; make it shorter")
            )
        if problems:
            raise ConfigurationError(problems)

    def _entry(self, cut: Cut) -> Entry:
        options = cut.place.options
        if options.key is not None:
            return Entry(cut.target, cut.to_stage, "keyed", self.options.partitions)
        return Entry(cut.target, cut.to_stage, "shared" if options.order == "none" else "ordered", 1)

    def partition(self, cut: Cut, event: Event[Any]) -> int:
        """Where an event goes. Raises what the key's function raises."""
        entry, key = self.entries[cut.target], key_of(cut)
        return share_of(key(event), entry.partitions) if entry.mode == "keyed" and key is not None else 0

    # ------------------------------------------------------------------ names

    # The flow's part of a name has no `_` of its own, so that no two flows can come to the same name.

    @property
    def bucket(self) -> str:
        return "furcula_" + re.sub("=|_", lambda found: f"_{ord(found[0]):02X}", self._name)

    @property
    def dead(self) -> str:
        """The stream of dead letters."""
        return f"{self._prefix}_dead"

    def stream(self, stage: str) -> str:
        return f"{self._prefix}_to_{stage}"

    @property
    def _prefix(self) -> str:
        return "furcula_" + self._name.replace("_", "=5F")

    def subject(self, *parts: str | int) -> str:
        return ".".join(("furcula", self._name, *(token(str(part)) for part in parts)))

    def to(self, entry: Entry, partition: int) -> str:
        """The subject of a partition."""
        return self.subject("to", entry.stage, entry.module, partition)

    def fence(self, entry: Entry, partition: int, module: str, of: int) -> str:
        return self.subject("fence", entry.stage, entry.module, partition, module, of)

    def ask(self, entry: Entry) -> str:
        return self.subject("ask", entry.stage, entry.module)

    def consumer(self, entry: Entry, partition: int, epoch: int | str) -> str:
        """The name of a consumer. The server's files have fewer bytes for it than a module's name may take."""
        said = hashlib.sha256(entry.module.encode()).hexdigest()[:16]
        return f"{said}-{partition}-{epoch}"

    # ------------------------------------------------------------------ set-up

    @property
    def _sent_to(self) -> list[str]:
        """The stages that have a stream."""
        return list(dict.fromkeys(entry.stage for entry in self.entries.values()))

    def fences(self, stage: str) -> int:
        """How many fences there can be in a stage's stream: one for each that may write, in each partition."""
        count = 0
        for entry in self.entries.values():
            if entry.stage != stage:
                continue
            senders = {cut.from_stage for cut in self.cuts if cut.target == entry.module}
            writers = sum(one.partitions for one in self.entries.values() if one.stage in senders)
            writers += sum(place.is_source and place.stage in senders for place in self.flow.places.values())
            count += entry.partitions * writers
        return count

    def wanted(self, replicas: int) -> list[StreamConfig]:
        """The streams as they should be."""
        options = self.options
        storage = StorageType(options.storage)
        found = [
            StreamConfig(
                name=self.stream(stage),
                description=f"events of the flow {self.flow.name} for its stage {stage}",
                subjects=[f"{self.subject('to', stage)}.>", f"{self.subject('fence', stage)}.>"],
                retention=RetentionPolicy.WORK_QUEUE,
                discard=DiscardPolicy.NEW,
                max_msgs=options.max_messages + self.fences(stage),
                max_bytes=int(options.max_bytes),
                storage=storage,
                num_replicas=replicas,
                duplicate_window=float(options.duplicate_window),
                allow_rollup_hdrs=True,
                metadata={_FENCES: str(self.fences(stage))},
            )
            for stage in self._sent_to
        ]
        found.append(
            StreamConfig(
                name=self.dead,
                description=f"dead letters of the flow {self.flow.name}",
                subjects=[f"{self.subject('dead')}.>"],
                retention=RetentionPolicy.LIMITS,
                max_age=float(options.dead_letters_for),
                storage=storage,
                num_replicas=replicas,
                duplicate_window=min(float(options.duplicate_window), float(options.dead_letters_for)),
            )
        )
        return found

    def _record(self) -> dict[str, Any]:
        return {name: [entry.stage, entry.mode, entry.partitions] for name, entry in sorted(self.entries.items())}

    async def changes(self, client: Client) -> list[Change]:
        """What `apply` would make or change."""
        js = client.js
        replicas = self.replicas(client)
        found = []
        for config in self.wanted(replicas):
            try:
                there = (await tried(client, lambda name=config.name: js.stream_info(name))).config  # type: ignore[misc]
            except NotFoundError:
                storage = self.options.storage
                what = f"make the stream {config.name}, with {replicas} replica(s), in {storage}"
                found.append(Change(what, made=True))
                continue
            found += self._differences(there, config)
        recorded = await self._recorded(client)
        for name, entry in self._record().items():
            before = recorded.get(name)
            if before is not None and list(before) != entry:
                waits = (await self.lags(client, str(before[0]))).get(name, 0)
                first = f"; {waits} message(s) wait for it, and must be handled first" if waits else ""
                found.append(Change(f"{name}: from {_said(before)} to {_said(entry)}{first}", live=False))
        for name in recorded:
            if name not in self.entries:
                found.append(Change(f"{name}: no other stage sends to it any more", live=False))
        for stage in await self._gone(client):
            found.append(Change(f"remove the stream {self.stream(stage)}: nothing is sent there any more", live=False))
        return found

    def _differences(self, there: StreamConfig, config: StreamConfig) -> list[Change]:
        found = []
        for field in _FIELDS:
            is_now, wanted = getattr(there, field), getattr(config, field)
            if wanted is None or _plain(is_now) == _plain(wanted):
                continue
            if field == "num_replicas" and self._is_lowered_by_guess(there, config):
                continue
            if field == "max_msgs":
                had, has = _fences(there), _fences(config)
                is_now, wanted = is_now - had, wanted - has  # as the flow's options say it
                if is_now == wanted:
                    found.append(Change(f"{config.name}: room for {has} writers instead of {had}"))
                    continue
            what = f"{config.name}: {field} from {_shown(is_now)} to {_shown(wanted)}"
            if field == "storage":
                what += (
                    ", which is not possible: delete the stream when nothing waits in it, or leave `storage` as it was"
                )
            found.append(Change(what, live=field not in ("storage", "subjects"), possible=field != "storage"))
        return found

    def _is_lowered_by_guess(self, there: StreamConfig, config: StreamConfig) -> bool:
        """Servers that are away for a while are no reason to store less."""
        return self.options.replicas is None and (there.num_replicas or 1) > (config.num_replicas or 1)

    async def _gone(self, client: Client) -> list[str]:
        """Stages that were sent to when the flow was last set up, and are not now."""
        recorded = await self._recorded(client)
        gone = {str(stage) for stage, *_ in recorded.values()} - {*self._sent_to}
        found = []
        for stage in sorted(gone):
            try:
                await tried(client, lambda stage=stage: client.js.stream_info(self.stream(stage)))  # type: ignore[misc]
            except NotFoundError:
                continue
            found.append(stage)
        return found

    async def known_stages(self, client: Client) -> list[str]:
        """All stages that events may wait for: the flow's, and those that it had when it was last set up."""
        return [*self.stages, *(stage for stage in await self._gone(client) if stage not in self.stages)]

    async def _recorded(self, client: Client) -> Mapping[str, list[Any]]:
        try:
            bucket = await tried(client, lambda: client.js.key_value(self.bucket))
            entry = await tried(client, lambda: bucket.get(_RECORD))
        except (NotFoundError, KeyNotFoundError, KeyDeletedError):
            return {}
        found: Mapping[str, list[Any]] = msgspec.json.decode(entry.value or b"{}")
        return found

    async def apply(self, client: Client, *, make_only: bool = False) -> list[Change]:
        """Set up what the flow needs. May be repeated, and by many at once.

        Args:
            make_only: Make what is missing, and change nothing that is there: what a worker does when it starts.

        Returns:
            What was made or changed; with `make_only`, what was left as it is.

        Raises:
            FurculaError: A change cannot be made while events wait, or not at all; or a stream cannot be made.
        """
        changes = await self.changes(client)
        left = [change for change in changes if not change.made]
        for change in left:
            if not change.possible and not make_only:
                raise FurculaError(f"the flow {self.flow.name} is set up otherwise: {change.what}")
            if not change.live and (make_only or await self.waiting(client)):
                raise FurculaError(
                    f"the flow {self.flow.name} is set up otherwise: {change.what}. Stop its sources, let its workers "
                    f"finish (`furcula cluster drain`), then `furcula cluster apply`"
                )
        for config in self.wanted(self.replicas(client)):
            try:
                await self._make(client, config, change=not make_only)
            except APIError as error:
                raise FurculaError(self._why_not(client, config, error)) from None
        if not make_only:
            for stage in await self._gone(client):
                with suppress(NotFoundError):
                    await tried(client, lambda stage=stage: client.js.delete_stream(self.stream(stage)))  # type: ignore[misc]
        bucket = await self.open_bucket(client)
        await tried(client, lambda: bucket.put(_RECORD, msgspec.json.encode(self._record())))
        return left if make_only else changes

    async def _make(self, client: Client, config: StreamConfig, *, change: bool) -> None:
        js: JetStreamContext = client.js
        try:
            await tried(client, lambda: js.add_stream(config))
        except BadRequestError as error:
            if error.err_code != 10058:  # it is there, otherwise
                raise
            if change:
                there = (await tried(client, lambda: js.stream_info(config.name or ""))).config
                if self._is_lowered_by_guess(there, config):
                    config.num_replicas = there.num_replicas
                await tried(client, lambda: js.update_stream(config))

    def _why_not(self, client: Client, config: StreamConfig, error: APIError) -> str:
        said = f"the stream {config.name} cannot be made or changed: {error.description}"
        if error.err_code == _ALONE:
            return f"{said}. {client.shown} is one server by itself: leave out cluster.replicas, or make it 1"
        if error.err_code in _NO_ROOM or "bytes" in (error.description or ""):
            return f"{said}. It asks for cluster.max_bytes, {_shown(config.max_bytes)}: the server allows less"
        return said

    async def waiting(self, client: Client) -> int:
        """How many messages wait, in any stage that is or was, fences left out."""
        return sum([sum((await self.lags(client, stage)).values()) for stage in await self.known_stages(client)])

    async def lags(self, client: Client, stage: str) -> dict[str, int]:
        """By module, the messages that wait for it or are in hand, also where the flow has no such module any more."""
        found = {entry.module: 0 for entry in self.entries.values() if entry.stage == stage}
        above = f"{self.subject('to', stage)}."
        try:
            info = await tried(client, lambda: client.js.stream_info(self.stream(stage), subjects_filter=f"{above}>"))
        except NotFoundError:
            return {}
        names = {token(name): name for name in self.flow.places}
        for subject, count in (info.state.subjects or {}).items():
            said = subject.removeprefix(above).partition(".")[0]
            name = names.get(said, said)
            found[name] = found.get(name, 0) + count
        return found

    async def open_bucket(self, client: Client) -> KeyValue:
        """Where it stands who has what. Small, so it is always in files, and replicated as the streams are."""
        config = KeyValueConfig(bucket=self.bucket, history=1, replicas=self.replicas(client))
        try:
            return await tried(client, lambda: client.js.create_key_value(config))
        except BadRequestError as error:
            if error.err_code != 10058:
                raise
            return await tried(client, lambda: client.js.key_value(self.bucket))

    def replicas(self, client: Client) -> int:
        if self.options.replicas is not None:
            return self.options.replicas
        return 3 if client.servers >= 3 else 1


def _fences(config: StreamConfig) -> int:
    """How many of the messages that a stream may have are for fences."""
    said = (config.metadata or {}).get(_FENCES, "")
    return int(said) if said.isdecimal() else 0


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return sorted(value)
    value = getattr(value, "value", value)
    return float(value) if isinstance(value, int | float) else value


def _shown(value: Any) -> str:
    plain = _plain(value)
    return f"{plain:.10g}" if isinstance(plain, float) else str(plain)


def _said(record: list[Any]) -> str:
    stage, mode, partitions = record
    divided = f"{mode}, {partitions} partitions" if mode == "keyed" else mode
    return f"{stage} ({divided})"
