"""From text and an ontology to linked mentions: retriever, ranker and thresholds in one object."""

from ..formats.documents import Candidate
from .calibration import Calibration, calibration_error
from .inputs import as_document, with_answers
from .linked import LinkedMention
from .linker import EntityLinker
from .recorded import record_settings
from .settings import LinkerSettings

__all__ = [
    "Calibration",
    "Candidate",
    "EntityLinker",
    "LinkedMention",
    "LinkerSettings",
    "as_document",
    "calibration_error",
    "record_settings",
    "with_answers",
]
