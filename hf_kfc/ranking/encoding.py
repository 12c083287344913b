"""From candidate-ranking examples to token ids, and a tokenizer trained on one's own text."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import DataError
from .problems import refuse_text

__all__ = ["CandidateEncoder", "encode_candidates", "train_tokenizer"]

logger = logging.getLogger(__name__)

_COUNTS = ("cut_names", "cut_mentions", "cut_contexts")
_ALPHABET_SIZE = 1000


@dataclass(frozen=True)
class _Pair:
    """The special tokens that a tokenizer puts around a pair of segments, and their types."""

    prefix: list[int]
    middle: list[int]
    suffix: list[int]
    first_type: int
    second_type: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> _Pair:
        """Read the template off an encoded pair, so that any tokenizer's own layout is kept."""
        probe = tokenizer("a", "b", return_special_tokens_mask=True, return_token_type_ids=True)
        runs: list[list[int]] = [[], [], []]
        types: list[int] = []
        inside = False
        for token, special, kind in zip(
            probe["input_ids"],
            probe["special_tokens_mask"],
            probe["token_type_ids"],
            strict=True,
        ):
            if special:
                runs[len(types)].append(token)
                inside = False
            elif not inside:
                types.append(kind)
                inside = True
        if len(types) != 2:
            raise DataError(
                f"The tokenizer {type(tokenizer).__name__} puts no special token between the two "
                "texts of a pair; use one with a pair template, such as a BERT tokenizer."
            )
        return cls(runs[0], runs[1], runs[2], types[0], types[1])

    def __len__(self) -> int:
        return len(self.prefix) + len(self.middle) + len(self.suffix)


def _fit_context(left: list[int], right: list[int], room: int) -> tuple[list[int], list[int]]:
    """Keep the ``room`` tokens nearest to the mention; what a side lacks is the other's."""
    keep_left = min(len(left), max(room // 2, room - len(right)))
    return left[len(left) - keep_left :], right[: room - keep_left]


class Tail(NamedTuple):
    """What a candidate's name is in every pair, and how long the name is without any cut."""

    tokens: list[int]
    length: int


class EncodedParts(NamedTuple):
    """An example's tokens, of which the head stands before each tail."""

    head: list[int]
    tails: list[Tail]
    cut_names: int
    cut_mentions: int
    cut_contexts: int


@dataclass(frozen=True)
class CandidateEncoder:
    """Encodes batches of examples, for training and for linking alike.

    Args:
        tokenizer: With a separator and a template for pairs.
        pair: What it puts around the two texts of a pair.
        separator: The token that marks the mention.
        max_length: The most tokens of a pair.
        max_name_length: The most tokens of a name.
        with_types: Whether there are token types.
    """

    tokenizer: PreTrainedTokenizerBase
    pair: _Pair
    separator: int
    max_length: int
    max_name_length: int
    with_types: bool

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, max_length: int, max_name_length: int
    ) -> CandidateEncoder:
        """Make an encoder, and refuse a tokenizer and lengths that do not go together."""
        if tokenizer.sep_token_id is None:
            raise DataError(
                f"The tokenizer {type(tokenizer).__name__} has no separator to mark the mention "
                "with; set its sep_token to a token of its vocabulary."
            )
        if max_length > tokenizer.model_max_length:
            raise DataError(
                f"max_length is {max_length}, but the tokenizer's model takes "
                f"{tokenizer.model_max_length} tokens; lower max_length."
            )
        pair = _Pair.of(tokenizer)
        least = len(pair) + 2 + max_name_length + 1
        if max_length < least:
            raise DataError(
                f"max_length is {max_length}, but special tokens, a name of {max_name_length} "
                f"tokens and one token of the mention need {least}; raise it or lower "
                "max_name_length."
            )
        with_types = "token_type_ids" in tokenizer.model_input_names
        return cls(tokenizer, pair, tokenizer.sep_token_id, max_length, max_name_length, with_types)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Encode a batch as pairs, and tell how much was cut."""
        encoded: dict[str, Any] = {"input_ids": [], "labels": batch["label"]}
        encoded |= {name: [] for name in _COUNTS}
        if self.with_types:
            encoded["token_type_ids"] = []
        for own in self.parts(batch, {}):
            encoded["input_ids"].append([own.head + tail.tokens for tail in own.tails])
            if self.with_types:
                first, second = self.pair.first_type, self.pair.second_type
                types = [first] * len(own.head)
                encoded["token_type_ids"].append(
                    [types + [second] * len(tail.tokens) for tail in own.tails]
                )
            for name in _COUNTS:
                encoded[name].append(getattr(own, name))
        return encoded

    def parts(
        self, batch: Mapping[str, Sequence[Any]], known: dict[str, Tail]
    ) -> Iterator[EncodedParts]:
        """Encode a batch; the tails of names are kept in ``known``."""
        lefts, mentions, rights = (self._ids(batch[key]) for key in ("left", "mention", "right"))
        names = sorted({name for row in batch["candidate_names"] for name in row} - known.keys())
        for name, ids in zip(names, self._ids(names), strict=True):
            known[name] = Tail(ids[: self.max_name_length] + self.pair.suffix, len(ids))
        for example, left, mention, right, row in zip(
            batch["id"], lefts, mentions, rights, batch["candidate_names"], strict=True
        ):
            tails = [known[name] for name in row]
            lengths = [own.length for own in tails]
            self._require_tokens(example, mention, lengths, row)
            # The text gets one length for all candidates of an example: were it to follow each
            # candidate's own length, the context shown would tell the candidates apart.
            longest = min(max(lengths, default=0), self.max_name_length)
            room = self.max_length - len(self.pair) - 2 - longest
            text = mention[:room]
            before, after = _fit_context(left, right, room - len(text))
            yield EncodedParts(
                [
                    *self.pair.prefix,
                    *before,
                    self.separator,
                    *text,
                    self.separator,
                    *after,
                    *self.pair.middle,
                ],
                tails,
                sum([own > longest for own in lengths]),
                int(len(text) < len(mention)),
                int(len(before) + len(after) < len(left) + len(right)),
            )

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        distinct = list(dict.fromkeys(texts))
        encoded = dict(zip(distinct, self._ids_of_each(distinct), strict=True))
        return [encoded[text] for text in texts]

    def _ids_of_each(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        if isinstance(self.tokenizer, PreTrainedTokenizerFast):
            # The same without what the wrapper does around each text, which takes longer.
            backend = self.tokenizer.backend_tokenizer
            backend.no_truncation()
            backend.no_padding()
            backend.encode_special_tokens = True  # "[SEP]" in a note is text
            encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
            return [own.ids for own in encoded]
        ids: list[list[int]] = self.tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        return ids

    @staticmethod
    def _require_tokens(
        example: str, mention: list[int], lengths: list[int], names: list[str]
    ) -> None:
        if not mention:
            raise DataError(
                f"The mention of example {example!r} has no tokens; remove the example or use a "
                "tokenizer that knows its characters."
            )
        if 0 in lengths:
            name = names[lengths.index(0)]
            raise DataError(
                f"The candidate name {name!r} of example {example!r} has no tokens; give the "
                "concept another name."
            )


def encode_candidates(
    dataset: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int = 128,
    max_name_length: int = 32,
    num_proc: int | None = None,
) -> datasets.Dataset:
    """Encode every candidate of every example as a pair (mention in its context, candidate name).

    The first segment is ``left [SEP] mention [SEP] right``: the tokenizer's own separator marks
    the mention, so that no token has to be added to a pretrained vocabulary. Too long a text
    loses context first, the tokens farthest from the mention on both sides; the mention is cut
    only where it does not fit alone. Names and mentions that were cut are counted in a warning.

    Args:
        dataset: Examples with the columns of :data:`~hf_kfc.ranking.schema.FEATURES`.
        tokenizer: A tokenizer with a separator and a template for pairs.
        max_length: The most tokens that a pair may have, special tokens included.
        max_name_length: The most tokens of a candidate name; the rest is cut off.
        num_proc: Number of processes, as in ``datasets.Dataset.map``.

    Returns:
        A dataset with ``id``, ``input_ids`` (candidates × tokens, ragged), ``token_type_ids`` of
        the same shape if they are among the tokenizer's model inputs, and ``labels``. Every token
        is attended to; :class:`~hf_kfc.ranking.collator.CandidateCollator` makes the masks.

    Raises:
        DataError: There are no examples, the tokenizer has no separator or no pair template,
            ``max_length`` leaves no room or exceeds the tokenizer's, or a mention or a name has no
            tokens.
    """
    if len(dataset) == 0:
        raise DataError(
            "The dataset has no examples to encode; check how it was split or filtered."
        )
    encoder = CandidateEncoder.of(tokenizer, max_length, max_name_length)
    int_lists = datasets.List(datasets.List(datasets.Value("int32")))
    features = {
        "id": datasets.Value("string"),
        "input_ids": int_lists,
        "labels": datasets.Value("int64"),
        **({"token_type_ids": int_lists} if encoder.with_types else {}),
        **{name: datasets.Value("int32") for name in _COUNTS},
    }
    encoded = dataset.map(
        encoder,
        batched=True,
        remove_columns=[name for name in dataset.column_names if name != "id"],
        features=datasets.Features(features),
        num_proc=num_proc,
        desc="Encoding candidates",
    )
    # The counts travel as columns: they survive several processes and the cache.
    cut_names, cut_mentions, cut_contexts = (sum(encoded[name]) for name in _COUNTS)
    if cut_names:
        logger.warning(
            "%d candidate names were cut to %d tokens; raise max_name_length to keep them whole.",
            cut_names,
            max_name_length,
        )
    if cut_mentions:
        logger.warning(
            "%d of %d mentions were cut; raise max_length (%d) to keep them whole.",
            cut_mentions,
            len(encoded),
            max_length,
        )
    logger.info("%d of %d contexts were shortened.", cut_contexts, len(encoded))
    return encoded.remove_columns(list(_COUNTS))


def _normalizer() -> normalizers.Normalizer:
    """BERT's, but that marks go from Latin, Greek and Cyrillic letters alone.

    In other scripts they are letters: BERT's would leave out the vowels of Hindi and Thai.
    """
    accents = Regex(r"(?<=[\p{Latin}\p{Greek}\p{Cyrillic}])\p{Mn}+")
    return normalizers.Sequence(
        [
            normalizers.BertNormalizer(strip_accents=False, lowercase=False),
            normalizers.NFD(),
            normalizers.Replace(accents, ""),
            normalizers.Lowercase(),
        ]
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int = 8000) -> PreTrainedTokenizerFast:
    """Train a lower-casing WordPiece tokenizer with BERT's special tokens and pair template.

    Args:
        texts: The texts to train on; the result depends on nothing else.
        vocab_size: The size at which merging stops; special tokens and single characters are
            always in the vocabulary.

    Returns:
        A tokenizer whose ``[PAD]`` has id 0; ``AutoTokenizer`` loads what it saves.

    Raises:
        DataError: The texts have no characters, or are one text.
    """
    normalizer = _normalizer()
    splitter = pre_tokenizers.BertPreTokenizer()
    corpus = list(refuse_text("texts", texts))
    counts = Counter(char for text in corpus for char in normalizer.normalize_str(text))
    frequent = sorted(counts, key=lambda char: (-counts[char], char))
    alphabet = sorted([char for char in frequent if not char.isspace()][:_ALPHABET_SIZE])
    if not alphabet:
        raise DataError("A tokenizer cannot be trained on no text; pass texts with words in them.")
    # Left alone, the trainer numbers the "##" characters in the order of a hash table that differs
    # between runs, and breaks ties between merges by these numbers. Special tokens come first.
    inner = [
        f"##{char}"
        for char in alphabet
        if len(splitter.pre_tokenize_str(normalizer.normalize_str(f"a{char}"))) == 1
    ]
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizer
    trained.pre_tokenizer = splitter
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *inner],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    trained.train_from_iterator(corpus, trainer=trainer)
    # A new tokenizer, to which the "##" characters are ordinary tokens.
    tokenizer = Tokenizer(models.WordPiece(vocab=trained.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
