"""Text that others wrote, made fit to be shown: no control characters, no second line, no flood."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: object, limit: int | None = None) -> str:
    r"""Make text fit for one line of a terminal, a log or an error.

    Whoever wrote a prior, a card or a corpus chose its words: in a terminal they could clear the
    screen, colour a refusal like a success, turn the direction of writing or begin a line that
    looks like ours. What is not printable becomes an escape, as ``\x1b``; spaces of every kind
    become one that is plain.

    Args:
        text: What to show; of anything but a string, ``str`` of it.
        limit: The most characters that are shown; of longer text the middle is left out, which is
            said in its place.

    Returns:
        The same text where it was fit already.

    Example:
        >>> printable("loss\x1b[2J\n(verified)")
        'loss\\x1b[2J\\n(verified)'
        >>> printable("a" * 100, limit=40)
        'aaaaaaaaaaaaaa… 79 characters … aaaaaaa'
    """
    text = str(text)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else _shown(c) for c in text)
    if limit is None or len(text) <= limit:
        return text
    kept = max(limit - len(f"… {len(text)} characters … "), 0)
    tail = kept // 3
    head = kept - tail
    return f"{text[:head]}… {len(text) - kept} characters … {text[len(text) - tail :]}"


def _shown(character: str) -> str:
    if character.isspace() and not character < " " and character not in "\x85\u2028\u2029":
        return " "
    return character.encode("unicode_escape").decode("ascii")
