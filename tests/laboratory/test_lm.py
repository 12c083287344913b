"""The stage of a language model: rows, measures against plain sums, and runs that go on."""

import copy
import io
import json
import re
import tarfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch.nn.functional import cross_entropy, kl_div
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_kfc.errors import ConsolidationError, DataError
from hf_kfc.probes.inputs import said_twice
from laboratory.ledger import read_ledger
from laboratory.lm import LmArguments, LmMethod, run_lm
from laboratory.lm.adapters import with_adapter
from laboratory.lm.data import Example, beginning_of, read_domain
from laboratory.lm.evaluation import Evaluation
from laboratory.lm.models import load_model
from laboratory.lm.stage import Stage

OURS = ["kfc:0.1+probes:1", "kfc:0.1+rank:4+probes:1+rows:1", "kfc:0.1+probes:1+public:0.5"]
TWICE = "probes:1+public+repeated:0.5"
KEEP = [*OURS, "average:0.5", "lwf:4", "ewc:0.1", "lora:2", "corda:2", "osf:0.9"]
METHODS = ["none", "average:0", *KEEP]
NOTES = [f"Nota {n}: dolor de cabeza y fiebre, sin tos ni otra cosa. " * 3 for n in range(40)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of corpora as the real one is laid out."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "lm").mkdir()
    (folder / "codiesp").mkdir()
    sets = {
        "lambada_openai": [
            {"context": f"It is {n}, they say", "continuation": "so"} for n in (1, 22)
        ],
        "piqa": [{"query": "Question: how?\n", "choices": ["well", "not"], "gold": 1}],
        "arc_easy": [{"query": "Question: who?", "choices": ["a", "bc", "def"], "gold": 0}],
        "gsm8k": [
            {"context": f"{n} and 1?", "chain_of_thought": f"{n} + 1", "answer": f"{n + 1}"}
            for n in range(30)
        ],
    }
    for name, lines in sets.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "lm" / f"{name}.jsonl").write_text(text, "utf-8")
    with tarfile.open(folder / "codiesp" / "text_files_es_en.tar.gz", "w:gz") as archive:
        for number, text in enumerate(NOTES):
            member = tarfile.TarInfo(f"train/text_files/{number}.txt")
            content = text.encode()
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (folder / "public").mkdir()
    (folder / "public" / "story.txt").write_text("It is a truth universally known. " * 40, "utf-8")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama whose tokens are bytes, with a tied head as SmolLM2's."""
    folder = tmp_path_factory.mktemp("model")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(["<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def arguments(data: Path, model: str, results: Path, **changes: object) -> LmArguments:
    values: dict[str, object] = {
        "data_dir": str(data),
        "results": str(results),
        "model": model,
        "methods": METHODS,
        "steps": 10,
        "batch_size": 4,
        "length": 32,
        "learning_rate": 0.03,
        "dtype": "float32",
        "device": "cpu",
        "sampled_texts": 24,
        "curvature_texts": 8,
        "probe_batch_size": 2,
        "test_rows": 6,
    }
    return LmArguments(**values | changes)  # type: ignore[arg-type]


def test_a_stage_runs_measures_and_goes_on(data, model, tmp_path):
    args = arguments(data, model, tmp_path / "results.jsonl")
    run_lm(args)
    written = Path(args.results).read_bytes()
    _, runs = read_ledger(Path(args.results))
    by_method = {point.method: record for point, record in runs.items()}
    assert list(by_method) == ["individual", *METHODS]
    anchor, plain = by_method["individual"], by_method["none"]
    assert anchor["meter"] == {"kl": pytest.approx(0, abs=1e-5), "changed": 0}
    assert plain["new"]["cross_entropy"] < anchor["new"]["cross_entropy"] - 0.5
    for name in ("general", "new"):  # nothing of what was learnt is all of the anchor
        assert by_method["average:0"][name] == pytest.approx(anchor[name], abs=1e-4)
    for name in KEEP:
        assert 0 < by_method[name]["meter"]["kl"] < plain["meter"]["kl"], name
    run_lm(args)  # nothing is missing
    assert Path(args.results).read_bytes() == written
    with pytest.raises(ConsolidationError, match="other steps"):
        run_lm(arguments(data, model, tmp_path / "results.jsonl", steps=11))


def test_public_texts_stand_among_sampled_ones(data, model, tmp_path):
    """As many as are sampled, of their share, and never the meter's; the curvature is of them."""
    stage = Stage(arguments(data, model, tmp_path / "r.jsonl"), 0)
    sampled = [list(row["input_ids"]) for row in stage.probes[0].rows]
    for share, count in ((1.0, 18), (0.5, 9)):
        probes = stage.learnt_from(LmMethod.parse(f"kfc:0.1+probes:1+public:{share}"))
        rows = [list(row["input_ids"]) for row in probes.rows]
        public = [row for row in rows if row not in sampled]
        assert (len(rows), len(public)) == (len(sampled), count)
        story = "It is a truth universally known. " * 40
        assert all(stage.tokenizer.decode(row) in story for row in public)
    rows = [list(r["input_ids"]) for r in stage.learnt_from(LmMethod.parse(TWICE)).rows]
    assert [row[:16] == row[16:] for row in rows] == [True] * 9 + [False] * 9
    cut = stage.learnt_from(LmMethod.parse(f"{TWICE}+tokens:20")).rows
    short = [row[:10] * 2 if i < 9 else row[:20] for i, row in enumerate(rows)]
    assert [list(row["input_ids"]) for row in cut] == short
    ours, theirs = (stage.prior(LmMethod.parse(f"kfc:0.1{end}")) for end in ("", "+public"))
    assert ours.fingerprint != theirs.fingerprint
    other = Stage(arguments(data, model, tmp_path / "other.jsonl"), 0)  # nothing is kept there
    assert (
        other.prior(LmMethod.parse(f"kfc:0.1+{TWICE}+tokens:20")).fingerprint == theirs.fingerprint
    )
    empty = Stage(arguments(tmp_path, model, tmp_path / "r.jsonl"), 0)
    with pytest.raises(
        DataError, match=r"has 0 rows of 32 tokens in its \*.txt, and 18 are needed"
    ):
        empty.learnt_from(LmMethod.parse("probes:1+public"))


@pytest.mark.parametrize(
    "name",
    [
        *("probes:1+repeated", "public+repeated", "probes:1+tokens:8"),
        *("probes:1+damping:0.1", "kfc+probe_every:2"),
    ],
)
def test_a_part_that_would_do_nothing_is_refused(name):
    problems = r"repeats or cuts what it has not|damps no penalty|spaces no probes"
    with pytest.raises(ConsolidationError, match=problems):
        LmMethod.parse(name)


def test_two_rivals_in_one_method_are_refused():
    with pytest.raises(ConsolidationError, match="has two rivals' terms; give lwf or mixed"):
        LmMethod.parse("lwf:1+mixed:1")


def test_public_texts_are_learnt_among_the_new_ones(data, model, tmp_path):
    """As many rows as of probes, one after another and from the first again."""
    stage = Stage(arguments(data, model, tmp_path / "r.jsonl"), 0)
    trainer = stage.trainer(LmMethod.parse("mixed:3"), stage.anchor)
    assert not trainer.priors
    assert not trainer.probes
    batch, texts = stage.collator(stage.domain.train[:4]), stage.public
    for step in (0, 10):  # 18 rows in nine steps
        trainer.state.global_step, first = step, 2 * step % 18
        stage.anchor.train()
        found = trainer.compute_loss(stage.anchor, dict(batch))
        with torch.no_grad():
            own = stage.anchor(**batch).loss
            public = stage.anchor(**stage.collator(texts[first : first + 2])).loss
        assert found.item() == pytest.approx((own + 3 * public).item(), rel=1e-5)
        stage.anchor.eval()
        assert trainer.compute_loss(stage.anchor, dict(batch)).item() == pytest.approx(own.item())


def test_questions_are_learnt_after_their_prompts_and_answered(data, model, tmp_path):
    args = arguments(data, model, tmp_path / "r.jsonl", domain="gsm8k", length=96, answers=2)
    stage = Stage(args, 0)
    row = stage.domain.train[0]
    text = stage.tokenizer.decode([label for label in row["labels"] if label >= 0])
    assert text.startswith(" ")
    assert text.endswith(f"The answer is: {int(text.split()[0]) + 1}</s>")
    assert stage.tokenizer.decode(row["input_ids"]).startswith("Question: ")
    assert len(stage.domain.test) == args.test_rows
    assert stage.measure(stage.anchor)["new"]["answers"] == 0  # of random weights


def test_answers_are_of_prompts_without_their_padding_and_their_last_number_counts(data, model):
    """A stand-in answers even numbers rightly, with a thousand's comma and a way of working."""
    _, tokenizer = load_model(model)
    questions = [Example(f"{n} and 1000?", f"= {n + 1000}") for n in (2, 3, 14, 101)]

    def generate(input_ids, attention_mask, do_sample, max_new_tokens):
        assert (do_sample, max_new_tokens) == (False, 5)
        lines = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            n = int(tokenizer.decode(ids[mask.bool()]).split()[0])
            answer = f" 7 so {n + 1000 + n % 2:,}."
            lines.append([*ids.tolist(), *tokenizer(answer).input_ids])
        return torch.tensor(lines)

    answering = SimpleNamespace(generate=generate, device="cpu")
    evaluation = Evaluation(data / "lm", tokenizer, 1, 0, 0)
    assert evaluation.answers(answering, questions, 5) == 0.5


def test_the_board_s_protocol_is_kept(data, model, tmp_path, monkeypatch):
    """Whole rows below a length, that schedule and decay; GSM8K asked; articles measured."""
    read = {
        "meta-math/MetaMathQA": [
            {"query": f"{n} and 1?", "response": f"It is {n + 1}. The answer is: {n + 1}"}
            for n in range(20)
        ]
        + [{"query": "x" * 800, "response": "y" * 501}],
        "HuggingFaceFW/finewiki": SimpleNamespace(take=lambda count: [{"text": "Of it."}] * count),
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **_: read[name])
    args = arguments(
        data, model, tmp_path / "r.jsonl", domain="metamath", length=96, answers=2, wikipedia=3
    )
    stage = Stage(args, 0)
    rows = [*stage.domain.train, *stage.domain.test]
    assert len(rows) == 20
    assert all(row["labels"] == row["input_ids"] for row in rows)
    assert re.fullmatch(
        r"Question: (\d+) and 1\? Think step by step.\nAnswer:It is .*The answer is: \d+</s>",
        stage.tokenizer.decode(rows[0]["input_ids"]),
    )
    assert {example.prompt.split()[1] for example in stage.domain.questions} == set(
        map(str, range(30))
    )
    training = stage.trainer(LmMethod.parse("none"), stage.anchor).args
    assert (training.weight_decay, training.lr_scheduler_type) == (0.1, "cosine")
    found = stage.measure(stage.anchor)
    assert found["new"]["answers"] == 0
    assert found["general"]["wikipedia"] > 0


def test_a_text_begins_with_the_token_that_the_tokenizer_puts_there(data, model):
    network, tokenizer = load_model(model)
    network.train(False)
    assert beginning_of(tokenizer) == []
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    assert beginning_of(tokenizer) == [0]
    half = [0, 4, 5, 4, 5]
    assert said_twice([0, 4, 5, 6, 7], tokenizer.bos_token_id) == half
    assert said_twice([4, 5, 6, 7], tokenizer.bos_token_id) == half[1:]
    for domain in ("spanish", "gsm8k"):
        rows = read_domain(domain, data, tokenizer, length=96, test_rows=2, seed=0).train
        begun = [row["input_ids"][0] == 0 for row in rows]
        assert any(begun)
        assert all(begun) or domain == "spanish"  # whose texts are cut into rows
        assert not any(0 in row["input_ids"][1:] for row in rows)
    found = Evaluation(data / "lm", tokenizer, None, None, 0)(network)
    texts = [tokenizer(f"It is {n}, they say so", return_tensors="pt").input_ids for n in (1, 22)]
    assert all(ids[0, 0] == 0 for ids in texts)
    with torch.no_grad():
        losses = [
            cross_entropy(network(ids).logits[0, :-1], ids[0, 1:], reduction="sum") for ids in texts
        ]
    expected = float(sum(losses)) / sum(ids.shape[1] - 1 for ids in texts)
    assert found["cross_entropy"] == pytest.approx(expected, rel=1e-4)


def test_a_test_part_has_other_texts_and_every_seed_has_it(data, model):
    _, tokenizer = load_model(model)

    def parts(seed):
        found = read_domain("spanish", data, tokenizer, length=32, test_rows=8, seed=seed)
        return found.train, found.test

    (train, test), (other_train, other_test) = parts(0), parts(1)
    assert test == other_test
    assert train != other_train
    assert sorted(map(str, train)) == sorted(map(str, other_train))
    assert all(len(row["input_ids"]) == 32 for row in train + test)
    learnt, held_out = (
        {n for row in rows for n in re.findall(r"Nota (\d+):", tokenizer.decode(row["input_ids"]))}
        for rows in (train, test)
    )
    assert len(learnt) > 20
    assert held_out
    assert not learnt & held_out


def test_measures_are_plain_sums(data, model):
    """Padding and the order of a batch change nothing."""
    network, tokenizer = load_model(model)
    network.train(False)
    evaluation = Evaluation(data / "lm", tokenizer, None, None, 0)
    found = evaluation(network)

    def losses(text):
        ids = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids)
        logits = network(input_ids=ids[None]).logits[0, :-1]
        return cross_entropy(logits, ids[1:], reduction="none").detach()

    texts = torch.cat([losses(f"It is {n}, they say so") for n in (1, 22)])
    assert found["cross_entropy"] == pytest.approx(float(texts.mean()), rel=1e-4)
    answers = [losses(f"Question: who?\nAnswer: {c}")[-len(c) - 1 :] for c in ("a", "bc", "def")]
    sums = torch.stack([-values.sum() for values in answers])
    assert found["arc_easy_loss"] == pytest.approx(-float(sums.log_softmax(0)[0]), rel=1e-4)
    assert found["arc_easy"] == float((sums / torch.tensor([1, 2, 3])).argmax() == 0)
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}]
    rows.append({"input_ids": [9, 3, 4], "labels": [9, 3, 4]})
    batch = [
        float(
            network(
                input_ids=torch.tensor([r["input_ids"]]), labels=torch.tensor([r["labels"]])
            ).loss
        )
        for r in rows
    ]
    assert evaluation.cross_entropy(network, rows) == pytest.approx(sum(batch) / 2, rel=1e-4)


def test_distillation_is_the_mean_divergence_of_what_is_read(data, model, tmp_path):
    stage = Stage(arguments(data, model, tmp_path / "r.jsonl"), 0)
    other, _ = load_model(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    trainer = stage.trainer(LmMethod.parse("lwf:3"), other)
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}]
    rows.append({"input_ids": [9, 3, 4], "labels": [9, 3, 4]})
    batch = dict(stage.collator(rows))
    other.train()
    plain = other(**batch).loss
    mask = batch["attention_mask"].bool()
    read = {name: batch[name] for name in ("input_ids", "attention_mask")}
    old, new = (net(**read).logits[mask].log_softmax(-1) for net in (stage.anchor, other))
    due = plain + 3 * kl_div(new, old, reduction="batchmean", log_target=True)
    assert float(trainer.compute_loss(other, batch)) == pytest.approx(float(due), rel=1e-5)


def test_a_method_has_a_rank_and_rows_of_its_own(data, model, tmp_path):
    stage = Stage(arguments(data, model, tmp_path / "r.jsonl"), 0)
    whole, small = (stage.trainer(LmMethod.parse(name), stage.anchor) for name in OURS[:2])
    assert (whole.args.probe_batch_size, small.args.probe_batch_size) == (2, 1)
    sharp = stage.trainer(LmMethod.parse("kfc:0.1+damping:0.02"), stage.anchor)
    assert (whole.args.damping, sharp.args.damping) == (0.1, 0.02)
    spaced = stage.trainer(LmMethod.parse("probes+rows:3+probe_every:2"), stage.anchor).args
    assert (spaced.probe_every, spaced.probe_batch_size, whole.args.probe_every) == (2, 3, 1)
    (own,) = stage.trainer(LmMethod.parse("probes"), stage.anchor).probes.values()
    assert own is stage.probes[0]
    cooler = LmMethod.parse("probes+temperature:0.5")
    (cold,) = stage.trainer(cooler, stage.anchor).probes.values()
    assert len(cold) == len(stage.probes[0])
    surprise = [
        stage.evaluation.cross_entropy(stage.anchor, [row | {"labels": row["input_ids"]}])
        for probes in (cold, stage.probes[0])
        for row in probes.rows
    ]
    assert sum(surprise[: len(cold)]) < 0.8 * sum(surprise[len(cold) :])
    errors = [trainer.priors[0].provenance.approximation_errors for trainer in (whole, small)]
    assert not errors[0]
    assert max(errors[1].values()) > 0.01


@pytest.mark.parametrize(("kind", "size"), [("lora", 3), ("corda", 3), ("osf", 0.75)])
def test_an_adapter_begins_at_the_anchor_and_learns_in_the_directions_that_are_left(
    data, model, tmp_path, kind, size
):
    stage = Stage(arguments(data, model, tmp_path / "r.jsonl"), 0)
    prior = stage.prior(LmMethod("corda"))
    batch = stage.collator(stage.domain.test)
    before = stage.anchor(**batch).logits
    wrapped = with_adapter(copy.deepcopy(stage.anchor), kind, size, prior)
    torch.testing.assert_close(wrapped(**batch).logits, before, rtol=1e-3, atol=1e-4)
    trained = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * {"lora": 2, "corda": 2, "osf": 3}[kind]  # of two layers
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], 0.1)
    wrapped(**batch).loss.backward()
    optimizer.step()
    name = "model.layers.1.mlp.up_proj"
    old, new = (m.get_submodule(name).weight for m in (stage.anchor, wrapped.merge_and_unload()))
    change, (left, _, right) = (new - old).detach(), torch.linalg.svd(old.detach())
    assert change.norm() > 1e-4
    if kind == "osf":  # 12 of 16 directions are kept
        kept = left[:, :12].T @ change, change @ right[:12].T
        assert max(part.norm() for part in kept) < 1e-3 * change.norm()
    else:
        assert torch.linalg.matrix_rank(change, rtol=1e-3) <= 2 * size
    if kind == "corda":  # along what the old inputs use less than they do others
        (block,) = (b for b in prior.curvature.blocks if b.name == name)
        moment = block.operator.input_moment()
        used = torch.trace(change @ moment @ change.T) / change.norm() ** 2
        assert used < 0.5 * torch.trace(moment) / len(moment)


def test_what_is_wrong_is_told(data, model, tmp_path):
    with pytest.raises(ConsolidationError, match="unknown method 'ekfac'; choose from none, kfc"):
        arguments(data, model, tmp_path / "r.jsonl", methods=["ekfac"])
    with pytest.raises(ConsolidationError, match="steps is 0"):
        arguments(data, model, tmp_path / "r.jsonl", steps=0)
    assert LmMethod.parse("average:0.3+probes:2").trained == "probes:2"
