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
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, KeyValueConfig, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import BadRequestError, KeyNotFoundError, NotFoundError
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
    """

    what: str
    live: bool = True


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
        if problems:
            raise ConfigurationError(problems)
        self._name = token(flow.name)

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

    @property
    def bucket(self) -> str:
        return f"furcula_{self._name}".replace("=", "-")

    @property
    def dead(self) -> str:
        """The stream of dead letters."""
        return f"furcula_{self._name}_dead"

    def stream(self, stage: str) -> str:
        return f"furcula_{self._name}_to_{stage}"

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
                max_msgs=options.max_messages,
                max_bytes=int(options.max_bytes),
                storage=storage,
                num_replicas=replicas,
                duplicate_window=float(options.duplicate_window),
                allow_rollup_hdrs=True,
            )
            for stage in dict.fromkeys(entry.stage for entry in self.entries.values())
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
                found.append(Change(f"make the stream {config.name}, with {replicas} replica(s), in {config.storage}"))
                continue
            for field in _FIELDS:
                is_now, wanted = getattr(there, field), getattr(config, field)
                if wanted is not None and _plain(is_now) != _plain(wanted):
                    live = field not in ("storage", "subjects")
                    found.append(Change(f"{config.name}: {field} from {_shown(is_now)} to {_shown(wanted)}", live))
        recorded = await self._recorded(client)
        if recorded is not None:
            for name, entry in self._record().items():
                before = recorded.get(name)
                if before is not None and list(before) != entry:
                    found.append(
                        Change(
                            f"{name}: from {_said(before)} to {_said(entry)}; what waits for it must be handled first",
                            live=False,
                        )
                    )
            for name in recorded:
                if name not in self.entries:
                    found.append(Change(f"{name}: no other stage sends to it any more", live=False))
        return found

    async def _recorded(self, client: Client) -> Mapping[str, list[Any]] | None:
        try:
            bucket = await tried(client, lambda: client.js.key_value(self.bucket))
            entry = await tried(client, lambda: bucket.get(_RECORD))
        except (NotFoundError, KeyNotFoundError):
            return None
        except Exception as error:
            if type(error).__name__ == "BucketNotFoundError":
                return None
            raise
        found: Mapping[str, list[Any]] = msgspec.json.decode(entry.value or b"{}")
        return found

    async def apply(self, client: Client, *, make_only: bool = False) -> list[Change]:
        """Set up what the flow needs. May be repeated, and by many at once.

        Args:
            make_only: Make what is missing, and change nothing that is there: what a worker does when it starts.

        Returns:
            What was made or changed; with `make_only`, what was left as it is.

        Raises:
            FurculaError: A change cannot be made while events wait.
        """
        js: JetStreamContext = client.js
        changes = await self.changes(client)
        left = [change for change in changes if not change.what.startswith("make ")]
        for change in left:
            if not change.live and (make_only or await self._waiting(client)):
                raise FurculaError(
                    f"the flow {self.flow.name} is set up otherwise: {change.what}. Stop its sources, let its workers "
                    f"finish (`furcula cluster drain`), then `furcula cluster apply`"
                )
        for config in self.wanted(self.replicas(client)):
            try:
                await tried(client, lambda config=config: js.add_stream(config))  # type: ignore[misc]
            except BadRequestError as error:
                if error.err_code != 10058:  # it is there, otherwise
                    raise FurculaError(f"the stream {config.name} cannot be made: {error.description}") from None
                if not make_only:
                    await tried(client, lambda config=config: js.update_stream(config))  # type: ignore[misc]
        bucket = await self.open_bucket(client)
        await tried(client, lambda: bucket.put(_RECORD, msgspec.json.encode(self._record())))
        return left if make_only else changes

    async def _waiting(self, client: Client) -> int:
        """How many messages wait, fences left out."""
        count = 0
        for stage in {entry.stage for entry in self.entries.values()}:
            count += sum((await self.lags(client, stage)).values())
        return count

    async def lags(self, client: Client, stage: str) -> dict[str, int]:
        """By module, the messages that wait for it or are in hand."""
        try:
            info = await tried(
                client,
                lambda: client.js.stream_info(self.stream(stage), subjects_filter=f"{self.subject('to', stage)}.>"),
            )
        except NotFoundError:
            return {}
        found: dict[str, int] = {}
        subjects = info.state.subjects or {}
        for entry in self.entries.values():
            if entry.stage == stage:
                found[entry.module] = sum(subjects.get(self.to(entry, number), 0) for number in range(entry.partitions))
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
