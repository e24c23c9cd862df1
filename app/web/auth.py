"""The operators' door: GET and POST /login, POST /logout. Never says whether a name exists."""

import asyncio
import html
import re
import time
from collections import deque
from collections.abc import Callable
from string import Template
from typing import Any
from urllib.parse import parse_qs

import structlog
from litestar import MediaType, Request, Response, Router, get, post
from litestar.exceptions import ClientException, NotAuthorizedException, ServiceUnavailableException
from litestar.response import Redirect

from app import passwords
from app.db import Pool, acting
from app.store import operators
from app.store.operators import Operator
from app.web.pages import page, policy
from app.web.session import Sessions, require_same_site, secured

log = structlog.get_logger(__name__)

AnyRequest = Request[Any, Any, Any]

HOME = "/jobs"
_INSIDE = re.compile(r"/(?:jobs|schema)(?:/[\w-][\w.-]*)*/?")

TRIES, WINDOW = 5, 60.0  # bad logins within so many seconds, for one name or one client
BODY_BYTES, BODY_SECONDS = 16 * 1024, 5.0
# Each verification takes 64 MiB and a core for a while: those who guess wait for each other, not for webhooks.
AT_ONCE = 2
MOST_WAITING = 32  # for their turn; beyond that, 503
MOST_REMEMBERED = 10_000  # names and clients with bad logins

_FORM = """<p>Log in to see the jobs and the API.</p>
$trouble<form method="post" action="/login">
<input type="hidden" name="next" value="$next">
<label for="name">Name</label>
<input id="name" name="name" autocomplete="username" autocapitalize="none" spellcheck="false" maxlength="100"
 dir="auto" required autofocus>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" maxlength="1024" dir="auto"
 required$about>
<button>Log in</button>
</form>"""
_INSIDE_ALREADY = """<p>You are logged in as <bdi>$name</bdi>.</p>
<ul><li><a href="/jobs">Jobs</a></li><li><a href="/schema">HTTP API</a></li></ul>
<form method="post" action="/logout"><button>Log out</button></form>"""

POLICY = policy(page("login"), form_action="'self'", img_src="data:")


class Attempts:
    """Counts bad logins in this process alone: each of several web processes allows as many."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._bad: dict[str, deque[float]] = {}

    def __len__(self) -> int:
        """Names and clients that are remembered."""
        return len(self._bad)

    def wait(self, *who: str) -> float:
        """Seconds until another try is allowed for all of these; 0: now."""
        now = self._clock()
        longest = 0.0
        for key in who:
            times = self._bad.get(key)
            while times and now - times[0] >= WINDOW:
                times.popleft()
            if times and len(times) >= TRIES:
                longest = max(longest, WINDOW - (now - times[0]))
        return longest

    def count(self, *who: str) -> None:
        """A try begins. It counts as bad until `forgive`, so that tries at the same time count too."""
        if len(self._bad) + len(who) > MOST_REMEMBERED:
            now = self._clock()
            recent = [(key, times) for key, times in self._bad.items() if times and now - times[-1] < WINDOW]
            self._bad = dict(recent[-MOST_REMEMBERED // 2 :])  # the longest known go first
        for key in who:
            self._bad.setdefault(key, deque()).append(self._clock())

    def forgive(self, *who: str) -> None:
        """The try that `count` counted was good: forget what was bad before."""
        for key in who:
            self._bad.pop(key, None)


def ask(
    request: AnyRequest, *, status: int = 401, trouble: str = "", wait: float = 0.0, then: str = ""
) -> Response[str]:
    """The login page, as the answer to a request that lacks a session."""
    path = then or request.url.path
    form = Template(_FORM).substitute(
        next=html.escape(path if _INSIDE.fullmatch(path) else HOME),
        trouble=f'<p class="bad" id="trouble" role="alert">{html.escape(trouble)}</p>\n' if trouble else "",
        about=' aria-describedby="trouble" aria-invalid="true"' if trouble else "",
    )
    headers = {"Content-Security-Policy": POLICY, **({"Retry-After": str(int(wait) + 1)} if wait else {})}
    return Response(
        Template(page("login")).substitute(content=form), status_code=status, media_type=MediaType.HTML, headers=headers
    )


def _without_session(request: AnyRequest, _: Exception) -> Response[str]:
    return ask(request)


ASK: dict[int | type[Exception], Callable[[AnyRequest, Any], Response[Any]]] = {
    NotAuthorizedException: _without_session
}
"""Exception handlers of routes behind the guard: without a session they answer 401 with the login page."""


def routes(sessions: Sessions, console: Pool, *, attempts: Attempts | None = None) -> Router:
    """/login and /logout."""
    tries = attempts or Attempts()
    hashing = asyncio.Semaphore(AT_ONCE)
    waiting = 0

    async def verified(name: str, password: str) -> Operator | None:
        nonlocal waiting
        waiting += 1
        try:
            async with acting(console) as conn:
                operator = await operators.by_name(conn, name)
            async with hashing:
                stored = operator.password if operator is not None else None
                good = await asyncio.to_thread(passwords.matches, stored, password)
        finally:
            waiting -= 1
        return operator if good else None

    @get("/login", media_type=MediaType.HTML)
    async def login_page(request: AnyRequest) -> Response[str]:
        operator = await sessions.operator(request)
        if operator is None:
            return ask(request, status=200)
        content = Template(_INSIDE_ALREADY).substitute(name=html.escape(operator.name))
        return Response(Template(page("login")).substitute(content=content), media_type=MediaType.HTML)

    @post("/login", media_type=MediaType.HTML, request_max_body_size=BODY_BYTES)
    async def login(request: AnyRequest) -> Response[str] | Redirect:
        require_same_site(request)
        form = await _form(request)
        name, then = form.get("name", "")[:100], form.get("next", "")
        client = request.client.host if request.client else "unknown"
        who = (f"name {name.casefold()}", f"client {client}")
        if wait := tries.wait(*who):
            log.warning("too many bad logins", client=client, retry_after=wait)
            return ask(request, status=429, trouble="Too many attempts. Try again in a minute.", wait=wait, then=then)
        if waiting >= MOST_WAITING:
            raise ServiceUnavailableException(headers={"Retry-After": "1"})
        tries.count(*who)
        operator = await verified(name, form.get("password", ""))
        if operator is None:
            log.warning("bad login", client=client)
            return ask(request, trouble="Name or password is wrong.", then=then)
        tries.forgive(*who)
        sessions.begin(request, operator)
        log.info("login", operator_id=operator.id, client=client)
        return Redirect(then if _INSIDE.fullmatch(then) else HOME, status_code=303)

    @post("/logout")
    async def logout(request: AnyRequest) -> Redirect:
        require_same_site(request)
        request.clear_session()
        return Redirect("/login", status_code=303)

    return Router(
        path="/",
        route_handlers=[login_page, login, logout],
        middleware=[secured(POLICY), sessions.middleware],
        include_in_schema=False,
    )


async def _form(request: AnyRequest) -> dict[str, str]:
    """The fields of an HTML form. A body that does not come, or is none, is the client's fault."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.body()
        return {key: values[-1] for key, values in parse_qs(body.decode(), max_num_fields=20).items()}
    except TimeoutError as error:
        raise ClientException(status_code=408) from error
    except ValueError as error:
        raise ClientException from error
