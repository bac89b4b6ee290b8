"""What `spantune.check` and `spantune.split` do: check and split a corpus that is in a file or in memory.

`split_file` is what the command `spantune data split` calls; it writes the splits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from spantune.core import ConfigError, Document, expect, expect_each, shown_url
from spantune.data import formats
from spantune.data.checks import check
from spantune.data.corpus import Corpus
from spantune.data.document_checks import Demands
from spantune.data.engines import Engine, OnRay, processes
from spantune.data.findings import Report
from spantune.data.formats import read
from spantune.data.large_splits import Target, require_joinable, split_in_parts
from spantune.data.parts import Divided, Source, open_in_parts, open_source
from spantune.data.raw.corrections import Indivisible
from spantune.data.raw.document import Options, RawDocument, RawEntity
from spantune.data.splitting import Division, Fewer, Rule, Written, split, usual_names, write_splits

DEFAULTS, WHOLE = Options(), Fewer()


def check_files(
    files: str | Path | Corpus | Iterable[str | Path | Corpus],
    labels: Iterable[str] = (),
    format: str | None = None,
    options: Options | None = None,
    workers: int = 1,
) -> Report:
    """Check annotated corpora, and report what is wrong, how often and where.

        report = spantune.check(["train.jsonl", "dev.jsonl"], labels=["person", "place"])
        print(report.errors, [(finding.name, finding.count, finding.where) for finding in report.findings])

    Args:
        files: a corpus file, `bundled:NAME` or a Corpus. Several are taken for the splits of one corpus.
        labels: the label set; any label is right when it is empty.
        format: the format of the files; recognised from their content when absent.
        options: as in `read`.
        workers: how many processes check large files, which are read in parts. A script that asks for more than one
            must start its work under `if __name__ == "__main__":`.

    Raises:
        ConfigError: an argument has a wrong type, or there are no files.
        DataError: a file cannot be read at all.
    """
    expect(workers, int, "workers", "a whole number of processes")
    expect(format, (str, type(None)), "format", "the name of a format, or None")
    expect(options, (Options, type(None)), "options", "Options(…), or None")
    codes = tuple(expect_each(labels, str, "labels", "a list of label codes"))
    several = [files] if isinstance(files, str | Path | Corpus) else files
    if not isinstance(several, Iterable):
        expect(several, (), "files", "a corpus file, or a list of them")
    reading = options or Options()
    with processes(workers) as engine:
        sources: list[Source | Divided] = []
        for number, file in enumerate(several):
            if isinstance(file, Corpus):
                sources.append(_in_memory(file))
            else:
                path = expect(file, (str, Path), f"files[{number}]", "a corpus file or a Corpus")
                sources.append(open_source(path, format, reading, engine))
        if not sources:
            raise ConfigError("files: expected at least one corpus file, found none")
        return check(sources, Demands(codes), engine=engine)


def split_corpus(
    corpus: str | Path | Iterable[Document],
    shares: Iterable[float] | Mapping[str, float] = (0.8, 0.1, 0.1),
    *,
    by: str | None = None,
    seed: int = 0,
    to: str | Path | None = None,
) -> Division:
    """Split a corpus by label, without a text or a near-duplicate in two splits.

        division = spantune.split("notes.jsonl", {"train": 0.8, "dev": 0.1, "test": 0.1}, to="splits")
        print(len(division.parts["train"]))

    Args:
        corpus: a corpus file, `bundled:NAME`, a Corpus, or a list of Documents.
        shares: the share of each split by its name. Three shares without names are train, dev and test; two are train
            and test.
        by: the key of meta whose values are groups, such as the patient. Documents of a group are kept together.
        seed: another seed gives another split.
        to: a new folder, into which the splits are written as native JSONL, with the record `split.json`.

    Raises:
        ConfigError: the shares or another argument cannot be right.
        DataError: the corpus cannot be read, a split would have no documents, or the folder is not empty.
    """
    expect(seed, int, "seed", "a whole number")
    expect(by, (str, type(None)), "by", "a key of meta, or None")
    expect(to, (str, Path, type(None)), "to", "the path of a new folder, or None")
    rule = Rule(_by_name(shares), seed, by)
    documents = read(corpus).documents if isinstance(corpus, str | Path) else corpus
    checked = list(expect_each(documents, Document, "corpus", "a corpus file, a Corpus or a list of Documents"))
    division = split(checked, rule)
    if to is not None:
        source = corpus.name if isinstance(corpus, Corpus) else str(corpus) if isinstance(corpus, str | Path) else None
        write_splits(Path(to), division, facts={"source": source})
    return division


@dataclass(frozen=True, slots=True)
class SplitJob:
    """What is to be split, and how.

    Args:
        file: the corpus file.
        rule: how it is split.
        format: the format of the file; recognised from its content if None.
        options: how the file is read.
        fewer: how the first split is reduced.
        write_format: the format of the splits.
    """

    file: str
    rule: Rule
    format: str | None = None
    options: Options = DEFAULTS
    fewer: Fewer = WHOLE
    write_format: str = "native"


def split_file(job: SplitJob, folder: Path, engine: Engine) -> Written:
    """Split a corpus file into `folder`. A large file is split in parts if the job allows it, otherwise in memory.

    Raises:
        ConfigError: the engine is Ray, and the job reduces a split, or the corpus cannot be read or written in parts.
        DataError: as `split_corpus` raises it.
    """
    facts: dict[str, object] = {
        "source": shown_url(job.file),
        "k_shot": job.fewer.k_shot,
        "sample": job.fewer.sample,
    }
    is_on_ray = isinstance(engine, OnRay)
    if is_on_ray:
        require_joinable(job.write_format)
        if job.fewer:
            raise ConfigError("--k-shot and --sample are not of --engine ray; drop one of the two")
    if not job.fewer and formats.of_name(job.write_format, writing=True).divisible:
        source = open_in_parts(job.file, job.format, job.options, engine)
        try:
            if source is not None:
                target = Target(folder, job.write_format)
                return split_in_parts(source, job.rule, engine, target, {**facts, "left_out": 0})
        except Indivisible:
            if is_on_ray:
                raise
    corpus = read(job.file, job.format, job.options)
    division = job.fewer.of(split(corpus.documents, job.rule))
    facts["left_out"] = len(corpus.documents) - division.size
    lost = write_splits(folder, division, job.write_format, facts)
    has_groups = any("group" in document.meta for document in corpus.documents)
    return Written({**facts, **division.as_dict()}, {**corpus.notes, **lost}, has_groups)


def _by_name(shares: Iterable[float] | Mapping[str, float]) -> dict[str, float]:
    """Return the share of each split by its name.

    Raises:
        ConfigError: the shares are not numbers, or have no names and are not one, two or three.
    """
    if isinstance(shares, Mapping):
        names = list(expect_each(shares.keys(), str, "the names of shares", "the names of splits, such as train"))
        values = list(shares.values())
    else:
        names, values = [], list(expect_each(shares, (float, int), "shares", "shares such as (0.8, 0.1, 0.1)"))
    for value in values:
        expect(value, (float, int), "shares", "numbers such as 0.8")
    names = names or usual_names(len(values))
    if len(names) != len(values):
        raise ConfigError(
            f"shares: found {len(values)} without names; expected two or three, or a mapping such as "
            "{'train': 0.9, 'test': 0.1}"
        )
    return dict(zip(names, values, strict=True))


def _in_memory(corpus: Corpus) -> Source:
    """Return the documents of a corpus as the reader of a file would have stated them."""

    is_file = corpus.path.exists()  # the lines of a file are not known any more; otherwise the record's number is used

    def stated() -> Iterator[RawDocument]:
        for number, document in enumerate(corpus.documents, start=1):
            line = None if is_file else number
            entities = tuple(
                RawEntity(entity.start, entity.end, entity.label, document.surface(entity), entity.score)
                for entity in document.entities
            )
            yield RawDocument(document.id, document.text, entities, corpus.path, line, document.meta, is_counted=True)

    return Source(corpus.path, corpus.format, tuple(stated()), corpus.notes)
