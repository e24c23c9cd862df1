"""Text as it can be stored and sent: PostgreSQL takes no U+0000, UTF-8 and JSON no half of a surrogate pair. Pure."""


def storable(text: str) -> str:
    """`text` without U+0000, which shows nothing, and with U+FFFD for each half of a surrogate pair; two halves that stand side
    by side are the character that they make.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\0", "")
