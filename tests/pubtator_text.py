"""Writes documents in PubTator format, for the tests of the corpora that use it."""


def block(id_: str, title: str, abstract: str, *marks: tuple[str, ...]) -> str:
    """A document; each mark is a span of its text, a concept and, perhaps, semantic types."""
    text = f"{title} {abstract}"
    rows = [f"{id_}|t|{title}", f"{id_}|a|{abstract}"]
    for span, concept, *types in marks:
        start = text.index(span)
        fields = (id_, start, start + len(span), span, *(types or ["Disease"]), concept)
        rows.append("\t".join(map(str, fields)))
    return "\n".join([*rows, f"{id_}\tCID\tD1\tD2", "", ""])
