"""The conversation as the APIs want it: neighbours of one role joined, a person first and last, pictures that they take."""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from app.assistants import Image, Line, Question
from app.configuration import AssistantSettings
from app.errors import AssistantRefused
from app.media import IMAGES

# Anthropic takes 5 MiB of a picture in base64, which makes four bytes of three.
LARGEST = 5 * 1024 * 1024 * 3 // 4


class Turn(Struct, frozen=True):
    """What one side said until the other spoke: texts, none of them blank, and pictures."""

    role: Literal["user", "assistant"]
    said: tuple[str | Image, ...]

    @property
    def text(self) -> str | None:
        """All of it, if it is nothing but text."""
        only = [each for each in self.said if isinstance(each, str)]
        return "\n\n".join(only) if len(only) == len(self.said) else None


def turns(lines: Sequence[Line]) -> list[Turn]:
    """The lines as turns. A picture stands before its words; one that cannot be seen is told of in words, and so are ours.

    Raises:
        AssistantRefused: nobody asks anything.
    """
    found: list[Turn] = []
    for line in lines:
        mine = line.role == "assistant"
        pictures = tuple("[a picture]" if mine else _seen(image) for image in line.images)
        said = pictures + ((line.text,) if line.text.strip() else ())
        if not said:
            continue
        if found and found[-1].role == line.role:
            found[-1] = Turn(line.role, found[-1].said + said)
        elif found or line.role == "user":
            found.append(Turn(line.role, said))
    if not found or found[-1].role != "user":
        raise AssistantRefused("there is no question")
    return found


def shown(settings: AssistantSettings, question: Question) -> int:
    """Characters of all that is asked: the prompt, the documents, the lines. Pictures are none."""
    texts = (settings.system, *(each.text for each in settings.documents), *(line.text for line in question.lines))
    return sum(map(len, texts))


def _seen(image: Image) -> Image | str:
    if image.media_type not in IMAGES:  # what both APIs see
        return "[a picture of a kind that cannot be shown]"
    if len(image.data) > LARGEST:
        return "[a picture that is too large to be shown]"
    return image
