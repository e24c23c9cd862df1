"""LibreTranslate's API: `/translate` and `/detect`. Retries within the deadline; translating twice costs time alone.

Format: LibreTranslate's own `libretranslate/app.py` and docs.libretranslate.com; docs/translation.md gathers what we use.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import httpx
import msgspec
import stamina
from msgspec import Struct

from app import http
from app.assistants import Asking, Call
from app.errors import InDoubt, NeverLeft, TranslatorBusy, TranslatorRefused
from app.translation import Recognised, Translated, checked
from app.vault import Secret

# HTTP statuses that may pass. 400 is a language or a length that it does not take, 403 a key.
PASSING = frozenset({408, 429, 500, 502, 503, 504})
TRIES = 4
# Below this confidence, of 100, its detector is guessing.
SURE = 50.0

_SECONDS = re.compile(r"\d{1,4}(\.\d+)?")


class _Translated(Struct, rename="camel"):
    translated_text: str


class _Detected(Struct):
    language: str
    confidence: float


_translated = msgspec.json.Decoder(_Translated)
_detected = msgspec.json.Decoder(list[_Detected])


class LibreTranslate:
    """`app.translation.Translator` for the provider `libretranslate`."""

    engine = "libretranslate"

    def __init__(self, base_url: str, api_key: Secret | None, asking: Asking | None = None) -> None:
        """`asking`: under whose watch each request is made."""
        self._url = base_url
        self._asking = asking
        self._key = {} if api_key is None else {"api_key": api_key}

    async def translate(
        self, client: httpx.AsyncClient, text: str, *, source: str, target: str, deadline: float
    ) -> Translated:
        """See the Protocol."""
        body = {"q": text, "source": source, "target": target, "format": "text"}
        answer = await self._ask(client, "translate", body, _translated, deadline)
        return Translated(text=checked(answer.translated_text, text))

    async def recognise(
        self, client: httpx.AsyncClient, text: str, among: Sequence[str], *, deadline: float
    ) -> Recognised:
        """See the Protocol. Its detector's first choice, where that is sure of it."""
        found = await self._ask(client, "detect", {"q": text}, _detected, deadline)
        best = max(found, key=lambda each: each.confidence, default=None)
        known = best is not None and best.confidence >= SURE and best.language in among
        return Recognised(language=best.language if best is not None and known else None)

    async def _ask(
        self,
        client: httpx.AsyncClient,
        path: str,
        body: dict[str, Any],
        decoder: msgspec.json.Decoder[Any],
        deadline: float,
    ) -> Any:
        patience = deadline - time.monotonic()
        if patience <= 0:
            raise TranslatorBusy("no time was left")

        def again(error: Exception) -> bool | float:
            if not isinstance(error, TranslatorBusy):
                return False
            wait = error.retry_after
            if wait is None:
                return True
            return wait if time.monotonic() + wait < deadline else False

        content = msgspec.json.encode(body | self._key, enc_hook=str)  # their API wants the key in the body
        try:
            async with asyncio.timeout(patience):
                async for attempt in stamina.retry_context(
                    on=again, attempts=TRIES, timeout=patience, wait_initial=0.25, wait_max=5.0
                ):
                    with attempt:
                        watched: AbstractAsyncContextManager[Call | None] = (
                            self._asking() if self._asking else nullcontext()
                        )
                        async with watched:
                            return await self._once(client, path, content, decoder, deadline)
        except TimeoutError:
            raise TranslatorBusy(f"no translation within {patience:.3g} s") from None
        raise AssertionError("stamina either returns or raises")

    async def _once(
        self, client: httpx.AsyncClient, path: str, content: bytes, decoder: msgspec.json.Decoder[Any], deadline: float
    ) -> Any:
        try:
            answer = await http.post(
                client,
                f"{self._url}/{path}",
                headers={"content-type": "application/json", "accept": "application/json"},
                content=content,
                timeout=max(0.0, deadline - http.EARLY - time.monotonic()),
            )
        except (NeverLeft, InDoubt) as error:
            raise TranslatorBusy(str(error)) from error
        if answer.status != 200:
            if answer.status not in PASSING:
                raise TranslatorRefused(f"HTTP {answer.status}")
            asked = answer.headers.get("retry-after", "")
            wait = float(asked) if _SECONDS.fullmatch(asked) else None
            raise TranslatorBusy(f"HTTP {answer.status}", retry_after=wait)
        try:
            return decoder.decode(answer.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise TranslatorBusy("an answer that cannot be read") from None
