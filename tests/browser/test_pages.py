"""What an operator sees: logging in by keyboard, SAQ's page, the API docs; nothing loads from elsewhere."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import ConsoleMessage, Page, expect, sync_playwright

from tests.conftest import Database

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# A name that is written from right to left, and would be markup if it were not escaped.
NAME, PASSWORD = "مشرف <b>1</b>", "correct horse battery"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture
def site(database: Database, tmp_path: Path) -> Iterator[str]:
    """The address of a web process of its own, with one operator."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("QASID_")},
        "QASID_DATABASE_URL": database.url,
        "QASID_SECRET_KEY": "ab" * 32,
        "QASID_PORT": str(port),
        "QASID_STATE_DIR": str(tmp_path),
    }
    qasid = [sys.executable, "-m", "app.cli"]
    subprocess.run(
        [*qasid, "user", "add", NAME, "--password-stdin"], env=environ, input=PASSWORD.encode(), check=True, timeout=30
    )
    with (tmp_path / "web.log").open("wb") as log:
        web = subprocess.Popen([*qasid, "web"], env=environ, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as client:
            assert client.get(f"{url}/livez", timeout=20).status_code == 200
        yield url
    finally:
        web.terminate()
        web.wait(20)
        print((tmp_path / "web.log").read_text())  # pytest shows it where a test failed


@pytest.fixture
def page(site: str) -> Iterator[Page]:
    """A browser's page that notes what the console complains of, and requests to other places."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(base_url=site, viewport={"width": 1200, "height": 800})
        complaints: list[str] = []

        def listen(message: ConsoleMessage) -> None:
            # The login page is the body of a 401, which the console always tells.
            if message.type == "error" and "401" not in message.text:
                complaints.append(message.text)

        page.on("console", listen)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith((site, "data:")) else complaints.append(request.url),
        )
        yield page
        assert complaints == []
        browser.close()


def log_in(page: Page, path: str, password: str = PASSWORD) -> None:
    """Open a page behind the login and log in with the keyboard alone: the name has the focus."""
    page.goto(path)
    expect(page.get_by_label("Name")).to_be_focused()
    page.keyboard.type(NAME)
    page.keyboard.press("Tab")
    page.keyboard.type(password)
    page.keyboard.press("Enter")


def test_jobs_are_shown_after_a_login_by_keyboard(page: Page) -> None:
    """Who asks for /jobs gets the login page, and after logging in SAQ's page with the queue of wake-ups."""
    log_in(page, "/jobs")
    page.get_by_role("link", name="wake").click()
    expect(page.get_by_role("heading", name="Queue")).to_be_visible()


def test_api_docs_load_from_here_alone(page: Page) -> None:
    """/schema shows the API without a single request to another host."""
    log_in(page, "/schema")
    expect(page.get_by_text("/livez")).to_be_visible()


def test_a_wrong_password_says_so_and_a_name_is_shown_as_text(page: Page) -> None:
    """The trouble is announced; a right-to-left name with markup in it stands there as it was written; logout ends it."""
    log_in(page, "/jobs", password="wrong")
    expect(page.get_by_role("alert")).to_be_visible()
    log_in(page, "/jobs")
    page.get_by_role("link", name="wake").wait_for()
    page.goto("/login")
    expect(page.locator("bdi")).to_have_text(NAME)
    page.get_by_role("button", name="Log out").click()
    page.goto("/jobs")
    expect(page.get_by_label("Name")).to_be_visible()
