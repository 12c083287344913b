"""What can go wrong between here and the Hub, in a few words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from traceback import walk_tb
from typing import cast

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)

from ..errors import HfKfcError, HubError

__all__ = [
    "HUB_FAILURES",
    "AnswerError",
    "UploadError",
    "answers_are_read",
    "hub_errors_as",
    "reason_of",
]


class UploadError(OSError):
    """A commit was not made: an upload failed, or the card is not one that the Hub takes."""


class AnswerError(OSError):
    """An answer is JSON of another shape than the client reads."""


HUB_FAILURES: tuple[type[Exception], ...] = (
    # Those of any failed request: which HTTP library the client has under it depends on its
    # version. An OSError is also a disk that is full or a cache that cannot be written.
    *cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__),
    EntryNotFoundError,
    XetDownloadError,
    HFValidationError,  # a name that no repository can have
    JSONDecodeError,  # an answer that is none
)
"""What the client raises when a request fails, is refused or cannot be made.

No bare ``ValueError`` or ``RuntimeError`` is among them: those are faults of a program, which no
second try mends. Where the client raises them nevertheless, in a commit,
:func:`~hf_kfc.hub.commit` makes them an :class:`UploadError`.
"""

_UNREACHABLE = "it is not in the cache, and the Hub is offline or out of reach"
_REASONS: dict[type[Exception], str] = {  # subclasses first
    LocalEntryNotFoundError: _UNREACHABLE,
    OfflineModeIsEnabled: _UNREACHABLE,
    GatedRepoError: "its page says how to ask for access",
    RepositoryNotFoundError: "there is no such repository, or the token may not see it",
    RevisionNotFoundError: "there is no such revision",
    EntryNotFoundError: "there is no such file",
    JSONDecodeError: "its answer is not JSON",
}


def reason_of(error: Exception) -> str:
    """Say in one line why a call to the Hub failed.

    Args:
        error: One of :data:`HUB_FAILURES`.
    """
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HfHubHTTPError):
        error = error.__cause__
    for kind, reason in _REASONS.items():
        if isinstance(error, kind):
            return reason
    if isinstance(error, HfHubHTTPError) and error.server_message:
        return f"the Hub answers {error.response.status_code}, {error.server_message.strip()}"
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def answers_are_read() -> Iterator[None]:
    """Make what the client stumbles over in an answer one of :data:`HUB_FAILURES`.

    Raises:
        AnswerError: For an error that was raised in the client's own code; all others stay.
    """
    try:
        yield
    except HUB_FAILURES:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        *_, (innermost, _) = walk_tb(error.__traceback__)
        if str(innermost.f_globals.get("__name__")).partition(".")[0] != "huggingface_hub":
            raise
        raise AnswerError("the answer is not one of a Hub") from error


@contextmanager
def hub_errors_as(message: str, kind: type[HfKfcError] = HubError) -> Iterator[None]:
    """Turn what the client raises into an error of the library.

    Args:
        message: What did not happen, where, and what to do; ``{reason}`` in it becomes the reason.
        kind: The error to raise.

    Raises:
        HfKfcError: Of the given kind, if the Hub refused or was out of reach. All other errors,
            also our own, stay as they are.

    Example:
        >>> with hub_errors_as("org/x is not read ({reason}); try again"):  # doctest: +SKIP
        ...     HfApi().model_info("org/x")
    """
    try:
        with answers_are_read():
            yield
    except HUB_FAILURES as error:
        raise kind(message.replace("{reason}", reason_of(error))) from error
