"""Several runs over one base model: each extracts what it extracts alone, and the base is loaded only once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.run_folders import READING, TASK, copy_run, save_run
from spantune.core import ConfigError, Document, Extraction, config
from spantune.extraction import Extractor, load_run, load_runs
from spantune.extraction import loading as loading_module

TEXTS = ["肺炎患者咳嗽", "ab", "糖尿病 (diabetes) 患者，ab abc", ""]
SETTINGS = config.Extract(max_new_tokens=60)
Folders = dict[str, Path]


@pytest.fixture(scope="module", params=["fp32", "fp8", "nf4"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Folders:
    if request.param == "nf4":
        pytest.importorskip("bitsandbytes")
    place = tmp_path_factory.mktemp(request.param)
    tasks = {"first": (TASK, 9), "second": (TASK, 3), "reads": (READING, 1), "reads-too": (READING, 2)}
    return {
        name: save_run(place / name, tiny_folder, task, base=request.param, seed=seed)
        for name, (task, seed) in tasks.items()
    }


def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that gets the names of the base models that are loaded."""
    loaded: list[str] = []
    real: Any = loading_module.load

    def load(settings: config.Model, *rest: Any, **options: Any) -> Any:
        loaded.append(settings.source)
        return real(settings, *rest, **options)

    monkeypatch.setattr(loading_module, "load", load)
    return loaded


def rounded(extraction: Extraction) -> Any:
    return [(entity.start, entity.end, entity.label) for entity in extraction.document.entities], extraction.answer


def agree(found: list[Extraction], wanted: list[Extraction]) -> None:
    for extraction, expected in zip(found, wanted, strict=True):
        assert rounded(extraction) == rounded(expected) and extraction.status == expected.status
        scores, own = ([entity.score for entity in each.document.entities] for each in (expected, extraction))
        assert own == pytest.approx(scores, abs=1e-4)


def test_runs_over_one_base_extract_what_each_extracts_alone(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {name: list(load_run(folder, settings=SETTINGS).stream(TEXTS)) for name, folder in folders.items()}
    assert len({str(list(map(rounded, extractions))) for extractions in alone.values()}) == len(folders)  # they differ
    assert all(any(each.document.entities for each in alone[name]) for name in folders if name != "second")
    loaded = loads(monkeypatch)
    together = load_runs(list(folders.values()), settings=SETTINGS)
    assert list(together) == list(folders) and len(loaded) == 1
    assert len({id(extractor.model) for extractor in together.values()}) == 1
    for name, extractor in together.items():
        agree(list(extractor.stream(TEXTS)), alone[name])
    # one pass of each in turn
    streams = {name: extractor.stream(TEXTS) for name, extractor in together.items()}
    found: dict[str, list[Extraction]] = {name: [] for name in together}
    sessions = {name: extractor.session() for name, extractor in together.items()}
    tickets = {
        name: [session.submit(Document(str(number), text)) for number, text in enumerate(TEXTS)]
        for name, session in sessions.items()
    }
    ended: dict[str, dict[int, Extraction]] = {name: {} for name in together}
    while any(session.pending for session in sessions.values()):
        for name, session in sessions.items():
            ended[name] |= dict(session.step())
    for _ in TEXTS:
        for name, stream in streams.items():
            found[name].append(next(stream))
    for name in together:
        agree(found[name], alone[name])
        agree([ended[name][ticket] for ticket in tickets[name]], alone[name])


def test_a_single_run_is_loaded_as_ever_and_bad_lists_are_refused(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = save_run(tmp_path / "a" / "first", tiny_folder)
    (extractor,) = load_runs([run], settings=SETTINGS, min_score=0.25).values()
    assert isinstance(extractor, Extractor) and not hasattr(extractor.model, "peft_config")  # the adapter is merged
    assert extractor.calibration is not None and extractor.calibration.threshold == 0.25
    again = copy_run(run, tmp_path / "b" / "first")
    with pytest.raises(ConfigError, match=r"a/first and .*b/first are both called 'first'; rename"):
        load_runs([run, again])
    with pytest.raises(ConfigError, match="no run was given"):
        load_runs([])
    with pytest.raises(ConfigError, match="unknown device"):
        load_runs([run], device="gpu")
    loaded = loads(monkeypatch)
    other = save_run(tmp_path / "other", tiny_folder, base="bf16")
    assert list(load_runs([run, other], settings=SETTINGS)) == ["first", "other"] and len(loaded) == 2


def products(extractor: Extractor, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the output of each linear layer of the decoder for `rows` [n, largest input], by its name in the base."""
    layers = {name.removeprefix("base_model.model."): layer for name, layer in extractor.model.named_modules()}
    sized = {name: layer for name, layer in layers.items() if hasattr(layer, "in_features") and ".layers." in name}
    own = {name: layer for name, layer in sized.items() if "lora_" not in name and "base_layer" not in name}
    return {name: layer(rows[:, : layer.in_features]) for name, layer in own.items()}


def test_an_adapter_is_merged_before_its_base_becomes_fp8_where_the_settings_say_so(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    always = SETTINGS.model_copy(update={"merge": "always"})
    plain = load_run(save_run(tmp_path / "plain", tiny_folder, seed=5), settings=SETTINGS)
    run = save_run(tmp_path / "fp8", tiny_folder, base="fp8", seed=5)
    beside = load_run(run, settings=SETTINGS)
    assert hasattr(beside.model, "peft_config") and "merged" not in caplog.text
    merged = load_run(run, settings=always)
    assert "merged before the base was quantised" in caplog.text and not hasattr(merged.model, "peft_config")
    quantised = [layer for layer in merged.model.modules() if type(layer).__name__ == "Fp8Linear"]
    assert quantised and all(layer.weight.dtype == torch.uint8 for layer in quantised)
    rows = torch.randn(16, 128, generator=torch.Generator().manual_seed(1))
    exact, *others = (products(extractor, rows) for extractor in (plain, beside, merged))
    for found in others:  # equal up to the rounding of base and input
        assert exact.keys() == found.keys() and len(exact) > 4
        for name, wanted in exact.items():
            assert (found[name] - wanted).norm() < 0.06 * wanted.norm(), name
    reads = load_run(save_run(tmp_path / "reads", tiny_folder, READING, base="fp8"), settings=always)
    assert any(document.entities for document in reads.extract(TEXTS))


def test_merged_runs_have_a_base_each_and_none_is_merged_into_four_bits(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    always = SETTINGS.model_copy(update={"merge": "always"})
    runs = [save_run(tmp_path / "one", tiny_folder, base="fp8")]
    runs.append(copy_run(runs[0], tmp_path / "two"))
    loaded = loads(monkeypatch)
    extractors = load_runs(runs, settings=always)
    assert len(loaded) == 2 and not any(hasattr(each.model, "peft_config") for each in extractors.values())
    for run, base in zip(runs, ("nf4", "int8"), strict=True):
        recipe = run / "config.yaml"
        recipe.write_text(recipe.read_text(encoding="utf-8").replace("base: fp8", f"base: {base}"), encoding="utf-8")
        with pytest.raises(ConfigError, match=f"the run's base is {base}, into which no adapter can be merged"):
            load_run(run, settings=always)
