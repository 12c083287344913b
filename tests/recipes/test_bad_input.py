"""Bad input gives one line that says what and where, a status, and no file."""

import re
import shutil
from collections.abc import Callable

import datasets
import pytest
from recipe_runs import DATA, TINY, Recipes, Result, content
from transformers import Trainer
from workplace import CORPUS, Workplace

from hf_kfc import ConsolidationPrior
from hf_kfc.ranking import CnnConfig, CnnForMultipleChoice


@pytest.fixture
def work(tier1, recipes, tmp_path, monkeypatch) -> Workplace:
    workplace = Workplace(tmp_path, recipes, monkeypatch)
    shutil.copytree(tier1, workplace.ranker)
    workplace.corpus.mkdir(parents=True)
    for name, text in CORPUS.items():
        (workplace.corpus / name).write_text(text)
    return workplace


def check(result: Result, message: str) -> None:
    assert result.status == 1, result
    assert len(result.errors) == 1, result.err
    assert re.search(message, result.errors[0]), result.errors[0]
    assert "Traceback" not in result.err + result.out
    assert "saved in" not in result.out


def test_the_input_is_good_before_it_is_spoilt(work):
    for result in (work.bc5cdr(), work.tier2()):
        assert result.status == 0, result.err
        assert result.errors == []


Spoil = Callable[[Workplace], Result]

BAD: dict[str, tuple[Spoil, str]] = {}


def bad(message: str) -> Callable[[Spoil], Spoil]:
    def register(spoil: Spoil) -> Spoil:
        BAD[spoil.__name__.replace("_", " ")] = spoil, message
        return spoil

    return register


@bad(r"'bc5cdr': .*/data/bc5cdr/dev_corpus\S* is missing; put it there")
def missing_file(work):
    (work.corpus / "dev_corpus.pubtator.txt.gz").unlink()
    return work.bc5cdr()


@bad(r"'bc5cdr' reads files; pass data_dir")
def no_data_dir(work):
    return work.tier1("--dataset", "bc5cdr")


@bad(r"mesh_names.tsv.gz:2: expected 'id<TAB>name', got 'D2 Clonidine'")
def malformed_name(work):
    work.change("mesh_names.tsv.gz", lambda text: text.replace("D2\t", "D2 "))
    return work.bc5cdr()


@bad(r"test_corpus.pubtator.txt.gz:4: mention 'High BP' is not the text at 20 27")
def wrong_offset(work):
    work.change("test_corpus.pubtator.txt.gz", lambda text: text.replace("\t19\t26", "\t20\t27"))
    return work.bc5cdr()


@bad(r"train_corpus.pubtator.txt.gz:3: expected 'id, start, end, mention, type, concept'")
def malformed_annotation(work):
    work.change("train_corpus.pubtator.txt.gz", lambda text: text.replace("\t0\t", "\tzero\t"))
    return work.bc5cdr()


@bad(r"train_corpus.pubtator.txt.gz:1: damaged gzip data after line 0; fetch the file again")
def damaged_gzip(work):
    (work.corpus / "train_corpus.pubtator.txt.gz").write_bytes(b"\x1f\x8bnothing")
    return work.bc5cdr()


@bad(r"train_corpus.pubtator.txt.gz:5: offsets 9 to 9 are not a piece of the text")
def empty_mention(work):
    work.change("train_corpus.pubtator.txt.gz", lambda text: text[:-1] + "1\t9\t9\t\tDisease\tD1\n")
    return work.bc5cdr()


@bad(r"bc5cdr: the ontology has 1 concept; ranking needs at least 2")
def one_concept(work):
    work.change("mesh_names.tsv.gz", lambda text: "D1\tNaloxone\n")
    for split in ("train", "dev", "test"):
        work.change(f"{split}_corpus.pubtator.txt.gz", lambda text: re.sub(r"D\d", "D1", text))
    return work.bc5cdr()


@bad(r"bc5cdr/validation: no usable mention .*gold concept not in the ontology")
def no_gold_in_the_ontology(work):
    work.change("mesh_names.tsv.gz", lambda text: text.replace("D2", "C2"))
    return work.bc5cdr()


@bad(r"prepared/test: example 'example five': gold absent from candidates: label 10 of 10")
def gold_absent(work):
    return work.spoil_example("test", label=10)


@bad(r"prepared/validation: example 'example five': gold absent from candidates: label -1 of 10")
def gold_negative(work):
    return work.spoil_example("validation", label=-1)


@bad(r"prepared/train: example 'example five': 1 candidate\(s\); ranking needs at least 2")
def one_candidate(work):
    return work.spoil_example("train", candidate_ids=["a"], candidate_names=["a"], label=0)


@bad(r"prepared/train: example 'example five': the mention is empty; remove it")
def blank_mention(work):
    return work.spoil_example("train", mention=" ")


@bad(r"'nosuch' is no folder, no task \(.*bc5cdr.*\) and no data set on the Hub \(org/name\)")
def unknown_dataset(work):
    return work.tier1("--dataset", "nosuch")


@bad(r"'nosuch' is no folder, no task")
def unknown_old_dataset(work):
    return work.tier2("--old_datasets", "nosuch")


@bad(r"data set 'org/nosuch' cannot be loaded \(.*\); check its name")
def dataset_out_of_reach(work):
    work.monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    return work.tier1("--dataset", "org/nosuch")


@bad(r"data set .*/data/bc5cdr' cannot be loaded \(.*\); check its name")
def folder_of_raw_files(work):
    return work.tier1("--dataset", work.corpus)


@bad(r"data set .*/articles' cannot be loaded \(.*nosuch.*\); check its name, its configuration")
def unknown_configuration(work):
    return work.tier1("--dataset", DATA / "articles", "--dataset_config", "nosuch")


@bad(r"prepared: split 'test' is missing \(found: train, validation\); add it")
def missing_split(work):
    return work.prepare(lambda splits: splits.pop("test"))


@bad(r"prepared/train: no column 'left', 'label'; make the data set with recipes/prepare.py")
def missing_columns(work):
    def remove(splits):
        splits["train"] = splits["train"].remove_columns(["left", "label"])

    return work.prepare(remove)


@bad(r"prepared is a single split; save a DatasetDict of train, validation, test")
def single_split(work):
    datasets.Dataset.from_dict({"id": ["a"]}).save_to_disk(str(work.prepared))
    return work.tier1("--dataset", work.prepared)


@bad(r"2 names are given for 1 old data sets; give as many --old_names")
def two_names_for_one_old_dataset(work):
    return work.tier2("--old_datasets", DATA / "articles", "--old_names", "a", "b")


@bad(r"old data sets are called articles, articles; give different --old_names")
def two_old_datasets_of_one_name(work):
    return work.tier2("--old_datasets", DATA / "articles", DATA / "articles")


@bad(r"max_train_examples is 0; give at least 1")
def no_examples(work):
    return work.tier1("--max_train_examples", "0")


@bad(r"max_length is 5, but special tokens, .* need 38; raise it")
def no_room(work):
    return work.tier1("--max_length", "5")


@bad(
    r"prior of task 'articles' does not fit CnnForMultipleChoice: .*"
    r"convolution.weight has shape \[12, 12, 3\], the prior's has \[8, 8, 3\]"
)
def prior_of_another_width(work):
    config = CnnConfig.from_pretrained(work.ranker)
    config.hidden_size = 12
    CnnForMultipleChoice(config).save_pretrained(work.ranker)
    return work.tier2()


@bad(r"prior at .*/tier1/prior cannot be loaded: file prior.safetensors is damaged \(bytes 5000")
def truncated_prior(work):
    path = work.prior / "prior.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    return work.tier2()


@bad(r"prior at .*/tier1/prior cannot be loaded: .*damaged \(sha256")
def flipped_bit_in_the_prior(work):
    path = work.prior / "prior.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return work.tier2()


@bad(r"prior at .*/tier1/prior cannot be loaded: .*dense: .*A has .*NaN")
def nan_factor(work):
    work.change_prior(lambda tensors: tensors["curvature/dense/A"].fill_(float("nan")))
    return work.tier2()


@bad(r"prior at .*/tier1/prior cannot be loaded: .*dense.*G")
def factor_gone(work):
    work.change_prior(lambda tensors: tensors.pop("curvature/dense/G"))
    return work.tier2()


@bad(r"prior at .*/tier1/prior cannot be loaded: .*fingerprint")
def another_factor(work):
    work.change_prior(lambda tensors: tensors["curvature/dense/A"].mul_(2))
    return work.tier2()


@bad(r"/tier1/config.json does not describe a prior")
def folder_of_the_model_for_that_of_the_prior(work):
    return work.tier2("--priors", work.ranker)


@bad(r"no prior at .*/nosuch: config.json is missing")
def no_prior(work):
    return work.tier2("--priors", work.prior, work.folder / "nosuch")


@bad(r"--priors is given without a model; give it as --model")
def prior_without_model(work):
    return work.methods("--priors", work.prior)


@bad(r"model .*/tier1 is a folder, from which no card leads to its priors; give --priors")
def folder_without_priors(work):
    return work.methods("--model", work.ranker)


@bad(r"min_examples is -1; give at least 0")
def negative_min_examples(work):
    return work.tier1("--min_examples", "-1")


@bad(r"--push_to_hub: the Hub does not tell who you are \(.*\); log in with 'hf auth login'")
def no_token(work):
    work.monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return work.tier1("--push_to_hub", "org/tier1")


@bad(r"push_to_hub is 'tier1'; give it as ORG/NAME")
def repository_without_owner(work):
    return work.tier1("--push_to_hub", "tier1")


@bad(r"config.json of org/tier1@main cannot be fetched: it is not in the cache, and the Hub is off")
def model_out_of_reach(work):
    work.monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return work.methods("--model", "org/tier1")


@bad(r"model '.*/tier1' cannot be loaded \(.*\); give the folder")
def truncated_model(work):
    path = work.ranker / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    return work.tier2()


@bad(r"model '.*/tier1' cannot be loaded \(.*\); give the folder")
def model_without_tokenizer(work):
    for path in work.ranker.glob("tokenizer*"):
        path.unlink()
    return work.tier2()


@bad(r"model '.*/nosuch' cannot be loaded \(.*\); give the folder")
def no_model(work):
    return work.tier1("--model", work.folder / "nosuch")


@bad(r"strengths \[-1.0\] is not a list of numbers ≥ 0, one for all priors or one for each")
def negative_strength(work):
    return work.tier2("--strengths", "-1")


@bad(r"strengths \[nan\] is not a list of numbers ≥ 0, one for all priors or one for each")
def nan_strength(work):
    return work.methods("--strengths", "nan")


@bad(r"2 strengths were given for 1 priors; give one for all or one for each")
def two_strengths_for_one_prior(work):
    return work.tier2("--strengths", "1", "2")


@bad(r"3 strengths were given for 2 priors; give one for all or one for each")
def three_strengths_for_two_priors(work):
    return work.tier3("--strengths", "1", "2", "3")


@bad(r"several --strengths are of several --priors; give one")
def two_strengths_for_one_method(work):
    return work.methods("--strengths", "1", "2")


@bad(r"prior of task 'articles' has 0 examples .*no Bayesian strength; set `strengths`")
def l2_prior_without_strength(work):
    model = CnnForMultipleChoice.from_pretrained(work.ranker)
    ConsolidationPrior.l2(model, task="articles").save_pretrained(work.prior)
    return work.tier2()


@bad(r"penalty_every 0 is not a whole number ≥ 1; correct `penalty_every`")
def penalty_in_no_step(work):
    return work.tier2("--penalty_every", "0")


@bad(r"damping -0.1 is not a number ≥ 0; correct `damping`")
def negative_damping(work):
    return work.tier2("--damping", "-0.1")


@bad(r"unknown method 'mas'; choose from ewc, ekfac, kfc, probes, or one of")
def unknown_method(work):
    return work.methods("--methods", "kfc", "mas")


@bad(r"ignore entry 'LayerNrom' matches no parameter")
def ignore_without_effect(work):
    return work.tier1("--ignore", "LayerNrom")


@bad(r"num_train_epochs is inf; give a positive number")
def endless_epochs(work):
    return work.tier1("--num_train_epochs", "inf")


@bad(r"learning_rate is 0.0; give a positive number")
def no_learning_rate(work):
    return work.tier1("--learning_rate", "0")


@bad(r"seed is -1; give a number from 0 to")
def negative_seed(work):
    return work.tier1("--seed", "-1")


@bad(r"hidden_size is 0; give at least 1")
def no_width(work):
    return work.tier1("--hidden_size", "0")


@bad(r"/data exists and has no prior/config.json; choose another folder")
def output_into_a_foreign_folder(work):
    (work.folder / "data" / "results.json").write_text("{}")  # others write such files too
    return work.tier1("--output_dir", work.folder / "data")


@bad(r"mesh_names.tsv.gz is not a folder; choose another folder than .*/runs/tier2")
def output_into_a_file(work):
    return work.tier2("--output_dir", work.corpus / "mesh_names.tsv.gz" / "runs" / "tier2")


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, work, recipes, monkeypatch):
    spoil, message = BAD[name]
    call, before = Recipes.call, []

    def watched(self: Recipes, *arguments: object) -> Result:
        before.append(content(work.folder))  # the input is spoilt now
        return call(self, *arguments)

    def train(*_: object) -> None:
        raise AssertionError("the input was not refused before hours of training")

    monkeypatch.setattr(Recipes, "call", watched)
    monkeypatch.setattr(Trainer, "train", train)
    check(spoil(work), message)
    assert len(before) == 1
    assert content(work.folder) == before[0]
    assert recipes.leftovers() == []


def test_the_process_ends_with_one_line_and_status_1(work, recipes):
    before = content(work.folder)
    result = recipes.start(
        "tier1",
        *(*TINY, "--dataset", "bc5cdr", "--data_dir", work.folder / "nosuch"),
        *("--output_dir", work.folder / "new" / "output"),
        # Without --quiet the launcher adds a traceback of its own.
        launcher="accelerate.commands.launch --quiet",
    )
    check(result, r"'bc5cdr': .*/nosuch/bc5cdr/train_corpus\S* is missing; put it there")
    assert content(work.folder) == before
    assert recipes.leftovers() == []
