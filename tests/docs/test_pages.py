"""What the pages link to exists, and what they show runs."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import re
import sys
import types

import pytest
import torch
from torch import nn
from transformers import Trainer

from hf_kfc import ConsolidationPrior
from hf_kfc.commands.options import COMMANDS
from hf_kfc.commands.plugins import plugin_commands
from hf_kfc.curvature import OPERATORS, Outputs, find_layers
from hf_kfc.curvature.layers import RULES

from .pages import PAGES, RAW, ROOT, URL, anchors, code_blocks, links, name_of

README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page):
    broken = []
    for link in links(page):
        target, _, anchor = link.partition("#")
        for prefix in (f"{URL}/blob/main/", f"{URL}/tree/main/", f"{RAW}/main/"):
            if target.startswith(prefix):
                target = "/" + target.removeprefix(prefix)
        if re.match(r"\w+:", target):
            continue  # elsewhere
        root = ROOT if target.startswith("/") else page.parent
        path = root / target.lstrip("/") if target else page
        is_there = path.exists() and (not anchor or path.suffix != ".md" or anchor in anchors(path))
        if not is_there:
            broken.append(link)
    assert not broken


def test_broken_links_would_be_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A heading, *here*\n[a](none.md) ![b](page.md#a-heading-here) `[c](d)`\n")
    assert links(page) == ["none.md", "page.md#a-heading-here"]
    assert anchors(page) == {"a-heading-here"}


def test_the_readme_is_short_and_shows_its_pictures_everywhere():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 90
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert pictures
    assert all(picture.startswith("https://") for picture in pictures)
    relative = [link for link in links(README) if not link.startswith(("https://", "#"))]
    assert not relative, "they lead nowhere from the package index"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_imports_what_there_is(page):
    """Of other packages too, where they are installed."""
    for code in code_blocks(page):
        for node in ast.walk(ast.parse(code)):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            package = node.module.partition(".")[0]
            if package == "hf_kfc" or importlib.util.find_spec(package):
                module = importlib.import_module(node.module)
                missing = [a.name for a in node.names if not hasattr(module, a.name)]
                assert not missing, f"{node.module} has no {missing}"


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "quickstart.md"], ids=name_of)
def test_marked_code_runs_in_an_empty_folder(page, tmp_path, monkeypatch, capsys):
    """And prints what the page shows, a few points more or less on another machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (code,) = code_blocks(page, "run")
    names: dict[str, object] = {}
    exec(code, names)
    assert any(isinstance(value, Trainer) for value in names.values())
    shown = re.findall(r"^    (.*?: .*%)$", page.read_text("utf-8"), re.MULTILINE)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.endswith("%")]
    assert len(printed) == len(shown)
    for found, expected in zip(printed, shown, strict=True):
        ours, theirs = ([float(x) for x in re.findall(r"([\d.]+)%", s)] for s in (found, expected))
        assert ours == pytest.approx(theirs, abs=5.0)


def contributed(mark: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module of the code under a mark."""
    (code,) = code_blocks(CONTRIBUTING, f"run: {mark}")
    module = types.ModuleType("contributed")
    monkeypatch.setitem(sys.modules, "contributed", module)
    exec(code, vars(module))
    return module


def test_the_rule_of_contributing_covers_its_layer(monkeypatch):
    before = dict(RULES)
    try:
        module = contributed("layer rule", monkeypatch)
        model = nn.Sequential(module.Scaled(4, 3))
        ((layer,), _) = find_layers(model)
        assert set(layer.parameters) == {"0.kernel", "0.bias"}
        assert type(layer.rule).__name__ == "ScaledRule"
        examples = [{"input": torch.randn(1, 4), "labels": torch.tensor(i % 3)} for i in range(6)]

        def forward(model, batch):
            return Outputs(model(batch["input"])[:, 0], batch["labels"])

        def collate(rows):
            return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

        prior = ConsolidationPrior.estimate(model, examples, collate, task="old", forward=forward)
        (block,) = prior.curvature.blocks
        assert block.operator.A.shape == (5, 5)
        assert block.operator.G.shape == (3, 3)
    finally:
        RULES.clear()
        RULES.update(before)


def test_regmean_of_the_guide_is_the_least_squares_of_all_inputs(tmp_path):
    """Of a bias the mean is taken."""
    (code,) = code_blocks(ROOT / "docs" / "guides" / "command-line.md", "run: RegMean")
    names = {}
    exec(code, names)
    torch.manual_seed(0)
    models, inputs, files = [nn.Sequential(nn.Linear(4, 3)) for _ in range(2)], [], []
    for number, model in enumerate(models):
        x = torch.randn(9 + number, 5, 4) @ torch.randn(4, 4) + number
        rows = [{"x": own, "labels": torch.tensor(0)} for own in x]
        prior = ConsolidationPrior.estimate(
            model,
            rows,
            lambda rows: {name: torch.stack([row[name] for row in rows]) for name in rows[0]},
            task=str(number),
            forward=lambda model, batch: Outputs(model(batch["x"]).mean(1), batch["labels"]),
        )
        files.append(tmp_path / f"{number}.pt")
        prior.export_covariances(files[-1])
        inputs.append(x.flatten(0, 1) / x[..., 0].numel() ** 0.5)
    with torch.no_grad():
        wanted = torch.cat([x @ model[0].weight.T for x, model in zip(inputs, models, strict=True)])
        bias = (models[0][0].bias + models[1][0].bias) / 2
    expected = torch.linalg.lstsq(torch.cat(inputs), wanted).solution.T
    merged = names["regmean"](models, files, alpha=1.0)
    assert merged is models[0]
    torch.testing.assert_close(merged[0].weight.detach(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(merged[0].bias.detach(), bias)


def test_the_operator_of_contributing_is_known_and_multiplies(monkeypatch):
    try:
        module = contributed("operator", monkeypatch)
        assert OPERATORS["rows"] is module.Rows
        rows = module.Rows(torch.tensor([1.0, 3.0]))
        assert rows.damped(0.5).matrix(2, 2).diagonal().tolist() == [2, 2, 4, 4]
        assert rows.trace((2, 4)) == 16
        assert rows.problems((3, 4)) == ["r has shape [2]"]
    finally:
        OPERATORS.pop("rows", None)


def test_the_corpus_of_contributing_is_built(monkeypatch, tmp_path):
    module = contributed("corpus", monkeypatch)
    for split in ("train", "validation", "test"):
        lines = [f"{split}-{i}\tpain in the\tkidney\tof a dog\tK1" for i in range(3)]
        (tmp_path / split).write_text("\n".join([*lines, f"{split}-9\ta\tb\tc\t"]))
    (tmp_path / "ontology").write_text("K1\tkidney\nL1\tliver\nH1\theart\n")
    files = {key: tmp_path / key for key in ("train", "validation", "test", "ontology")}
    corpus = module.Reports(data_files=files, cache_dir=str(tmp_path / "cache"), num_candidates=2)
    corpus.download_and_prepare()
    assert corpus.as_dataset()["test"]["mention"] == ["kidney"] * 3
    assert corpus.counts.splits["test"].dropped == {"no concept": 1}


def test_the_guide_tells_all_commands():
    page = (ROOT / "docs" / "guides" / "command-line.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| `hf-kfc (\w+)`", page, re.M))
    assert told == {add_arguments.__name__ for add_arguments in COMMANDS | plugin_commands()}


def test_new_names_of_the_changelog_exist():
    table = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("### Migrating")[2]
    rows = re.findall(r"^\| (?!---|0\.1\.0 )(.+) \| (.+) \|$", table, re.M)
    names = [n for _, new in rows for n in re.findall(r"`((?:hf_kfc|laboratory)\.[\w.]+)`", new)]
    assert len(names) > 15
    missing = [name for name in names if not exists(name)]
    assert not missing


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one, or an attribute of that."""
    try:
        return bool(pkgutil.resolve_name(name))
    except (ImportError, AttributeError):
        return False


def test_the_table_of_the_readme_is_that_of_the_results():
    results = (ROOT / "benchmarks" / "tier2" / "results.md").read_text(encoding="utf-8")
    table = results.partition("\n\n")[0]  # below it stands which mentions were lost and won
    assert f"{table}\n" in README.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "benchmarks" not in page.parts], ids=name_of
)
def test_names_and_files_that_are_told_exist(page):
    """Pages of benchmarks tell what was run then."""
    text = page.read_text(encoding="utf-8")
    if page.name == "CHANGELOG.md":
        text = text.partition("### Removed")[0]  # what follows has names that are gone
    names = re.findall(r"`(?:~)?((?:hf_kfc|laboratory)\.[a-z_]\w*(?:\.\w+)*)`", text)
    files = re.findall(r"`((?:hf_kfc|laboratory|recipes|examples|benchmarks|tests)/[\w./]*)`", text)
    missing = [name for name in names if name != "hf_kfc.plugins" and not exists(name)]  # a group
    missing += [file for file in files if not (ROOT / file).exists()]
    assert not missing
