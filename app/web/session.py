"""Operators' sessions: an encrypted cookie that names an operator and a session number, and the guard that asks for it.

Only the pages that need it carry this middleware; webhooks never see it. It writes nothing to the database.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from litestar.connection import ASGIConnection
from litestar.datastructures import MutableScopeHeaders
from litestar.exceptions import NotAuthorizedException, PermissionDeniedException, SerializationException
from litestar.handlers import BaseRouteHandler
from litestar.middleware.session import SessionMiddleware
from litestar.middleware.session.client_side import ClientSideSessionBackend, CookieBackendConfig
from litestar.types import ASGIApp, Message, Middleware, Receive, Scope, ScopeSession, Send

from app.db import Pool, acting
from app.store import operators
from app.store.operators import Operator

HOURS = 12
# How long (seconds) a process may take a session for good after another has ended it.
CHECK_EVERY = 2.0

Connection = ASGIConnection[Any, Any, Any, Any]


class Sessions:
    """Who is logged in."""

    def __init__(
        self, console: Pool, keys: Sequence[bytes], *, secure: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`keys` are the installation's secret keys: sessions are sealed with a key derived from the first.

        `secure`: the cookie travels over HTTPS alone. `clock` in seconds.
        """
        self._console = console
        self._clock = clock
        self._checked: dict[UUID, tuple[float, Operator | None]] = {}
        self.cookie = "__Host-qasid" if secure else "qasid"
        config = CookieBackendConfig(
            secret=_derived(keys[0]),
            key=self.cookie,
            max_age=HOURS * 3600,
            secure=secure,
            httponly=True,
            samesite="lax",
        )
        backend = _Cookies(config, [_derived(key) for key in keys[1:]])

        def middleware(app: ASGIApp) -> ASGIApp:
            return SessionMiddleware(app, backend)

        self.middleware: Middleware = middleware

    def __deepcopy__(self, _: object) -> "Sessions":
        """Litestar copies the routers that it is given, and what their guards are bound to: this stays one."""
        return self

    def begin(self, connection: Connection, operator: Operator) -> None:
        """Give the connection a new session, in place of any that it has."""
        self._checked.pop(operator.id, None)
        connection.set_session({"operator": str(operator.id), "number": operator.session})

    async def operator(self, connection: Connection) -> Operator | None:
        """Whose session the connection carries, if it still holds: the operator is there, the password the same.

        Raises:
            DatabaseUnavailable: it could not be asked for.
        """
        session = connection.session
        try:
            id, number = UUID(session["operator"]), int(session["number"])
        except (KeyError, TypeError, ValueError):
            return None
        at, operator = self._checked.get(id, (None, None))
        if at is None or self._clock() - at >= CHECK_EVERY:
            async with acting(self._console) as conn:
                operator = await operators.by_id(conn, id)
            self._checked[id] = (self._clock(), operator)
        return operator if operator is not None and operator.session == number else None

    async def guard(self, connection: Connection, _: BaseRouteHandler) -> None:
        """Let operators through, and of their browsers no request that another site had it send.

        Raises:
            NotAuthorizedException: no session.
            PermissionDeniedException: the request comes from another site.
        """
        if await self.operator(connection) is None:
            raise NotAuthorizedException
        require_same_site(connection)


def require_same_site(connection: Connection) -> None:
    """Refuse a request that changes something, sent by a browser on behalf of another site.

    As Go's http.CrossOriginProtection: Sec-Fetch-Site decides, else Origin against Host; what sends neither is no
    browser, and has no cookie to misuse.

    Raises:
        PermissionDeniedException: it is one.
    """
    if connection.scope["method"] in ("GET", "HEAD", "OPTIONS"):  # type: ignore[typeddict-item]
        return
    headers = connection.headers
    if (site := headers.get("sec-fetch-site")) is not None:
        same = site in ("same-origin", "none")
    elif (origin := headers.get("origin")) is not None:
        same = bool(origin) and urlsplit(origin).netloc == headers.get("host", "")
    else:
        same = True
    if not same:
        raise PermissionDeniedException


def secured(policy: str, *, cache: str = "no-store") -> Middleware:
    """Middleware that puts the security headers on every response, errors too. What a response says itself stands.

    So the login page keeps the policy of its own form, wherever it is the answer.
    """
    added = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        # Not no-referrer: browsers would then send "Origin: null" with our own forms.
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": cache,
    }

    def wrap(app: ASGIApp) -> ASGIApp:
        async def handle(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_with_headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    headers = MutableScopeHeaders.from_message(message)
                    for name, value in added.items():
                        headers.setdefault(name, value)
                await send(message)

            await app(scope, receive, send_with_headers)

        return handle

    return wrap


def _derived(key: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"qasid session cookie").derive(key)


class _Cookies(ClientSideSessionBackend):
    """Litestar's, but older keys still open a cookie, nonsense in one is no error, and only a change is sent back.

    Litestar's own sends the cookie with each response, so that one which comes late would undo a logout.
    """

    __slots__ = ("_older",)

    def __init__(self, config: CookieBackendConfig, older: Sequence[bytes]) -> None:
        super().__init__(config)
        self._older = [ClientSideSessionBackend(replace(config, secret=key)) for key in older]

    def load_data(self, data: list[bytes]) -> dict[str, Any]:
        for load in (super().load_data, *(backend.load_data for backend in self._older)):
            try:
                found = load(data)
            except (InvalidTag, SerializationException, LookupError, TypeError, ValueError, RecursionError):
                continue
            return found if isinstance(found, dict) else {}
        return {}

    async def load_from_connection(self, connection: Connection) -> dict[str, Any]:
        loaded = await super().load_from_connection(connection)
        connection.scope["state"]["session_as_loaded"] = dict(loaded)
        return loaded

    async def store_in_message(self, scope_session: ScopeSession, message: Message, connection: Connection) -> None:
        if scope_session != connection.scope["state"].get("session_as_loaded"):
            await super().store_in_message(scope_session, message, connection)
