"""ansari-backend's calls for WhatsApp, `/whatsapp/v2/…`: people, threads, histories, `process`, its list of citations.

When to ask is not its business. Format: docs/wire-assistants.md, "Ansari's backend". Its words are never quoted in an error: they
may hold a number or a text.
"""

import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar
from urllib.parse import quote, urlencode

import httpx
import msgspec
from msgspec import Struct

from app import http
from app.configuration import AssistantSettings
from app.errors import AssistantBusy, AssistantError, AssistantRefused, InDoubt, NeverLeft
from app.retrying import passes, retry_after
from app.text.storable import storable

# A call other than `process` reads or writes a row or two: whoever needs longer is not well (seconds).
CALL_SECONDS = 10.0


class Missing(AssistantBusy):
    """Its 404 for a person or a thread. It says that of a database that did not answer, too: so it may pass."""


class NotTaken(AssistantBusy):
    """`process` was certainly not begun: asking again doubles nothing."""


class Row(Struct, frozen=True):
    """One row of a thread. Not every `user` row is a person's: results of the backend's tools come as one, too."""

    role: str = ""
    content: Any = None

    @property
    def text(self) -> str:
        """What it says in words; empty for calls of tools and their results."""
        if isinstance(self.content, str):
            return storable(self.content)
        blocks = [block for block in self.content if isinstance(block, dict)] if isinstance(self.content, list) else []
        if any(block.get("type") in ("tool_use", "tool_result") for block in blocks):
            return ""
        texts = [block.get("text") for block in blocks if block.get("type") == "text"]
        return storable("".join(text for text in texts if isinstance(text, str)))


class _History(Struct):
    messages: list[Row]


class _Thread(Struct):
    thread_id: str | None


class _Exists(Struct):
    exists: bool


class _Outcome(Struct):
    status: str = ""


class _Registered(Struct):
    status: str
    user_id: Any = None


class _Detail(Struct):
    detail: Any = None


# Begins the list of its citations (its ansari_claude.py). Where each round of its model has written one, the last has them all.
_LIST = re.compile(r"^\*\*Citations\*\*:\n(?=\[1\] )", re.MULTILINE)

Shape = TypeVar("Shape")
_encode = msgspec.json.Encoder().encode
_detail = msgspec.json.Decoder(_Detail)


class Backend:
    """The calls of one person's turn. `until`: when the last of them ends, by the monotonic clock.

    All of them raise AssistantBusy where another try may help, AssistantRefused where a person must mend something.
    """

    def __init__(self, client: httpx.AsyncClient, settings: AssistantSettings, person: str, *, until: float) -> None:
        self._client = client
        self._base = f"{settings.base_url}/whatsapp/v2"
        self._headers = {"x-whatsapp-api-key": settings.api_key, "content-type": "application/json"}
        self._person = person
        self._until = until

    async def exists(self) -> bool:
        """Whether the person has an account."""
        return (await self._get("users/exists", _Exists)).exists

    async def register(self, language: str) -> None:
        """Give the person a guest's account."""
        made = await self._post("users/register", {"preferred_language": language}, _Registered)
        try:  # what its database says of it comes back as the id
            inner = msgspec.convert(made.user_id, _Outcome).status
        except msgspec.ValidationError:
            inner = ""
        if "failure" in (made.status, inner):
            raise AssistantBusy("the backend could not register the person; its log says why")

    async def last_thread(self) -> str | None:
        """The id of the thread that was last written to, by whomever. Raises Missing for a person without an account."""
        return (await self._get("threads/last", _Thread)).thread_id

    async def new_thread(self, title: str) -> str:
        """Begin one; its id."""
        made = (await self._post("threads", {"title": title}, _Thread)).thread_id
        if not made or made == "None":  # how it spells that its database refused
            raise AssistantBusy("the backend could not begin a thread; its log says why")
        return made

    async def history(self, thread: str) -> list[Row]:
        """All rows of a thread, oldest first."""
        return (await self._get(f"threads/{quote(thread, safe='')}/history", _History)).messages

    @asynccontextmanager
    async def process(self, thread: str, message: str, *, seconds: float) -> AsyncIterator[http.Stream]:
        """Ask: the answer's text as it comes, UTF-8, without an end mark. NOT to be repeated.

        Raises NotTaken if it was certainly not begun, InDoubt if it may have been, also while the stream is read.
        """
        body = _encode({"phone_num": self._person, "thread_id": thread, "message": message})
        try:
            async with http.stream(
                self._client,
                "POST",
                f"{self._base}/messages/process",
                headers=self._headers,
                content=body,
                timeout=max(0.0, seconds),
            ) as response:
                if response.status != 200:
                    refused = _refused(response.status, response.headers, await response.read())
                    if response.status >= 500 or not isinstance(refused, AssistantBusy):
                        raise refused
                    raise NotTaken(str(refused), retry_after=refused.retry_after)
                if response.headers.get("content-type", "").startswith("text/html"):
                    raise AssistantBusy("a page instead of an answer: something stands before the backend")
                yield response
        except NeverLeft as error:
            raise NotTaken(str(error)) from error

    async def _get(self, path: str, shape: type[Shape]) -> Shape:
        return await self._call("GET", f"{path}?{urlencode({'phone_num': self._person})}", None, shape)

    async def _post(self, path: str, body: Mapping[str, str], shape: type[Shape]) -> Shape:
        return await self._call("POST", path, _encode({"phone_num": self._person, **body}), shape)

    async def _call(
        self, method: Literal["GET", "POST"], path: str, content: bytes | None, shape: type[Shape]
    ) -> Shape:
        seconds = max(0.0, min(CALL_SECONDS, self._until - time.monotonic()))
        try:
            async with http.stream(
                self._client, method, f"{self._base}/{path}", headers=self._headers, content=content, timeout=seconds
            ) as response:
                body = await response.read()
        except (NeverLeft, InDoubt) as error:
            raise AssistantBusy(str(error)) from error
        if response.status != 200:
            raise _refused(response.status, response.headers, body)
        try:
            return msgspec.json.decode(body, type=shape)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise AssistantBusy("an answer that cannot be read: is base_url that of the backend?") from None


def _refused(status: int, headers: httpx.Headers, body: bytes) -> AssistantError:
    """What an answer other than 200 means for whom it concerns."""
    if status in (401, 403):
        return AssistantRefused(f"HTTP {status}: api_key must be the backend's WHATSAPP_SERVICE_API_KEY")
    if status == 422:
        return AssistantRefused("HTTP 422: the backend expects other fields: its version is not one that we know")
    if status == 404:
        try:
            unrouted = _detail.decode(body).detail in (None, "Not Found")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            unrouted = True
        if unrouted:
            return AssistantRefused("HTTP 404: there is no /whatsapp/v2 under base_url")
        return Missing("HTTP 404: the backend does not know the person or the thread, or its database did not answer")
    if status == 400 or passes(status):  # 400: the backend says it of whatever fails inside it, its database too
        return AssistantBusy(
            f"HTTP {status}: the backend failed or is overloaded; its log says why", retry_after=retry_after(headers)
        )
    return AssistantRefused(f"HTTP {status}: is base_url that of the backend?")


def listed(text: str) -> tuple[str, str]:
    """What is said, with the list's heading, and the list of citations behind it as it stands; "": there is none."""
    begins = [found.end() for found in _LIST.finditer(text)]
    return (text[: begins[-1]].rstrip(), text[begins[-1] :].rstrip("\n")) if begins else (text, "")
