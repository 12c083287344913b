"""What can go wrong between here and the Hub, in a few words."""

from __future__ import annotations

from typing import cast

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

__all__ = ["HUB_FAILURES", "reason_of"]

# The base classes of the client's error are those of any failed request: which HTTP library it has
# under it depends on its version. A wrong name or card is a ValueError, and what goes wrong in an
# upload it wraps in a RuntimeError.
HUB_FAILURES: tuple[type[Exception], ...] = (
    *cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__),
    ValueError,
    RuntimeError,
)
"""What the client raises when a request fails, is refused or cannot be made."""

_UNREACHABLE = "it is not in the cache, and the Hub is offline or out of reach"
_REASONS: dict[type[Exception], str] = {  # subclasses first
    LocalEntryNotFoundError: _UNREACHABLE,
    OfflineModeIsEnabled: _UNREACHABLE,
    GatedRepoError: "its page says how to ask for access",
    RepositoryNotFoundError: "there is no such repository, or the token may not see it",
    RevisionNotFoundError: "there is no such revision",
    EntryNotFoundError: "there is no such file",
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
