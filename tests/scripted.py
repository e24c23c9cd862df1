"""An assistant that says what a test says, in the place of the registry's."""

import asyncio
from typing import Any

import httpx

from app.assistants import Answer, Question
from app.configuration import AssistantSettings


class Scripted:
    """Each answer once, in order, then a plain one. `takes`: seconds."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[Question] = []
        self.settings: list[AssistantSettings] = []
        self.at_once = self.most_at_once = 0
        self.takes = 0.01

    async def ask(
        self, client: httpx.AsyncClient, settings: AssistantSettings, question: Question, **more: Any
    ) -> Answer:
        self.asked.append(question)
        self.settings.append(settings)
        async with more["asking"]():
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
            await asyncio.sleep(self.takes)
            self.at_once -= 1
        answer = self.answers.pop(0) if self.answers else says("Fine.")
        if isinstance(answer, Exception):
            raise answer
        return answer


def says(text: str, **more: Any) -> Answer:
    return Answer(**{"text": text, "model": "m", "input_tokens": 3, "output_tokens": 4, "stopped": "end_turn", **more})
