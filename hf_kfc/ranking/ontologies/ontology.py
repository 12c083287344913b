"""One class that holds an ontology, of a dozen concepts or of millions."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import DataError
from ...files import replace_file
from ..concepts import canonical_id, concept_from_names
from ..problems import refuse_text
from ..schema import Concept

__all__ = ["Ontology", "widened"]

logger = logging.getLogger(__name__)

# Large types have no limit of 2 GiB of names, beyond which a column would fall into pieces.
_TEXTS = pa.large_list(pa.large_string())
_SCHEMA = pa.schema(
    [("id", pa.large_string()), ("names", _TEXTS), ("types", _TEXTS), ("alternatives", _TEXTS)]
)
_FINGERPRINT = b"fingerprint"
_BATCH = 50_000


class Ontology(Sequence[Concept]):
    """A sequence of concepts, held as an Arrow table.

    A million concepts of two names so take some 100 MB, and a saved ontology is memory-mapped;
    looking concepts up by identifier takes 200 MB more.

    Args:
        concepts: The concepts, each with an id of its own; they are taken one at a time.

    Raises:
        DataError: There is no concept, or an id comes twice.

    Example:
        >>> ontology = Ontology([Concept("C1", "cold"), Concept("C2", "flu", ("influenza",))])
        >>> ontology[1].names, ontology.position("C2"), ontology.position("C3")
        (('flu', 'influenza'), 1, None)
    """

    def __init__(self, concepts: Iterable[Concept]) -> None:
        remaining = iter(refuse_text("concepts", concepts))
        digest = hashlib.sha256()
        batches = []
        while chunk := list(islice(remaining, _BATCH)):
            _add(digest, chunk)
            batches.append(_batch(chunk))
        if not batches:
            raise DataError("the ontology is empty; give it at least one concept")
        table = pa.Table.from_batches(batches, _SCHEMA)
        self._hold(table.replace_schema_metadata({_FINGERPRINT: digest.hexdigest()}))
        if pc.count_distinct(self._ids).as_py() < len(self):
            id_ = next(i for n, i in enumerate(self.ids()) if self._positions[i] != n)
            raise DataError(f"concept {id_!r} is in the ontology twice; merge its entries into one")

    def _hold(self, table: Any, path: Path | None = None) -> None:
        self._table, self._path = table.combine_chunks(), path
        self._ids, self._names, *self._more = (c.chunk(0) for c in self._table.columns)

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Concept: ...
    @overload
    def __getitem__(self, index: slice) -> list[Concept]: ...
    def __getitem__(self, index: int | slice) -> Concept | list[Concept]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"concept {index} of {len(self)}")
        index %= len(self)
        preferred, *synonyms = self._names[index].as_py()
        types, alternatives = (tuple(column[index].as_py()) for column in self._more)
        return Concept(self._ids[index].as_py(), preferred, tuple(synonyms), types, alternatives)

    def take(self, positions: Sequence[int]) -> list[Concept]:
        """Return the concepts at some positions, many at once in less time than one by one.

        Args:
            positions: Their indices.
        """
        taken = self._table.take(pa.array(positions, pa.int64()))
        return [
            Concept(id_, own[0], tuple(own[1:]), *map(tuple, more))
            for id_, own, *more in zip(*(c.to_pylist() for c in taken.columns), strict=True)
        ]

    def __iter__(self) -> Iterator[Concept]:
        for start in range(0, len(self), _BATCH):
            columns = [column.chunk(0)[start : start + _BATCH] for column in self._table.columns]
            for id_, names, *more in zip(*(c.to_pylist() for c in columns), strict=True):
                yield Concept(id_, names[0], tuple(names[1:]), *map(tuple, more))

    def __reduce__(self) -> Any:
        # A worker maps the same file instead of copying it.
        if self._path:
            return _reload, (self._path.resolve(), self.fingerprint)
        return _from_table, (self._table,)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that the ontology says, in its order; the same for the same concepts."""
        known = (self._table.schema.metadata or {}).get(_FINGERPRINT)
        if known is not None:
            return str(known.decode())
        digest = hashlib.sha256()  # of concepts that were added: nobody asked until now
        remaining = iter(self)
        while chunk := list(islice(remaining, _BATCH)):
            _add(digest, chunk)
        return digest.hexdigest()

    @property
    def num_names(self) -> int:
        """How many names its concepts have, preferred ones and synonyms."""
        return len(self._names.flatten())

    def ids(self) -> list[str]:
        """Return the identifiers, in the ontology's order."""
        return list(self._ids.to_pylist())

    def position(self, id_: str) -> int | None:
        """Find a concept.

        Args:
            id_: Its identifier, or an alternative one, in any spelling
                (:func:`~hf_kfc.ranking.concepts.canonical_id`). The very identifier of a concept
                goes before another spelling of one, and that before an alternative one; one that
                leads to several concepts leads to none.

        Returns:
            Its index, or ``None`` if it is not there.
        """
        position = self._positions.get(id_)
        if position is None:
            spelling = canonical_id(id_)
            own = self._spellings
            position = own[spelling] if spelling in own else self._alternatives.get(spelling)
        return position

    def leads_to_several(self, id_: str) -> bool:
        """Whether an identifier is that of several concepts, for example a retired one of both.

        Args:
            id_: An identifier, in any spelling.
        """
        spelling = canonical_id(id_)
        own = self._spellings
        return self.position(id_) is None and (spelling in own or spelling in self._alternatives)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {id_: position for position, id_ in enumerate(self.ids())}

    @cached_property
    def _spellings(self) -> dict[str, int | None]:
        """The positions by the canonical spelling of identifiers, where it leads to one."""
        return _unique({}, ((canonical_id(id_), n) for id_, n in self._positions.items()))

    @cached_property
    def _alternatives(self) -> dict[str, int | None]:
        """The same of alternative identifiers."""
        alternatives = self._more[1]
        owners = alternatives.value_parent_indices().to_pylist()
        spellings = map(canonical_id, alternatives.flatten().to_pylist())
        return _unique({}, zip(spellings, owners, strict=True))

    def extended(self, names: Mapping[str, Sequence[str]]) -> tuple[Ontology, list[int]]:
        """Add concepts, or names of concepts; what is there already is not read again.

        Args:
            names: The names by identifier. One that the ontology knows, in any spelling, gets more
                names; another is a new concept after the others, whose first name is the
                preferred one.

        Returns:
            What ``Ontology(widened(ontology, names))`` would be, while this one stays as it is; and
            the positions of its own concepts that have other names now.

        Raises:
            DataError: A new concept has no name.
        """
        more, new = _parted(self, names)
        changed = {}
        for position, own in zip(more, self.take(list(more)), strict=True):
            every = (*own.names, *more[position])
            wider = concept_from_names(own.id, every, own.types, own.alternatives)
            if wider != own:
                changed[position] = wider
        fresh = [concept_from_names(*own) for own in new]
        if not (changed or fresh):
            return self, []
        rows = pa.Table.from_batches([_batch([*changed.values(), *fresh])], _SCHEMA)
        order = np.arange(len(self) + len(fresh))
        order[len(self) :] += len(changed)
        order[list(changed)] = len(self) + np.arange(len(changed))
        both = pa.concat_tables([self._table.replace_schema_metadata(None), rows])
        larger = _from_table(both.take(order))
        places = {own.id: len(self) + number for number, own in enumerate(fresh)}
        spelled = ((canonical_id(id_), place) for id_, place in places.items())
        larger._positions = self._positions | places
        larger._spellings = _unique(dict(self._spellings), spelled)
        larger._alternatives = self._alternatives
        return larger, sorted(changed)

    def names(self) -> Iterator[tuple[int, str]]:
        """Yield every name with the index of its concept, in the ontology's order."""
        for start in range(0, len(self), _BATCH):
            names = self._names[start : start + _BATCH].to_pylist()
            yield from chain.from_iterable(
                ((start + offset, name) for name in own) for offset, own in enumerate(names)
            )

    def save(self, path: str | Path) -> None:
        """Write the ontology as an Arrow file.

        Args:
            path: The file, in a folder that exists; an older file is replaced once the new one is
                whole, so that ontologies which have mapped it keep what they have.
        """
        table = self._table.replace_schema_metadata({_FINGERPRINT: self.fingerprint})
        with (
            replace_file(Path(path)) as partial,
            pa.OSFile(str(partial), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as file,
        ):
            file.write_table(table)

    @classmethod
    def load(cls, path: str | Path) -> Ontology:
        """Map a file that :meth:`save` wrote into memory.

        Args:
            path: The file.

        Raises:
            DataError: It is missing or not such a file.
        """
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            if table.schema != _SCHEMA or _FINGERPRINT not in (table.schema.metadata or {}):
                raise pa.ArrowInvalid("other columns")
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path}: not a saved ontology ({error}); save it again") from error
        return _from_table(table, Path(path))


def _batch(concepts: Sequence[Concept]) -> Any:
    rows = [(c.id, c.names, tuple(c.types), tuple(c.alternatives)) for c in concepts]
    columns = [
        pa.array(column, field.type)
        for column, field in zip(zip(*rows, strict=True), _SCHEMA, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)


def _add(digest: Any, concepts: Iterable[Concept]) -> None:
    """Add concepts to a hash; without alternatives it is what it was before there were any."""
    rows = ((c.id, c.names, tuple(c.types), tuple(c.alternatives)) for c in concepts)
    digest.update("".join(json.dumps(row if row[3] else row[:3]) for row in rows).encode())


def _unique(
    found: dict[str, int | None], pairs: Iterable[tuple[str, int]]
) -> dict[str, int | None]:
    """Add positions by spelling; one that leads to several leads to none."""
    for id_, position in pairs:
        found[id_] = position if found.get(id_, position) == position else None
    return found


def _parted(
    ontology: Ontology | None, names: Mapping[str, Sequence[str]]
) -> tuple[dict[int, list[str]], list[tuple[str, list[str]]]]:
    """Part names into those of known concepts, by position, and of new ones, by identifier."""
    several = [id_ for id_ in names if ontology is not None and ontology.leads_to_several(id_)]
    if several:
        logger.warning(
            "%d identifiers, among them %r, lead to several concepts of the ontology each; what is "
            "called so is left out",
            len(several),
            several[0],
        )
    more: dict[int, list[str]] = {}
    new: dict[str, tuple[str, list[str]]] = {}
    for id_ in (id_ for id_ in names if id_ not in several):
        spellings = refuse_text(f"names of {id_!r}", names[id_])
        position = None if ontology is None else ontology.position(id_)
        if position is None:
            new.setdefault(canonical_id(id_), (id_, []))[1].extend(spellings)
        else:
            more.setdefault(position, []).extend(spellings)
    return more, list(new.values())


def _reload(path: Path, fingerprint: str) -> Ontology:
    ontology = Ontology.load(path)
    if ontology.fingerprint != fingerprint:
        raise DataError(f"{path}: another ontology than when it was loaded; load it again")
    return ontology


def _from_table(table: Any, path: Path | None = None) -> Ontology:
    ontology = Ontology.__new__(Ontology)
    ontology._hold(table, path)
    return ontology


def widened(
    ontology: Ontology | None, names: Mapping[str, Sequence[str]], only_known: bool = False
) -> Iterator[Concept]:
    """Give concepts more names; names of concepts that are not there make new ones.

    Args:
        ontology: The concepts, if there are any.
        names: Further names by identifier, in any of its spellings.
        only_known: Whether to pass over names of concepts that are not there.

    Yields:
        The concepts in their order, then the new ones in the order of ``names``; of a new one the
        first name is the preferred one.
    """
    more, new = _parted(ontology, names)
    for position, concept in enumerate(ontology or ()):
        yield concept_from_names(
            concept.id,
            (*concept.names, *more.get(position, ())),
            concept.types,
            concept.alternatives,
        )
    for id_, own in () if only_known else new:
        yield concept_from_names(id_, own)
