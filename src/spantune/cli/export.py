"""The command `spantune export`.

The table or JSON goes to stdout, messages to stderr.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spantune.cli import names
from spantune.cli.libraries import quiet
from spantune.cli.options import AcceptChanges, Device, Force, Json, Run
from spantune.core import log_crashes_into, print_table, put, put_json, say
from spantune.runs import RunFolder

if TYPE_CHECKING:
    from spantune.export import Exported

FORM = "What is written"
HUB = "A hub"
COMPARISON = "How it is compared with the run"

# Commands have many parameters, and so many lines, since typer reads the options from the signature.


def export(
    run: Run,
    out: Annotated[Path, typer.Argument(help="The folder to write; it must be absent or empty.")],
    to: Annotated[
        Literal["merged", "adapter", "gguf", "spans"],
        typer.Option(
            help="merged: weights that every engine loads. adapter: plain LoRA. gguf: for llama.cpp and Ollama. "
            "spans: weights, head and a loader, for a run that reads."
        ),
    ],
    dtype: Annotated[
        Literal["bf16", "fp32"] | None,
        typer.Option(help="Type of the weights. That of the base's own files if not given.", rich_help_panel=FORM),
    ] = None,
    shard_size: Annotated[
        str, typer.Option(help="The most bytes of a weights file, such as 4GB.", rich_help_panel=FORM)
    ] = "4GB",
    split: Annotated[
        bool,
        typer.Option(
            "--split",
            help="adapter: one for each of q, k, v, gate and up, for Llama-shaped copies of Phi-4.",
            rich_help_panel=FORM,
        ),
    ] = False,
    base_name: Annotated[
        str | None,
        typer.Option(
            help="adapter: the name of the base model on a hub, such as microsoft/phi-4.", rich_help_panel=FORM
        ),
    ] = None,
    quantize: Annotated[
        str, typer.Option(help="gguf: type of the weights, such as f16 or q8_0.", rich_help_panel=FORM)
    ] = "f16",
    as_adapter: Annotated[
        bool, typer.Option("--adapter", help="gguf: write the adapter alone.", rich_help_panel=FORM)
    ] = False,
    license: Annotated[
        str | None, typer.Option(help="Licence that the model card states, such as mit.", rich_help_panel=FORM)
    ] = None,
    verify: Annotated[
        int,
        typer.Option(
            help="How many dev documents to compare on. 0: do not compare.", min=0, rich_help_panel=COMPARISON
        ),
    ] = 50,
    data: Annotated[
        str | None,
        typer.Option(
            help="Corpus to compare on. The run's dev corpus if not given.",
            autocompletion=names.corpora,
            rich_help_panel=COMPARISON,
        ),
    ] = None,
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Keep an export that differs, as OUT.differs.", rich_help_panel=COMPARISON),
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(help="Then upload it: modelscope:OWNER/NAME or hf:OWNER/NAME.", rich_help_panel=HUB),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public; else it is private.", rich_help_panel=HUB)
    ] = False,
    force: Force = False,
    accept_changes: AcceptChanges = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Export a run for other engines: merged weights, a plain adapter, GGUF, or weights with a head and its loader.

    The export is loaded again as another engine loads it, and compared with the run. If they differ, nothing is
    exported.

    Examples:

        spantune export runs/demo demo-model --to spans

        spantune export runs/phi4 phi4-merged --to merged --push modelscope:me/phi4-cmeee

        spantune export runs/phi4 phi4-lora --to adapter --base-name microsoft/phi-4
    """
    folder = RunFolder(run)
    folder.require_finished()
    log_crashes_into(run)
    quiet(folder.config().model.source, whole=True)
    from spantune.export import ExportSettings, export_run

    settings = ExportSettings(
        dtype=dtype,
        shard_size=shard_size,
        split=split,
        base_name=base_name,
        verify=verify,
        data=data,
        keep=keep,
        license=license,
        quantize=quantize,
        as_adapter=as_adapter,
        push=push,
        public=public,
        device=device,
        accept_changes=accept_changes,
    )
    exported = export_run(run, to, out, settings, force=force)
    if as_json:
        put_json(exported.as_dict())
    else:
        _print(exported)


def _print(exported: Exported) -> None:
    verified = exported.verified
    rows = [("size", f"{exported.bytes / 1e6:,.1f} MB"), ("seconds", f"{exported.seconds:.1f}")]
    if verified is None:
        rows.append(("compared", "no (--verify 0)"))
    else:
        same = "all the same" if verified.f1 is None else f"F1 {verified.f1:.3f} between the file and the run"
        rows.append(("compared", f"{verified.documents} documents, {verified.entities} entities, {same}"))
        if verified.logprobs is not None:
            apart = f"{verified.logprobs.median:.2g} in the median, {verified.logprobs.most:.2g} at most"
            rows.append(("log-probabilities differ by", apart))
        if verified.logits is not None:
            rows.append(("largest difference of a logit", f"{verified.logits:.2g}"))
        if verified.rounding is not None:
            rows.append(("logits moved by rounding to bf16", f"{verified.rounding:.2g} at most"))
    if exported.page is not None:
        rows.append(("uploaded", exported.page))
    print_table([str(exported.folder), exported.form], rows)
    for note in exported.notes:
        say(f"note: {note}")
    for command in exported.commands:
        put(f"\n{command.purpose}:\n  {command.line}")
