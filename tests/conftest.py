"""What every test may ask for: a real PostgreSQL with the schema in it, a fresh copy for each test."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from msgspec import Struct

from app import embedded
from app.migrate import migrate

STATE = Path(__file__).parent.parent / ".qasid" / "test"

# Tests may lose their data with the machine: what they show does not rest on the disk.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200"}

# In these folders a test takes seconds, in the others hardly any time.
SLOW = ("chaos", "integration", "browser")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow folders first, in whatever order they are otherwise: what is left fills the time of both processes evenly."""
    items.sort(key=lambda item: next((n for n, name in enumerate(SLOW) if name in item.path.parts), len(SLOW)))


class Database(Struct, frozen=True):
    """A migrated database of its own. `superuser_url` is for what only a superuser may: statistics, kills."""

    url: str
    superuser_url: str


def _named(url: str, name: str) -> str:
    return url.rsplit("/", 1)[0] + "/" + name


@pytest.fixture(scope="session")
def cluster() -> Iterator[embedded.Cluster]:
    """The embedded PostgreSQL of the tests; it stops when the last test process has ended."""
    yield embedded.ensure(STATE, settings=FAST)
    embedded.release(STATE)


@pytest.fixture(scope="session")
def template(cluster: embedded.Cluster) -> Iterator[str]:
    """The name of a migrated database that tests copy."""
    name = f"template_{os.getpid()}"
    with psycopg.connect(cluster.superuser_url, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name} OWNER qasid")
        list(migrate(_named(cluster.url, name)))
        yield name
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


_counter = itertools.count()


@pytest.fixture
def database(cluster: embedded.Cluster, template: str) -> Iterator[Database]:
    """A copy of the migrated template, dropped when the test ends."""
    name = f"test_{os.getpid()}_{next(_counter)}"
    with psycopg.connect(cluster.superuser_url, autocommit=True) as conn:
        # Not by its log, as by default: that writes nine megabytes of it for each test, and takes three times as long.
        conn.execute(f"CREATE DATABASE {name} TEMPLATE {template} OWNER qasid STRATEGY file_copy")
        yield Database(_named(cluster.url, name), _named(cluster.superuser_url, name))
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")  # only a superuser may end an autovacuum worker


@pytest.fixture
def anyio_backend() -> str:
    """Qasid runs on asyncio; so do its tests."""
    return "asyncio"


@pytest.fixture(scope="session")
def payloads() -> Path | None:
    """Others' sample payloads, where PAYLOADS_DIR names them."""
    folder = os.environ.get("PAYLOADS_DIR")
    return Path(folder) if folder else None
