"""The recipe that `spantune init` writes loads, can be prepared, and describes the corpus."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import spantune
from spantune.core import ConfigError, DataError, Document, Entity, config, load_config
from spantune.data import Options, formats, read_splits, shared_texts
from spantune.models.bundled import BUNDLED
from spantune.training import Reading, init, make_plan, prepare
from spantune.training import draft as drafting
from spantune.training.draft import TEST_FROM
from spantune.training.recommendation import READ_FROM, WEIGHTS, recommend, weights_of

ZH = ["患者因肺炎入院。", "既往有胃炎病史。", "诊断为肝癌早期。", "无心衰表现，咳嗽。"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drafting, "device_here", lambda: "cpu")


def doccano(path: str, records: Sequence[tuple[str, list[list[Any]]]]) -> str:
    lines = [json.dumps({"id": n, "text": text, "label": spans}) for n, (text, spans) in enumerate(records)]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def english(path: str, count: int = 40, label: str = "person") -> str:
    """Write sentences with one or two entities that do not overlap."""
    records = [(f"Ann{n} met Bob in Rome.", [[0, 3 + len(str(n)), label]]) for n in range(count)]
    return doccano(path, records)


def chinese(path: str, count: int = 12, *, nested: bool = True) -> str:
    inner = [[3, 4, "bod"]] if nested else []
    return doccano(path, [(f"{text}{n}", [[3, 5, "dis"], *inner]) for n, text in enumerate(ZH * (count // 4))])


def test_a_chinese_nested_corpus_gets_a_chinese_nested_recipe(tiny_folder: Path) -> None:
    draft = init(chinese("notes.jsonl"), "recipe.yaml", model=str(tiny_folder))
    recipe = load_config("recipe.yaml")
    assert recipe == draft.config and draft.text == Path("recipe.yaml").read_text(encoding="utf-8")
    assert (recipe.run.name, recipe.task.language, recipe.task.nested) == ("notes", "zh", True)
    assert {label.code for label in recipe.task.labels or ()} == {"dis", "bod"}
    assert (recipe.data.train, recipe.data.dev, recipe.data.holdout) == ("notes.jsonl", None, 0.3)
    prepared = prepare(recipe)
    assert len(prepared.splits.dev) == 3 and prepared.task.instruction.startswith("请从给定的文本中")
    assert prepared.recipe == recipe.model_copy(update={"task": recipe.task})  # init has left no choice open
    assert make_plan(prepared).failed == []


def test_an_english_flat_corpus_gets_an_english_flat_recipe_with_counts(tiny_folder: Path) -> None:
    draft = init(english("my notes.v2.jsonl"), model=str(tiny_folder))
    recipe = draft.config
    assert (recipe.run.name, recipe.task.language, recipe.task.nested) == ("my-notes", "en", False)
    assert "- person # 40" in draft.text and "# no entities overlap in this corpus" in draft.text
    assert recipe.data.holdout == 0.2 and "the first 8 documents are dev" in draft.text
    row = recommend(32, 1)
    assert (recipe.train.epochs, recipe.train.learning_rate, recipe.lora.rank) == (
        row.epochs, row.learning_rate, row.rank
    )  # fmt: skip
    assert recipe.train.max_minutes == 5 and row.name in draft.text
    assert any("there is no test set" in remark for remark in draft.remarks)
    assert not Path("recipe.yaml").exists()


def test_a_large_corpus_is_read_and_the_recipe_says_why(tiny_folder: Path) -> None:
    draft = init(english("notes.jsonl", READ_FROM * 2), model=str(tiny_folder))
    recipe, row = draft.config, recommend(draft.decided.trained_on, 1, "spans")
    assert recipe.task.answer == "spans" and recipe.spans == config.Spans()
    assert (recipe.train.epochs, recipe.train.learning_rate, recipe.lora.rank) == (
        row.epochs, row.learning_rate, row.rank
    )  # fmt: skip
    count = draft.decided.trained_on  # each has one entity, and all have one label
    assert f"# entities are read, since {count:,} training entities a label are enough (docs/quality.md)" in draft.text
    assert "# spans: {view: whole}" in draft.text and "loss_on" not in draft.text and "eval_before" not in draft.text
    written = init("notes.jsonl", model=str(tiny_folder), answer="jsonl")
    assert written.config.task.answer == "jsonl" and "loss_on: choices" in written.text


def test_a_small_corpus_is_written_unless_it_is_chosen_to_be_read(tiny_folder: Path) -> None:
    draft = init(english("notes.jsonl"), model=str(tiny_folder))
    assert "# entities are written, since 32 training entities a label are few (docs/quality.md)" in draft.text
    read = init("notes.jsonl", model=str(tiny_folder), answer="spans")
    assert read.config.task.answer == "spans" and "or it reads spans" in read.text
    prepared = prepare(read.config)
    assert prepared.recipe.train == read.config.train and prepared.recipe.lora == read.config.lora


@pytest.mark.parametrize("label", ["no", "1", "组织: A", "#x", "a, b", "[x]", "~", "'", '"', "&a", "- b", "two\nlines"])
def test_labels_that_mean_something_in_yaml_are_kept(label: str) -> None:
    draft = init(english("notes.jsonl", label=label))
    assert [named.code for named in draft.config.task.labels or ()] == [label]


def test_what_is_chosen_goes_before_what_is_found(tiny_folder: Path) -> None:
    notes = chinese("notes.jsonl")
    draft = init(
        notes, model=str(tiny_folder), language="en", nested=False, answer="inline", minutes=2, name="x"
    )  # fmt: skip
    recipe = draft.config
    assert (recipe.task.language, recipe.task.nested, recipe.task.answer) == ("en", False, "inline")
    assert (recipe.train.max_minutes, recipe.run.name) == (2, "x")
    assert any("entities overlap, which a flat task does not allow" in remark for remark in draft.remarks)
    with pytest.raises(ConfigError, match="found an empty list"):
        init([])
    with pytest.raises(ConfigError, match="init has no choice 'modle'; did you mean 'model'"):
        init("notes.jsonl", modle="x")  # type: ignore[call-arg]


def test_known_labels_get_their_preset() -> None:
    draft = init("bundled:clinical-zh-train")
    assert draft.config.task.preset == "cmeee" and draft.config.task.labels is None
    assert draft.config.data.train == "bundled:clinical-zh-train" and "sym 682" in draft.text


def test_a_folder_with_splits_is_taken_as_it_is(corpus: Path, tiny_folder: Path) -> None:
    draft = init(corpus, "recipe.yaml", model=str(tiny_folder))
    data = draft.config.data
    assert (data.train, data.dev, data.test) == tuple(
        str(corpus / f"{name}.jsonl") for name in ("train", "dev", "test")
    )
    assert draft.config.run.name == corpus.name and not draft.made and draft.remarks == ()
    assert dict(draft.decided.counts) == {"train": 24, "dev": 6, "test": 8}


def test_repeated_texts_never_stand_in_two_splits(tiny_folder: Path) -> None:
    records = [(f"Ann{n % 9} met Bob.", [[0, 4, "person"]]) for n in range(30)]
    draft = init(doccano("notes.jsonl", records), "made/recipe.yaml", model=str(tiny_folder))
    data = load_config("made/recipe.yaml").data
    assert (data.train, data.dev) == ("made/notes-splits/train.jsonl", "made/notes-splits/dev.jsonl")
    train, dev = (formats.read(path).documents for path in (data.train, str(data.dev)))
    assert len(train) + len(dev) == 30 and not shared_texts(train, dev)
    assert make_plan(prepare(draft.config)).failed == []


@pytest.mark.parametrize("first", [20, 60])
def test_a_corpus_in_the_order_of_its_labels_is_split_by_label(first: int) -> None:
    records = [(f"Word{n} {n * n} stands.", [[0, 5, "A" if n < first else "B"]]) for n in range(100)]
    draft = init(doccano("notes.jsonl", records), "recipe.yaml")
    for documents in draft.made.values():
        assert {entity.label for document in documents for entity in document.entities} == {"A", "B"}
    assert set(draft.made) == {"train", "dev"} and any("in an order" in remark for remark in draft.remarks)


def test_training_texts_that_are_in_dev_or_test_are_left_out() -> None:
    english("train.jsonl", 40)
    english("test.jsonl", 12)
    draft = init("train.jsonl", "recipe.yaml")
    assert draft.config.data.test == "test.jsonl"  # beside a file that is named train
    assert draft.config.data.holdout == 0.2 and len(draft.made["train"]) == 28
    assert any("12 training documents are left out" in remark for remark in draft.remarks)
    with pytest.raises(DataError, match="every training text is in dev or test too"):
        init("train.jsonl", dev="train.jsonl")


def test_what_is_left_out_does_not_move_a_text_over_the_edge_of_what_is_held_out() -> None:
    names = ["Test0", "Test1", *(f"Ann{n}" for n in range(6)), "Same", "Same", *(f"Bob{n}" for n in range(27))]
    doccano("notes.jsonl", [(f"{name} went home.", [[0, len(name), "person"]]) for name in names])
    doccano("test.jsonl", [(f"{name} went home.", [[0, len(name), "person"]]) for name in names[:2]])
    draft = init("notes.jsonl", "recipe.yaml", test="test.jsonl")
    splits = read_splits(draft.config.data)
    assert len(splits.train) + len(splits.dev) == len(names) - 2 and not shared_texts(splits.train, splits.dev)


def test_a_later_corpus_is_right_about_the_texts_of_an_earlier_one() -> None:
    english("notes.jsonl", 40)
    english("corrected.jsonl", 10, label="name")
    draft = init(["notes.jsonl", "corrected.jsonl"])
    documents = [document for part in draft.made.values() for document in part]
    assert len(documents) == 40 and draft.decided.found.labels == {"person": 30, "name": 10}
    assert draft.decided.found.notes["document of a later file that replaces one with the same text"] == 10


def test_several_corpora_are_split_together() -> None:
    english("a.jsonl", TEST_FROM)  # the texts are so similar that only equal ones are kept together
    chinese("b.jsonl")
    draft = init(["a.jsonl", "b.jsonl"], "recipe.yaml")
    assert set(draft.made) == {"train", "dev", "test"} and sum(map(len, draft.made.values())) == TEST_FROM + 12
    assert load_config("recipe.yaml").data.test == "a-splits/test.jsonl"


def test_a_cpu_takes_as_many_documents_as_its_minutes_suffice_for(monkeypatch: pytest.MonkeyPatch) -> None:
    english("train.jsonl", 700)
    doccano("dev.jsonl", [(f"Eve{n} sleeps.", [[0, 3, "person"]]) for n in range(310)])
    draft = init("train.jsonl", minutes=1, answer="jsonl")
    assert (draft.config.data.limit, draft.config.data.dev_limit) == (400, 300)
    assert any("data.limit=400, data.dev_limit=300" in remark for remark in draft.remarks)
    assert init("train.jsonl", minutes=2).config.data.limit is None
    monkeypatch.setattr(drafting, "device_here", lambda: "cuda")
    data = init("train.jsonl").config
    assert (data.data.limit, data.data.dev_limit, data.train.max_minutes, data.train.eval_before) == (
        None, None, None, True
    )  # fmt: skip


def test_how_files_are_read_is_written_down() -> None:
    lines = "".join(f"x{n}\tO\tNN\nRome\tB-LOC\tNN\n\n" for n in range(8))
    Path("notes.txt").write_text(lines, encoding="utf-8")
    draft = init("notes.txt", reading=Reading("conll", Options(column=1)))
    assert (draft.config.data.format, draft.config.data.column) == ("conll", 1)
    assert list(draft.decided.found.labels) == ["LOC"]


def test_a_label_only_in_dev_is_in_the_task_and_is_said(tiny_folder: Path) -> None:
    english("notes.jsonl")
    doccano("more.jsonl", [("Rome is far.", [[0, 4, "place"]])])
    draft = init("notes.jsonl", dev="more.jsonl", model=str(tiny_folder))
    assert [label.code for label in draft.config.task.labels or ()] == ["person", "place"]
    said = " ".join(draft.remarks)
    assert "the label place has no entity in the training documents" in said and "a dev set of 1 says little" in said
    assert prepare(draft.config).splits.dev[0].text == "Rome is far."


def test_entities_with_white_space_are_said_and_do_not_stop_the_run(tiny_folder: Path) -> None:
    formats.write(Path("notes.jsonl"), [Document(str(n), f"Ann {n} met", (Entity(0, 4, "person"),)) for n in range(9)])
    draft = init("notes.jsonl", model=str(tiny_folder))
    assert draft.config.train.loss_on == "answer" and any("white space" in remark for remark in draft.remarks)
    assert prepare(draft.config).splits.train


def test_a_model_of_unknown_size_leaves_the_choice_to_training() -> None:
    draft = init(english("notes.jsonl"), model="hf:owner/mystery")
    assert draft.config.train.learning_rate is None and draft.config.lora.rank is None
    assert any("does not say how large the model is" in remark for remark in draft.remarks)


@pytest.mark.parametrize(
    ("source", "weights"),
    [
        ("hf:Qwen/Qwen3-0.6B", 0.6e9),
        ("modelscope:LLM-Research/gemma-3-270m-it", 270e6),
        ("hf:meta-llama/Llama-3.2-1B-Instruct", 1e9),
        ("modelscope:LLM-Research/phi-4", 14.7e9),
        ("hf:owner/model-v2", None),
    ],
)
def test_the_name_of_a_model_says_how_large_it_is(source: str, weights: float | None) -> None:
    assert weights_of(source) == weights


def test_the_models_that_come_with_spantune_are_known() -> None:
    assert set(WEIGHTS) == {f"bundled:{name}" for name in BUNDLED}
    with pytest.raises(ConfigError, match="no model 'gema3-270m' comes with spantune; did you mean"):
        weights_of("bundled:gema3-270m")
    with pytest.raises(ConfigError, match=r"model 'Qwen/Qwen3-0.6B' is no folder; expected"):
        weights_of("Qwen/Qwen3-0.6B")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: "gone.jsonl", "gone.jsonl"),
        (lambda: english("one.jsonl", 1), "one document cannot be both trained on and measured on"),
        (lambda: doccano("bare.jsonl", [("a", []), ("b", [])]), "no document has an entity"),
        (lambda: doccano("same.jsonl", [("Ann", [[0, 3, "x"]])] * 9), "9 documents together have 1 different texts"),
    ],
)
def test_a_corpus_that_cannot_be_learnt_from_is_refused(make: Callable[[], str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        init(make(), "recipe.yaml")
    assert not Path("recipe.yaml").exists()


def test_tags_that_contradict_their_scheme_are_refused_with_the_commands_that_mend_them() -> None:
    Path("notes.txt").write_text("a\tB-PER\nb\tI-LOC\n\n" * 6, encoding="utf-8")
    with pytest.raises(
        DataError, match=r"notes\.txt:2.*spantune data check notes\.txt --fix mended, then spantune init"
    ):
        init("notes.txt")


def test_nothing_is_replaced_without_force() -> None:
    english("notes.jsonl")
    init("notes.jsonl", "recipe.yaml")
    with pytest.raises(ConfigError, match=r"recipe\.yaml exists; name another, or give --force"):
        init("notes.jsonl", "recipe.yaml")
    spantune.init("notes.jsonl", "recipe.yaml", force=True, name="second")
    assert load_config("recipe.yaml").run.name == "second"
    with pytest.raises(ConfigError, match="is read from"):
        init("notes.jsonl", "notes.jsonl", force=True)


def test_a_recipe_for_a_large_model_is_for_a_gpu() -> None:
    draft = init(english("notes.jsonl"), model="modelscope:LLM-Research/phi-4")
    assert draft.config.train.max_minutes is None and draft.config.train.eval_before
    assert any("14.7 B weights are too many to train on a CPU" in remark for remark in draft.remarks)


def test_runs_beside_a_corpus_are_no_corpus() -> None:
    english("notes.jsonl")
    init(".", "recipe.yaml")
    Path("runs/notes").mkdir(parents=True)
    Path("runs/notes/config.yaml").touch()
    assert init(".", write=False).config.data.train == "notes.jsonl"
