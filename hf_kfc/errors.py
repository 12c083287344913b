"""The library's errors: each message is one sentence that says what, where and what to do."""

from .text import printable

__all__ = [
    "ConsolidationError",
    "CurvatureError",
    "DataError",
    "HfKfcError",
    "HubError",
    "PriorError",
    "ProbeError",
]

_LIMIT = 999  # characters; more is a flood, in a log as in a terminal


class HfKfcError(ValueError):
    """Base class of every error that the library raises on purpose.

    Its message is one printable line of less than 1,000 characters, whatever the names, paths and
    values that it quotes: they may come from files that anybody wrote.

    Args:
        message: What, where and what to do.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message, _LIMIT))


class DataError(HfKfcError):
    """A corpus, an ontology or a ranking example is missing or malformed."""


class CurvatureError(HfKfcError):
    """A model, a layer or a batch has no curvature rule, or breaks the one it has."""


class PriorError(HfKfcError):
    """A prior's files are damaged, or the prior does not fit the model."""


class ProbeError(HfKfcError):
    """Inputs or outputs cannot be kept as probes, or probes do not fit the model."""


class HubError(HfKfcError):
    """The Hub refuses, is out of reach, or holds something else than is asked for."""


class ConsolidationError(HfKfcError):
    """A training set-up under which the penalty would be wrong."""
