"""LibreTranslate's API: `/translate` and `/detect`. Retries within the deadline; translating twice costs time alone.

Format: LibreTranslate's own `libretranslate/app.py` and docs.libretranslate.com; docs/translation.md gathers what we use.
"""

import time
from collections.abc import Sequence
from typing import Any

import httpx
import msgspec
from msgspec import Struct

from app import http
from app.assistants import Asking
from app.assistants.parts import Tokens
from app.errors import InDoubt, NeverLeft, TranslatorBusy, TranslatorRefused
from app.retrying import passes, retry_after, tried, watched
from app.translation import Recognised, Translated, checked
from app.vault import Secret

TRIES = 4
# Below this confidence, of 100, its detector is guessing.
SURE = 50.0


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
    in_vain = Tokens()  # it counts none

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
        content = msgspec.json.encode(body | self._key, enc_hook=str)  # their API wants the key in the body

        async def once() -> Any:
            async with watched(self._asking):
                return await self._once(client, path, content, decoder, deadline)

        return await tried(once, busy=TranslatorBusy, deadline=deadline, tries=TRIES, what="translation")

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
            if not passes(answer.status):  # 400 is a language or a length that it does not take, 403 a key
                raise TranslatorRefused(f"HTTP {answer.status}")
            raise TranslatorBusy(f"HTTP {answer.status}", retry_after=retry_after(answer.headers))
        try:
            return decoder.decode(answer.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise TranslatorBusy("an answer that cannot be read") from None
