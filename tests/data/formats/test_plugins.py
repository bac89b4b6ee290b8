"""Formats of installed packages: found by metadata, loaded only when needed, and named in the error if they fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from spantune.core import ConfigError, DataError, Document
from spantune.data import formats

CODE = """
from spantune.data.formats import Format, RawDocument, RawEntity

def claims(sample):
    return sample.text.startswith("%%shout") or sample.head.startswith(b"\\xffSHOUT")

def read(path, notes, options):
    for number, line in enumerate(path.read_bytes().decode("utf-8", "replace").splitlines()[1:], start=1):
        yield RawDocument(str(number), line, (RawEntity(0, len(line), "LOUD", line),), path, number + 1)

def write(path, documents, notes, options):
    path.write_text("%%shout\\n" + "".join(document.text + "\\n" for document in documents))

shout = Format(read, write, claims)
mute = Format(read, None, lambda sample: False)
"""


def install(folder: Path, package: str, entries: str, code: str = CODE) -> None:
    """Install a small distribution into `folder`: a module, and metadata with its entry points."""
    (folder / f"{package}.py").write_text(code, encoding="utf-8")
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(f"[spantune.formats]\n{entries}\n", encoding="utf-8")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_a_format_of_another_package_is_listed_recognised_read_and_written(site: Path, tmp_path: Path) -> None:
    install(site, "added_loud", "shout = added_loud:shout\nmute = added_loud:mute")
    assert {"shout", "mute"} <= set(formats.names())
    assert "added_loud" not in sys.modules, "names are known without loading"
    for content in (b"%%shout\nHELLO\n", b"\xffSHOUT\nHELLO\n"):
        (tmp_path / "a").write_bytes(content)
        corpus = formats.read(tmp_path / "a")
        assert corpus.format == "shout"
        assert [(d.id, d.surface(d.entities[0])) for d in corpus.documents] == [("1", "HELLO")]
    formats.write(tmp_path / "b", corpus.documents, "shout")
    assert formats.detect(tmp_path / "b") == "shout"
    with pytest.raises(DataError, match="mute can only be read"):
        formats.write(tmp_path / "c", [Document("d", "a")], "mute")
    with pytest.raises(DataError, match="did you mean 'shout'"):
        formats.read(tmp_path / "a", "shot")


def test_spantunes_own_formats_are_read_without_loading_another(site: Path, tmp_path: Path) -> None:
    install(site, "added_broken", "shout = added_broken:shout", "raise RuntimeError('no sound')")
    (tmp_path / "a.jsonl").write_text('{"id": "a", "text": "a", "entities": []}\n', encoding="utf-8")
    assert formats.read(tmp_path / "a.jsonl").format == "native"
    assert "shout" in formats.names()


BROKEN = {
    "raises": ("raise RuntimeError('no sound')", "cannot be loaded: RuntimeError: no sound"),
    "no such name": ("", "cannot be loaded: AttributeError"),
    "no format": ("shout = 3", "is int; expected a spantune.data.formats.Format"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_one_is_one_error_that_names_the_package(kind: str, site: Path, tmp_path: Path) -> None:
    code, message = BROKEN[kind]
    package = f"added_{kind.replace(' ', '_')}"
    install(site, package, f"shout = {package}:shout", code)
    (tmp_path / "a").write_text("%%shout\nA\n", encoding="utf-8")
    for format in (None, "shout"):
        with pytest.raises(ConfigError) as caught:
            formats.read(tmp_path / "a", format)
        assert f"the format 'shout' of the package {package}, {package}:shout, {message}" in str(caught.value)
        assert "uninstall it" in str(caught.value)


@pytest.mark.parametrize(("name", "holder"), [("native", "spantune"), ("shout", "added_first")])
def test_a_name_that_is_taken_is_refused(name: str, holder: str, site: Path, tmp_path: Path) -> None:
    if holder != "spantune":
        install(site, "added_first", f"{name} = added_first:shout")
    install(site, "added_second", f"{name} = added_second:shout")
    with pytest.raises(ConfigError, match=rf"adds a format {name!r}, which .* has; uninstall one of the two"):
        formats.names()
