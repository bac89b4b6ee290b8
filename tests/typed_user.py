"""A user's script that mypy checks strictly with the package: what the public functions take and return."""

from __future__ import annotations

from typing import assert_type

import spantune


def types() -> None:
    """Never run: mypy checks the types."""
    corpus = spantune.read("notes.jsonl")
    assert_type(corpus, spantune.Corpus)
    assert_type(spantune.Corpus.from_dicts(corpus.to_dicts()), spantune.Corpus)
    assert_type(spantune.init("notes.jsonl", "recipe.yaml", minutes=5), spantune.Draft)
    result = spantune.train("recipe.yaml", ["train.max_steps=24"])
    assert_type(result, spantune.Result)
    assert_type(spantune.train(resume=result.folder), spantune.Result)
    assert_type(result.scores, spantune.Scores)
    assert_type(result.scores.micro.f1, float)
    extractor = spantune.load(result.folder)
    assert_type(extractor, spantune.Extractor)
    assert_type(extractor.extract("a text"), spantune.Document)
    assert_type(extractor.extract(corpus.documents[0]), spantune.Document)
    assert_type(extractor.extract(["a text", "another"]), list[spantune.Document])
    assert_type(extractor.extract(corpus), list[spantune.Document])
    assert_type([extraction for extraction in extractor.stream(["a text"])], list[spantune.Extraction])
    assert_type(spantune.evaluate(extractor, corpus), spantune.Evaluation)
    assert_type(spantune.compare(["runs/one", "runs/other"]), spantune.Comparison)
    assert_type(spantune.calibrate("runs/one").threshold, float | None)
    assert_type(spantune.check(corpus).errors, int)
    assert_type(spantune.split(corpus).parts["train"], tuple[spantune.Document, ...])
    assert_type(spantune.plan("recipe.yaml"), spantune.Plan)
    assert_type(spantune.score(corpus, corpus), spantune.Scores)
    assert_type(spantune.to_dicts(corpus), list[dict[str, object]])
