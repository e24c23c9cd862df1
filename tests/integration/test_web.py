"""The web process but for webhooks: who may see what, and what is said to those who may not."""

import asyncio
import base64
import hashlib
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psycopg
import pytest
from litestar import Litestar
from litestar.routes import HTTPRoute
from prometheus_client.parser import text_string_to_metric_families

from app import db, passwords, settings
from app.asgi import create_app
from app.store import operators
from app.web import auth, session
from tests.conftest import Database

pytestmark = pytest.mark.anyio

KEY = "11" * 32
NAME, PASSWORD = "Layla", "correct horse battery"
HASH = passwords.hashed(PASSWORD)

# What anybody may ask for, with the status that a bare request of a stranger on another machine gets.
OPEN = {
    ("GET", "/livez"): 200,
    ("GET", "/readyz"): 200,
    ("GET", "/metrics"): 403,
    ("GET", "/login"): 200,
    ("POST", "/login"): 401,
    ("POST", "/logout"): 303,
}


def app_for(database_url: str, **more: object) -> Litestar:
    """The application as the environment would set it."""
    found = settings.Settings(database_url=database_url, secret_key=KEY, **more)  # type: ignore[arg-type]
    return create_app(found)


@asynccontextmanager
async def browser(app: Litestar, *, client: str = "203.0.113.7") -> AsyncIterator[httpx.AsyncClient]:
    """A browser (it keeps cookies, follows nothing) at that address, against an app that runs."""
    transport = httpx.ASGITransport(app=app, client=(client, 40000))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="https://qasid.test") as http:
        yield http


async def until_ready(http: httpx.AsyncClient) -> httpx.Response:
    """The first /readyz that is 200: a process reads its configuration a moment after it starts."""
    for _ in range(500):
        if (answer := await http.get("/readyz")).status_code == 200:
            return answer
        await asyncio.sleep(0.02)
    raise AssertionError(answer.text)


async def add_operator(url: str) -> None:
    """Layla may log in."""
    async with db.pool(url, "qasid_app", name="test", max_size=1) as pool, db.acting(pool) as conn:
        assert await operators.add(conn, NAME, HASH)


async def log_in(
    http: httpx.AsyncClient, *, name: str = NAME, password: str = PASSWORD, **headers: str
) -> httpx.Response:
    return await http.post("/login", data={"name": name, "password": password}, headers=headers)


@pytest.fixture
async def app(database: Database) -> AsyncIterator[Litestar]:
    """The application, running on a database that has one operator."""
    await add_operator(database.url)
    app = app_for(database.url)
    async with app.lifespan():
        yield app


def ways_in(app: Litestar) -> list[tuple[str, str]]:
    """Each method and path, with something in place of parameters."""
    found = []
    for route in app.routes:
        methods = route.methods if isinstance(route, HTTPRoute) else {"GET", "POST"}
        path = re.sub(r"\{[^}]*\}", "x", route.path_format)
        found += [(method, path) for method in sorted(methods)]
    return found


async def test_nothing_but_the_open_list_answers_a_stranger(app: Litestar) -> None:
    """Every route without a session is 401 or 404, but for those that are listed and the webhooks' door."""
    seen = {}
    async with browser(app) as http:
        await until_ready(http)
        for method, path in ways_in(app):
            if method == "OPTIONS" and (await http.request(method, path)).status_code == 204:
                continue  # tells the methods of an open path, which are no secret
            seen[method, path] = (await http.request(method, path)).status_code
    closed = {way: status for way, status in seen.items() if way not in OPEN and not way[1].startswith("/webhooks")}
    assert set(closed.values()) <= {401, 404}, closed
    assert {way: status for way, status in seen.items() if way in OPEN} == OPEN
    assert (
        closed["GET", "/jobs"]
        == closed["GET", "/jobs/static/x"]
        == closed["POST", "/jobs/api/queues/x/jobs/x/abort"]
        == 401
    )
    assert closed["GET", "/schema/openapi.json"] == closed["GET", "/schema/static/x"] == 401


@pytest.mark.parametrize("path", ["/jobs", "/schema"])
async def test_without_a_session_the_body_is_the_login_page_and_leads_back(app: Litestar, path: str) -> None:
    """A 401 carries the form; logging in with it ends where one wanted to go."""
    async with browser(app) as http:
        asked = await http.get(path)
        assert asked.status_code == 401
        assert asked.headers["content-type"].startswith("text/html")
        assert f'name="next" value="{path}"' in asked.text
        done = await http.post("/login", data={"name": NAME, "password": PASSWORD, "next": path})
        assert (done.status_code, done.headers["location"]) == (303, path)
        shown = await http.get(path, follow_redirects=True)
        assert shown.status_code == 200
        assert "login" not in shown.text


@pytest.mark.parametrize(
    "then", ["https://evil.test/", "//evil.test", "/jobs/../../x", "/jobs\r\nx: y", "/login", '/jobs"><script>']
)
async def test_login_leads_nowhere_else(app: Litestar, then: str) -> None:
    """`next` leads to pages of ours alone, and is never written out as it came."""
    async with browser(app) as http:
        wrong = await http.post("/login", data={"name": NAME, "password": "wrong", "next": then})
        assert 'value="/jobs"' in wrong.text
        right = await http.post("/login", data={"name": NAME, "password": PASSWORD, "next": then})
        assert (right.status_code, right.headers["location"]) == (303, "/jobs")


async def test_logout_ends_the_session_in_this_browser(app: Litestar) -> None:
    """After POST /logout the cookie is gone."""
    async with browser(app) as http:
        await log_in(http)
        assert NAME in (await http.get("/login")).text
        assert (await http.post("/logout")).status_code == 303
        assert not http.cookies
        assert (await http.get("/jobs")).status_code == 401


async def test_the_sixth_bad_login_within_a_minute_waits(app: Litestar) -> None:
    """Five bad logins for a name, from wherever, then 429 with Retry-After, for the right password too."""
    for n in range(5):
        async with browser(app, client=f"198.51.100.{n}") as http:
            assert (await log_in(http, password="wrong", **{"X-Forwarded-For": f"192.0.2.{n}"})).status_code == 401
    async with browser(app, client="198.51.100.200") as http:
        refused = await log_in(http)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 61
        assert (await log_in(http, name="Nobody")).status_code == 401


async def test_one_client_cannot_try_many_names(app: Litestar) -> None:
    """Five bad logins from one address, whatever the names and whatever X-Forwarded-For says, then 429."""
    async with browser(app) as http:
        for n in range(5):
            headers = {"X-Forwarded-For": f"192.0.2.{n}"}
            assert (await log_in(http, name=f"name{n}", password="wrong", **headers)).status_code == 401
        assert (await log_in(http, name="name6", **{"X-Forwarded-For": "192.0.2.99"})).status_code == 429


def test_attempts_are_forgotten_after_a_minute_and_forgiven_by_success() -> None:
    """The window slides; a good login clears what was bad before."""
    now = 100.0
    tries = auth.Attempts(clock=lambda: now)
    for _ in range(5):
        tries.count("a", "b")
        now += 1
    assert tries.wait("a") == pytest.approx(55)
    assert tries.wait("c") == 0
    now += 55
    assert tries.wait("a") == 0
    tries.count("a")
    assert tries.wait("a") > 0
    tries.forgive("a")
    assert tries.wait("a", "c") == 0


async def test_a_new_password_ends_sessions(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session of an older number is over, at the latest after CHECK_EVERY; so is one of an operator who is gone."""
    monkeypatch.setattr(session, "CHECK_EVERY", 0.0)
    await add_operator(database.url)
    app = app_for(database.url)
    async with (
        app.lifespan(),
        browser(app) as http,
        browser(app) as other,
        db.pool(database.url, "qasid_app", name="test", max_size=1) as pool,
    ):
        await log_in(http)
        assert (await http.get("/jobs/")).status_code == 200
        async with db.acting(pool) as conn:
            await operators.set_password(conn, NAME, passwords.hashed("another long password"))
        assert (await http.get("/jobs")).status_code == 401
        assert (await log_in(other, password="another long password")).status_code == 303
        assert (await other.get("/jobs/")).status_code == 200
        async with db.acting(pool) as conn:
            await operators.remove(conn, NAME)
        assert (await other.get("/jobs")).status_code == 401


async def test_the_cookie_is_out_of_reach(database: Database) -> None:
    """HttpOnly, SameSite=Lax, twelve hours; with secure cookies also Secure under a `__Host-` name."""
    await add_operator(database.url)
    for secure, name in ((False, "qasid"), (True, "__Host-qasid")):
        app = app_for(database.url, secure_cookies=secure)
        async with app.lifespan(), browser(app) as http:
            cookie = (await log_in(http)).headers["set-cookie"]
            assert cookie.startswith(f"{name}=")
            parts = {part.strip().lower() for part in cookie.split(";")[1:]}
            assert {"httponly", "samesite=lax", "path=/", "max-age=43200"} <= parts
            assert ("secure" in parts) is secure
            assert not any(part.startswith("domain") for part in parts)
            # Sent once: a response that comes late must not bring it back after a logout.
            assert "set-cookie" not in (await http.get("/jobs")).headers


AAD = b"additional_authenticated_data="
NONSENSE = (
    b"0" * 12 + AAD + b"5",
    AAD + b"{}",
    b"0" * 40 + AAD + b'{"expires_at":1e99}',
    b"0" * 40 + AAD + b"[" * 9000,
)


@pytest.mark.parametrize(
    "value", ["", "null", "x", "%00", "A" * 3000, *(base64.b64encode(raw).decode() for raw in NONSENSE)], ids=range(9)
)
async def test_nonsense_in_the_cookie_is_no_session_and_no_error(app: Litestar, value: str) -> None:
    """Whatever stands in the cookie, it is a stranger's request."""
    async with browser(app) as http:
        assert (await http.get("/jobs", headers={"Cookie": f"qasid={value}"})).status_code == 401


async def test_an_older_key_still_opens_a_session(database: Database) -> None:
    """After a new key was put in front, those who are logged in stay so."""
    await add_operator(database.url)
    before = app_for(database.url)
    async with before.lifespan(), browser(before) as http:
        cookie = (await log_in(http)).headers["set-cookie"].split(";")[0]
    for key, status in ((f"{'22' * 32},{KEY}", 200), ("22" * 32, 401)):
        after = create_app(settings.Settings(database_url=database.url, secret_key=key))
        async with after.lifespan(), browser(after) as http:
            assert (await http.get("/jobs/", headers={"Cookie": cookie})).status_code == status


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.test"},
        {"Origin": "null"},
    ],
)
async def test_another_site_cannot_act_through_an_operators_browser(app: Litestar, headers: dict[str, str]) -> None:
    """A cross-site POST is 403 at each door that changes something."""
    async with browser(app) as http:
        assert (await log_in(http, **headers)).status_code == 403
        await log_in(http, **{"Sec-Fetch-Site": "same-origin", "Origin": "https://qasid.test"})
        assert (await http.post("/logout", headers=headers)).status_code == 403
        assert (await http.post("/jobs/api/queues/wake/jobs/x/abort", headers=headers)).status_code == 403
        same = {"Origin": "https://qasid.test"}
        assert (await http.post("/jobs/api/queues/wake/jobs/x/abort", headers=same)).status_code == 404


SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


async def test_pages_carry_the_security_headers_and_run_only_their_own_scripts(app: Litestar) -> None:
    """The headers of each page, with or without a session; each inline script and style is allowed by its hash."""
    async with browser(app) as http:
        pages = [await http.get(path) for path in ("/login", "/jobs", "/schema")]
        await log_in(http)
        pages += [
            await http.get(path)
            for path in ("/login", "/jobs", "/jobs/", "/schema", "/jobs/api/queues", "/jobs/static/app.js")
        ]
    for shown in pages:
        assert {name: shown.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
        rules = dict(rule.split(" ", 1) for rule in shown.headers["content-security-policy"].split("; "))
        assert (rules["default-src"], rules["frame-ancestors"], rules["base-uri"]) == ("'none'", "'none'", "'none'")
        assert "unsafe" not in rules.get("script-src", "")
        assert "http" not in shown.headers["content-security-policy"]
        if not shown.headers["content-type"].startswith("text/html") or shown.status_code == 401:
            continue
        for tag, directive in (("script", "script-src"), ("style", "style-src")):
            for inline in re.findall(rf"<{tag}>(.*?)</{tag}>", shown.text, re.DOTALL):
                digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
                assert f"'sha256-{digest}'" in rules[directive]
        assert not re.search(r'(?:src|href)="(?:https?:)?//', shown.text)


async def test_everything_that_the_pages_load_is_served_here(app: Litestar) -> None:
    """SAQ's page, its data, and the API page with its schema come from this process, to operators."""
    async with browser(app) as http:
        await log_in(http)
        for path in ("/jobs", "/schema"):
            text = (await http.get(path, follow_redirects=True)).text
            files = re.findall(r'(?:src|href)="(/[^"]+)"', text)
            assert files
            for file in files:
                assert (await http.get(file)).status_code == 200, file
        assert [queue["name"] for queue in (await http.get("/jobs/api/queues")).json()["queues"]] == ["wake"]
        described = (await http.get("/schema/openapi.json")).json()
        assert {"/livez", "/readyz", "/metrics"} <= set(described["paths"])


async def test_metrics_without_a_token_are_for_this_machine_alone(app: Litestar) -> None:
    """Loopback by the socket's address; a proxy's word for somebody else closes it."""
    for client, headers, status in (
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("::ffff:127.0.0.1", {}, 200),
        ("10.0.0.8", {}, 403),
        ("203.0.113.7", {"X-Forwarded-For": "127.0.0.1"}, 403),
        ("127.0.0.1", {"X-Forwarded-For": "203.0.113.7"}, 403),
    ):
        async with browser(app, client=client) as http:
            shown = await http.get("/metrics", headers=headers)
            assert shown.status_code == status, (client, headers)
            if status == 200:
                names = {family.name for family in text_string_to_metric_families(shown.text)}
                assert {"qasid_webhooks", "qasid_lanes_held", "qasid_loop_lag_seconds"} <= names


async def test_metrics_with_a_token_ask_for_it_everywhere(database: Database) -> None:
    """Only the right bearer token opens them, from this machine too."""
    app = app_for(database.url, metrics_token="a-long-token-for-prometheus")
    async with app.lifespan(), browser(app, client="127.0.0.1") as http:
        for header, status in (
            (None, 403),
            ("Bearer nope", 403),
            ("a-long-token-for-prometheus", 403),
            ("Bearer \xe9", 403),
            ("Bearer a-long-token-for-prometheus", 200),
        ):
            headers = {"Authorization": header.encode("latin-1")} if header else {}
            assert (await http.get("/metrics", headers=headers)).status_code == status, header  # type: ignore[arg-type]


async def test_ready_says_what_is_missing(database: Database) -> None:
    """200 with every migration applied; 503 and the reason when one is missing or was another text."""
    app = app_for(database.url)
    async with app.lifespan(), browser(app) as http:
        assert (await until_ready(http)).json() == {"ready": True, "reason": ""}
        with psycopg.connect(database.url, autocommit=True) as conn:
            conn.execute("DELETE FROM migrations WHERE name = '0008_access'")
            missing = await http.get("/readyz")
            assert (missing.status_code, missing.json()["ready"]) == (503, False)
            assert "0008_access" in missing.json()["reason"]
            assert "qasid migrate" in missing.json()["reason"]
            conn.execute("INSERT INTO migrations (name, checksum) VALUES ('0008_access', 'x')")
            assert (await http.get("/readyz")).status_code == 503


async def test_it_starts_and_answers_while_postgresql_is_away() -> None:
    """/livez 200, /readyz 503 within about a second, pages 503 or the login page; never a traceback."""
    app = app_for("postgresql://nobody@127.0.0.1:9/none")
    async with app.lifespan(), browser(app) as http:
        assert (await http.get("/livez")).text == "alive\n"
        answer = await http.get("/readyz")
        assert answer.status_code == 503
        assert answer.elapsed.total_seconds() < 2
        assert "The configuration has not been read yet" in answer.json()["reason"], "it knows no endpoint"
        assert (await http.get("/jobs")).status_code == 401
        failed = await log_in(http)
        assert (failed.status_code, failed.json()) == (503, {"error": "Service Unavailable"})


async def test_no_error_tells_more_than_its_status(app: Litestar, capsys: pytest.CaptureFixture[str]) -> None:
    """A body of an error quotes no path, no SQL, no traceback, whatever went wrong inside."""
    from app.asgi import ERRORS

    async with browser(app) as http:
        await log_in(http)
        for path in (
            "/nothing",
            "/jobs/static/../../x",
            "/jobs/static/nothing.js",
            "/schema/nothing.json",
            "/jobs/api/queues/none",
        ):
            answer = await http.get(path)
            assert answer.status_code == 404
            assert not re.search(r"site-packages|Traceback|PosixPath|queue", answer.text), path
        assert (await http.delete("/livez")).json() == {"error": "Method Not Allowed"}
        huge = await http.post("/login", content=b"x" * 20_000)
        assert huge.status_code == 413
        assert (await http.post("/login", content=b"\xff=\xff")).status_code == 400
    secret = "SELECT password FROM operators"
    for error in (ValueError(secret), psycopg.errors.UndefinedTable(secret), psycopg.OperationalError(secret)):
        handler = next(ERRORS[kind] for kind in type(error).__mro__ if kind in ERRORS)
        answered = handler(None, error)  # type: ignore[arg-type]
        assert secret not in str(answered.content)
        assert answered.status_code in (500, 503)
    assert secret not in capsys.readouterr().err


async def test_names_of_operators_are_shown_as_text(database: Database) -> None:
    """Markup in a name stays text on the page."""
    name = '<script>alert("1")</script>'
    async with db.pool(database.url, "qasid_app", name="test", max_size=1) as pool, db.acting(pool) as conn:
        assert await operators.add(conn, name, HASH)
    app = app_for(database.url)
    async with app.lifespan(), browser(app) as http:
        await log_in(http, name=name)
        shown = (await http.get("/login")).text
        assert "<script>" not in shown
        assert "&lt;script&gt;" in shown


def test_the_worker_could_import_metrics_and_logs_without_litestar() -> None:
    """app.log, app.metrics, app.place and app.passwords cost a worker no web framework."""
    import subprocess

    code = "import sys, app.log, app.metrics, app.place, app.passwords; sys.exit('litestar' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
