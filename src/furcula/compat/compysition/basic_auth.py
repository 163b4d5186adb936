"""Compysition's `BasicAuth`, by furcula's `auth.basic`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from furcula.compat.compysition.actor import Actor
from furcula.compat.compysition.event import Event
from furcula.module import Context
from furcula.modules.auth.basic import Basic
from furcula.options import Secret

__all__ = ["BasicAuth"]


class BasicAuth(Actor):
    """Send on the requests that bring a right name and password; the others fail with a 401 and its challenge.

    Who is right is said by one of: a subclass that overrides `verify`, a function, a dict of users, a file of them.
    The password is taken out of the request; the name is at `headers.auth.user`.

    Args:
        name: As registered.
        verify: Called with a name and a password, in a thread unless it is a coroutine function. It gives True, or a
            dict of what else is known of the user (which joins `headers.auth`), or False.
        users: Name -> password.
        users_file: Lines `name:hash`, as `htpasswd -B` writes them.
        realm: What the user is asked to log in to.
    """

    options: ClassVar[Mapping[str, Any]] = {"concurrency": 64}

    def __init__(
        self,
        name: str,
        verify: Callable[[str, str], Any] | None = None,
        *,
        users: Mapping[str, str] | None = None,
        users_file: str | None = None,
        realm: str = "compysition",
    ):
        super().__init__(name)
        given: dict[str, Any] = {"verify": verify, "users_file": users_file}
        if users is not None:
            given["users"] = {user: Secret(password) for user, password in users.items()}
        given = {argument: value for argument, value in given.items() if value is not None}
        if not given:
            if type(self).verify is BasicAuth.verify:
                raise ValueError(
                    f"{name} has nobody to let in: override verify(user, password), or give users, users_file or verify"
                )
            given["verify"] = self.verify
        self._basic = Basic(realm=realm, **given)

    def verify(self, user: str, password: str) -> Any:
        """Is this the password of that user? Override it, as a method or a coroutine; see the argument `verify`."""
        return False

    async def consume(self, event: Event, *args: Any, origin: str | None = None, **kwargs: Any) -> None:
        await self._basic.process(event.view())
        self.send_event(event)

    def opened(self, context: Context) -> None:
        self._basic.start(context)
        super().opened(context)

    def closed(self) -> None:
        self._basic.stop()
        super().closed()
