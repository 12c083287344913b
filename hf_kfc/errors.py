"""The library's errors: each message is one sentence that says what, where and what to do."""

__all__ = ["ConsolidationError", "CurvatureError", "DataError", "HfKfcError", "PriorError"]


class HfKfcError(ValueError):
    """Base class of every error that the library raises on purpose."""


class DataError(HfKfcError):
    """A corpus, an ontology or a ranking example is missing or malformed."""


class CurvatureError(HfKfcError):
    """A model, a layer or a batch has no curvature rule, or breaks the one it has."""


class PriorError(HfKfcError):
    """A prior's files are damaged, or the prior does not fit the model."""


class ConsolidationError(HfKfcError):
    """A training set-up under which the penalty would be wrong."""
