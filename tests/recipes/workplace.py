"""Good input of the recipes in a folder, and ways to spoil it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from recipe_runs import DATA, SMALL_CNN, TINY, Recipes, Result

from hf_kfc.priors.files import read_prior_files, write_prior_files
from hf_kfc.ranking.schema import FEATURES


def document(id_: str, title: str, abstract: str, *marks: tuple[str, str]) -> str:
    """A PubTator block; each mark is a span of the text and its concept."""
    text = f"{title} {abstract}"
    rows = [f"{id_}|t|{title}", f"{id_}|a|{abstract}"]
    for span, concept in marks:
        start = text.index(span)
        rows.append(f"{id_}\t{start}\t{start + len(span)}\t{span}\tDisease\t{concept}")
    return "\n".join([*rows, "", ""])


CORPUS = {
    "mesh_names.tsv.gz": "D1\tNaloxone\nD2\tClonidine\nD3\tHypertension\nD4\tDelirium\n",
    "train_corpus.pubtator.txt.gz": document(
        "1", "Naloxone and high BP.", "Delusions.", ("Naloxone", "D1"), ("high BP", "D3")
    ),
    "dev_corpus.pubtator.txt.gz": document("2", "Catapres given.", "No more.", ("Catapres", "D2")),
    "test_corpus.pubtator.txt.gz": document(
        "3", "Case of confusion.", "High BP.", ("confusion", "D4"), ("High BP", "D3")
    ),
}


@dataclass
class Workplace:
    """A folder with good input, to be spoilt.

    Args:
        folder: Holds ``data`` and, in ``tier1``, a model with its prior.
        recipes: Starts recipes.
        monkeypatch: To cut off the Hub.
    """

    folder: Path
    recipes: Recipes
    monkeypatch: pytest.MonkeyPatch

    @property
    def ranker(self) -> Path:
        return self.folder / "tier1"

    @property
    def prior(self) -> Path:
        return self.ranker / "prior"

    @property
    def corpus(self) -> Path:
        return self.folder / "data" / "bc5cdr"

    @property
    def prepared(self) -> Path:
        return self.folder / "prepared"

    def tier1(self, *arguments: object) -> Result:
        """Run tier 1."""
        return self._call("tier1", *SMALL_CNN, *arguments)

    def bc5cdr(self) -> Result:
        """Run tier 1 on the corpus in ``data``."""
        return self.tier1("--dataset", "bc5cdr", "--data_dir", self.folder / "data")

    def tier2(self, *arguments: object) -> Result:
        """Run tier 2 from the model and the prior."""
        return self._call("tier2", "--model", self.ranker, "--priors", self.prior, *arguments)

    def tier3(self, *arguments: object) -> Result:
        """Run tier 3 from the model and the prior, twice."""
        priors = ("--priors", self.prior, self.prior)
        return self._call("tier3", "--model", self.ranker, *priors, *arguments)

    def methods(self, *arguments: object) -> Result:
        """Run tier 2 with tier 1 on the spot."""
        return self._call("tier2", *arguments)

    def change(self, file: str, change: Callable[[str], str]) -> None:
        """Rewrite a file of the corpus."""
        path = self.corpus / file
        path.write_text(change(path.read_text()))

    def change_prior(self, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
        """Rewrite the prior's tensors, checksums included: only the content can tell."""
        config, tensors, _ = read_prior_files(self.prior)
        change(tensors)
        write_prior_files(self.prior, config, tensors, "5GB")

    def prepare(self, change: Callable[[dict[str, datasets.Dataset]], None]) -> Result:
        """Run tier 1 on a folder as somebody else may have made it."""
        articles = datasets.load_dataset(str(DATA / "articles"), cache_dir=str(self.recipes.cache))
        splits = {split: rows.select(range(20)) for split, rows in articles.items()}
        change(splits)
        datasets.DatasetDict(splits).save_to_disk(str(self.prepared))
        return self.tier1("--dataset", self.prepared)

    def spoil_example(self, split: str, **values: Any) -> Result:
        """Run tier 1 on a folder with an example that the builders would never make."""

        def spoil(splits: dict[str, datasets.Dataset]) -> None:
            rows = splits[split].to_list()
            rows[5] |= {"id": "example five"} | values
            splits[split] = datasets.Dataset.from_list(rows, features=FEATURES)

        return self.prepare(spoil)

    def _call(self, recipe: str, *arguments: object) -> Result:
        output = ("--output_dir", self.folder / "new" / "output")
        return self.recipes.call(recipe, *TINY, *output, *arguments)
