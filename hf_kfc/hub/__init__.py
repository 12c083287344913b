"""The Hugging Face Hub: commits that nobody else's can break, snapshots, models and their tiers."""

from .commit import Committed, commit, holds, open_repository
from .failures import HUB_FAILURES, hub_errors_as, reason_of
from .push import MODEL_FILES, PushedModel, push_card, push_model
from .snapshot import Snapshot, Source
from .tiers import Tier, find_prior, pin, split_revision, walk_tiers

__all__ = [
    "HUB_FAILURES",
    "MODEL_FILES",
    "Committed",
    "PushedModel",
    "Snapshot",
    "Source",
    "Tier",
    "commit",
    "find_prior",
    "holds",
    "hub_errors_as",
    "open_repository",
    "pin",
    "push_card",
    "push_model",
    "reason_of",
    "split_revision",
    "walk_tiers",
]
