"""Fixed replies: what a tenant's intents answer without asking an assistant. Pure functions, no I/O."""

from collections.abc import Mapping, Sequence

from app.text.matching import normalise


def reply_for(intents: Mapping[str, str], texts: Sequence[str]) -> str | None:
    """The reply to a turn of these messages, or None if any of them is for the assistant.

    `intents` maps a normalised text to its reply. Different replies come in the order of the messages, each once,
    with an empty line between.
    """
    if not intents or not texts:
        return None
    replies: dict[str, None] = {}
    for text in texts:
        if (reply := intents.get(normalise(text))) is None:
            return None
        replies[reply] = None
    return "\n\n".join(replies)
