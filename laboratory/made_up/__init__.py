"""Three made-up corpora that need no files; importing this registers them as tasks."""

from hf_kfc.ranking.tasks import Task, register_task

from .corpora import CORPORA, SyntheticMedical

__all__ = ["CORPORA", "SyntheticMedical"]

for corpus in CORPORA:
    register_task(corpus, Task(SyntheticMedical, corpus))
