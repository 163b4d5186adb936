"""Which kind stands for which class: the built-in ones, and those that plug-ins offer as entry points.

Nothing is imported until a kind is asked for, so a flow pays for the modules that it uses.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from furcula.errors import ConfigurationError, nearest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["BUILT_IN", "ENTRY_POINTS", "kinds", "resolve"]

#: The group under which an installed package offers modules: `[project.entry-points."furcula.modules"]`.
ENTRY_POINTS = "furcula.modules"

#: kind -> `package.module:Class`
BUILT_IN: dict[str, str] = {
    "amqp.consume": "furcula.modules.amqp.consume:Consume",
    "amqp.publish": "furcula.modules.amqp.publish:Publish",
    "auth.basic": "furcula.modules.auth.basic:Basic",
    "auth.bearer": "furcula.modules.auth.bearer:Bearer",
    "auth.key": "furcula.modules.auth.key:Key",
    "auth.signature": "furcula.modules.auth.signature:Signature",
    "bus.publish": "furcula.modules.bus:BusPublish",
    "bus.subscribe": "furcula.modules.bus:BusSubscribe",
    "count": "furcula.modules.plain:Count",
    "cron": "furcula.modules.timing:Cron",
    "dead_letter.replay": "furcula.modules.dead_letter:DeadLetterReplay",
    "dead_letter.write": "furcula.modules.dead_letter:DeadLetterWrite",
    "file.read": "furcula.modules.file:FileRead",
    "file.write": "furcula.modules.file:FileWrite",
    "generate": "furcula.modules.timing:Generate",
    "http.files": "furcula.modules.http.files:Files",
    "http.limit": "furcula.modules.http.limit:Limit",
    "http.listen": "furcula.modules.http.listen:HttpListen",
    "http.method": "furcula.modules.http.method:Method",
    "http.poll": "furcula.modules.http.poll:Poll",
    "http.reply": "furcula.modules.http.reply:Reply",
    "http.request": "furcula.modules.http.request:Request",
    "inlet": "furcula.modules.plain:Inlet",
    "interval": "furcula.modules.timing:Interval",
    "jetstream.consume": "furcula.modules.nats.jetstream:Consume",
    "jetstream.publish": "furcula.modules.nats.jetstream:Publish",
    "json.validate": "furcula.modules.json_validate:JsonValidate",
    "kafka.consume": "furcula.modules.kafka.consume:Consume",
    "kafka.produce": "furcula.modules.kafka.produce:Produce",
    "log": "furcula.modules.plain:Log",
    "majordomo.request": "furcula.modules.majordomo.request:Request",
    "majordomo.route": "furcula.modules.majordomo.route:Route",
    "majordomo.serve": "furcula.modules.majordomo.serve:Serve",
    "match": "furcula.modules.match:Match",
    "modify": "furcula.modules.modify:Modify",
    "mqtt.publish": "furcula.modules.mqtt.publish:Publish",
    "mqtt.subscribe": "furcula.modules.mqtt.subscribe:Subscribe",
    "nats.publish": "furcula.modules.nats.core:Publish",
    "nats.subscribe": "furcula.modules.nats.core:Subscribe",
    "null": "furcula.modules.plain:Null",
    "postgres.listen": "furcula.modules.postgres.listen:Listen",
    "postgres.notify": "furcula.modules.postgres.notify:Notify",
    "redis.append": "furcula.modules.redis.streams:Append",
    "redis.consume": "furcula.modules.redis.streams:Consume",
    "redis.pop": "furcula.modules.redis.lists:Pop",
    "redis.publish": "furcula.modules.redis.channels:Publish",
    "redis.push": "furcula.modules.redis.lists:Push",
    "redis.subscribe": "furcula.modules.redis.channels:Subscribe",
    "stdin": "furcula.modules.standard:Stdin",
    "stdout": "furcula.modules.standard:Stdout",
    "syslog.listen": "furcula.modules.syslog:SyslogListen",
    "tcp.listen": "furcula.modules.tcp:TcpListen",
    "tcp.send": "furcula.modules.tcp:TcpSend",
    "template": "furcula.modules.template:Template",
    "udp.listen": "furcula.modules.udp:UdpListen",
    "udp.send": "furcula.modules.udp:UdpSend",
    "xml.match": "furcula.modules.xml.match:XmlMatch",
    "xml.parse": "furcula.modules.xml.parse:XmlParse",
    "xml.transform": "furcula.modules.xml.transform:XmlTransform",
    "xml.validate": "furcula.modules.xml.validate:XmlValidate",
    "xml.write": "furcula.modules.xml.write:XmlWrite",
    "zmq.publish": "furcula.modules.zmq.pipes:Publish",
    "zmq.pull": "furcula.modules.zmq.pipes:Pull",
    "zmq.push": "furcula.modules.zmq.pipes:Push",
    "zmq.reply": "furcula.modules.zmq.dialogue:Reply",
    "zmq.request": "furcula.modules.zmq.dialogue:Request",
    "zmq.subscribe": "furcula.modules.zmq.pipes:Subscribe",
}


def _plug_ins() -> Iterator[EntryPoint]:
    from importlib.metadata import entry_points  # 12 ms, for flows that use a kind which is not built in

    return iter(entry_points(group=ENTRY_POINTS))


def kinds() -> dict[str, str]:
    """Every known kind and where it comes from. A plug-in cannot take the name of a built-in kind."""
    return {**{point.name: point.value for point in _plug_ins()}, **BUILT_IN}


def resolve(kind: str) -> Any:
    """The class (or function) that a kind stands for.

    Raises:
        ConfigurationError: There is no such kind (with the nearest one), or a plug-in cannot be loaded.
    """
    where = BUILT_IN.get(kind)
    if where is not None:
        module, _, name = where.partition(":")
        return getattr(importlib.import_module(module), name)
    for point in _plug_ins():
        if point.name == kind:
            try:
                return point.load()
            except Exception as error:
                raise ConfigurationError(
                    f"the plug-in for {kind!r} ({point.value}) cannot be loaded: {type(error).__name__}: {error}"
                ) from error
    raise ConfigurationError(f"there is no kind of module {kind!r}{nearest(kind, kinds())}")
