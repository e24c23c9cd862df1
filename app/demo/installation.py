"""The demo's own installation in `<state>/demo`: lock, environment, database, tenant, operator. Starts no process.

Made of the rooms that `qasid migrate`, `apply` and `user` use.
"""

import asyncio
import fcntl
import os
import secrets
import socket
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import Any

import msgspec
from msgspec import Struct

from app.errors import ConfigurationError
from app.process import require_free_port
from app.settings import PREFIX, Settings

OPERATOR = "demo"
TENANT, ENDPOINT = "noor", "meta"
LAST_ONE_SECONDS = 10.0  # the processes of a killed demo may take so long to end
WILDCARD = "0.0.0.0"  # noqa: S104  a value to compare with


class Place(Struct, frozen=True, kw_only=True):
    """Where the demo lives. `web_host`: how this machine reaches the web process. `hold`: the descriptor of its lock."""

    settings: Settings
    web_host: str
    hold: int

    @property
    def state(self) -> Path:
        """The folder of its database and key."""
        return self.settings.state_dir

    @property
    def logs(self) -> Path:
        """The folder of its processes' logs."""
        return self.state / "logs"

    @property
    def web_url(self) -> str:
        """The web process."""
        return f"http://{self.web_host}:{self.settings.port}"

    @property
    def sandbox_url(self) -> str:
        """The sandbox."""
        return f"http://127.0.0.1:{self.settings.sandbox_port}"


class Secrets(Struct, frozen=True, kw_only=True):
    """What demo.toml refers to, and the operator's password: made at each start."""

    app_secret: str
    verify_token: str
    channel_token: str
    assistant_key: str
    password: str

    def __repr__(self) -> str:
        return "Secrets(…)"


def new_secrets() -> Secrets:
    """Secrets for one start."""
    return Secrets(**{name: secrets.token_urlsafe(18) for name in Secrets.__struct_fields__})


def ignored() -> list[str]:
    """Settings in the environment that the demo does not follow, by name."""
    kept = {PREFIX + name for name in ("HOST", "PORT", "SANDBOX_PORT", "STATE_DIR", "LOG_LEVEL")}
    return sorted(name for name, value in os.environ.items() if name.startswith(PREFIX) and value and name not in kept)


@contextmanager
def place(asked: Settings) -> Iterator[Place]:
    """The demo's place, for it alone while the block lasts.

    Raises:
        ConfigurationError: another demo has it, a port is in use, or the host cannot be reached from here.
    """
    from app.sandbox.numbers import is_loopback

    state = asked.state_dir.resolve() / "demo"
    if not (is_loopback(asked.host) or asked.host == WILDCARD) or ":" in asked.host:
        raise ConfigurationError(
            f"{PREFIX}HOST is {asked.host}: the demo listens at 127.0.0.1, another 127.x.x.x or {WILDCARD}."
        )
    (state / "logs").mkdir(parents=True, exist_ok=True)
    hold = _lock(state / "demo.lock")
    try:
        settings = Settings(
            host=asked.host,
            port=_port(asked.host, asked.port, "PORT"),
            sandbox_port=_port("127.0.0.1", asked.sandbox_port, "SANDBOX_PORT"),
            state_dir=state,
            worker_metrics_port=0,
            log_level="debug" if asked.log_level == "debug" else "info",  # the stages of a turn are told at info
            log_format="json",
        )
        yield Place(settings=settings, web_host="127.0.0.1" if asked.host == WILDCARD else asked.host, hold=hold)
    finally:
        os.close(hold)


def environment(settings: Settings) -> dict[str, str]:
    """The environment of the demo's processes: this one's, without anybody else's database, keys and settings."""
    clean = {
        name: value
        for name, value in os.environ.items()
        # PG…: libpq's own, which would change every connection.
        if not name.startswith((PREFIX, "PG", "PROMETHEUS_"))
    }
    ours = ("host", "port", "sandbox_port", "state_dir", "worker_metrics_port", "log_level", "log_format")
    # One web process: it starts sooner, and two would not show anything more.
    return (
        clean | {PREFIX + name.upper(): str(getattr(settings, name)) for name in ours} | {f"{PREFIX}WEB_WORKERS": "1"}
    )


def migrate(url: str) -> int:
    """Bring the schema up to date; how many migrations were applied."""
    from app.migrate import migrate as run

    return sum(1 for _ in run(url))


async def configure(url: str, place: Place, keys: Secrets) -> dict[str, Any]:
    """Write demo.toml, apply it, let the operator in; the tenant's table."""
    from app import db, passwords
    from app.apply import apply
    from app.store import operators
    from app.vault import Vault

    text = Template(Path(__file__).with_name("demo.toml").read_text(encoding="utf-8")).substitute(
        sandbox=place.sandbox_url
    )
    file = place.state / "demo.toml"
    file.write_text(text, encoding="utf-8")
    environ = {name.upper(): value for name, value in msgspec.structs.asdict(keys).items()}
    await apply(url, file, Vault.from_settings(place.settings), environ)
    hashed = passwords.hashed(keys.password)
    async with db.pool(url, "qasid_app", name="demo", max_size=1) as pool, db.acting(pool) as conn:
        if not await operators.add(conn, OPERATOR, hashed):
            await operators.set_password(conn, OPERATOR, hashed)
    tenant: dict[str, Any] = tomllib.loads(text)["tenants"][TENANT]
    return tenant


TENANT_ID = "SELECT id FROM tenants WHERE slug = %s"
CORRELATIONS = "SELECT provider_id, correlation FROM messages WHERE provider_id = ANY(%s)"


async def correlations(url: str, ids: Sequence[str]) -> dict[str, str]:
    """What the logs call these messages, by the provider's id."""
    from app import db

    async with db.pool(url, "qasid_app", name="demo", max_size=1) as pool:
        async with db.acting(pool) as conn:
            found = await (await conn.execute(TENANT_ID, (TENANT,))).fetchone()
        async with db.acting(pool, tenant=found[0] if found else None) as conn:
            return dict(await (await conn.execute(CORRELATIONS, (list(ids),))).fetchall())


async def database_stopped(state: Path) -> None:
    """Let go of the embedded PostgreSQL, and wait until its keeper has stopped it, unless somebody else uses it."""
    from app import embedded
    from app.embedded import locks

    embedded.release(state)
    keeper = state / "pg" / "keeper.lock"
    deadline = time.monotonic() + 5.0
    while keeper.exists() and time.monotonic() < deadline:
        if (descriptor := locks.try_take(keeper, fcntl.LOCK_SH)) is not None:
            os.close(descriptor)
            return
        await asyncio.sleep(0.02)


def _lock(file: Path) -> int:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LAST_ONE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A demo that runs has written its id; of one that was killed the processes are about to end.
            pid = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
            if time.monotonic() > deadline or (pid.isdigit() and Path(f"/proc/{pid}").exists()):
                os.close(descriptor)
                raise ConfigurationError(
                    f"A demo runs in {file.parent} already (process {pid or 'unknown'}): end it, or set "
                    f"{PREFIX}STATE_DIR to another folder."
                ) from None
            time.sleep(0.05)
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            return descriptor


def _port(host: str, port: int, name: str) -> int:
    """The port, free at this moment; for 0 any free one."""
    if port:
        require_free_port(host, port, setting=PREFIX + name)
        return port
    with socket.socket() as probe:
        probe.bind((host, 0))
        free: int = probe.getsockname()[1]
        return free
