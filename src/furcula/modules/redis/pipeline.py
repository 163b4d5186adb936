"""What the sinks of Redis share: a batch is a pipeline of one command for each event."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from furcula.modules.consuming import Lost
from furcula.modules.producing import Producing
from furcula.modules.redis.client import BROKEN, OutOfMemoryError, ReadOnlyError, Redis, RedisError, connect
from furcula.modules.sending import Outgoing, Refused, Unavailable

__all__ = ["Pipeline"]


class Pipeline(Producing[Redis]):
    """A sink that has one command for each event."""

    broken = BROKEN

    @abstractmethod
    def _command(self, pipeline: Any, sent: Outgoing) -> None:
        """Add the command for one event."""

    async def _connect(self, lost: Lost) -> Redis:
        return await connect(self._endpoint, tls=self._tls, folder=self._context.folder, timeout_s=self._timeout)

    async def _disconnect(self, client: Redis) -> None:
        await client.aclose()

    async def _send(self, client: Redis, batch: list[Outgoing]) -> dict[int, BaseException]:
        pipeline: Any = client.pipeline(transaction=False)
        for sent in batch:
            self._command(pipeline, sent)
        errors: dict[int, BaseException] = {}
        for sent, answer in zip(batch, await pipeline.execute(raise_on_error=False), strict=True):
            if isinstance(answer, OutOfMemoryError | ReadOnlyError):
                errors[sent.index] = Unavailable(f"{self._endpoint}: {sent.to}: {answer}")
            elif isinstance(answer, BROKEN):
                raise answer
            elif isinstance(answer, RedisError):
                errors[sent.index] = Refused(f"{self._endpoint}: {sent.to}: {answer}")
        return errors
