"""Extraction by writing: the model decodes an answer for each text, and the answer is parsed into an Extraction.

The key-value cache is allocated for the first text. If the model's weights are frozen, the cache is kept. If they are
being trained, the cache is dropped whenever no text is left to decode, since its keys and values come from old weights.
"""

from __future__ import annotations

from dataclasses import replace

from spantune.core import Document, Extraction, Problem, Status, config
from spantune.encoding import Encoder
from spantune.extraction.choosing import Effort, Row, Rules
from spantune.extraction.compiling import is_worth_compiling
from spantune.extraction.decoder import Decoder, places
from spantune.extraction.fixed_passes import Shape
from spantune.extraction.model_runner import Forward
from spantune.extraction.result import Ended, Written, failed, read_answer
from spantune.models import CausalLM

ROWS = {"cpu": 32, "cuda": 352}  # documents that are decoded together, unless `extract.batch_size` says otherwise
TOKENS = {"cpu": 1024, "cuda": 768}  # maximum tokens of a pass


class Writer:
    """Writes the answers for documents with a model.

    Args:
        model: a causal LM.
        encoder: the tokenizer and the task.
        settings: the section `extract`; its `batch_size` is the most documents that are decoded together.
        rules: how to decode.
        effort: the cost is added to this.
    """

    def __init__(self, model: CausalLM, encoder: Encoder, settings: config.Extract, rules: Rules, effort: Effort):
        self._model, self._encoder, self._rules, self._effort = model, encoder, rules, effort
        self._kind: str = next(model.parameters()).device.type
        self._rows = settings.batch_size or ROWS[self._kind]
        self._settings = settings
        self._decoder: Decoder | None = None

    @property
    def room(self) -> int:
        """How many more documents to submit now."""
        return places(self._rows) if self._decoder is None else self._decoder.room

    def wake(self) -> None:
        """Allocate the key-value cache if there is none.

        Raises:
            ModelError: the GPU has not enough memory for the cache.
        """
        if self._decoder is None:
            self._decoder = Decoder(self._model, self._encoder, self._forward(), self._rules, self._effort)
            self._decoder.takes_all = is_worth_compiling(self._model, self._settings, is_bulk=True)

    def rest(self) -> None:
        """Drop the key-value cache if the model's weights may change before the next document."""
        if any(parameter.requires_grad for parameter in self._model.parameters()):
            self._decoder = None

    def submit(self, text: Document) -> int:
        """Add a text; return its number."""
        return self._awake.submit(text)

    def cancel(self, number: int) -> None:
        """Drop the text with this number."""
        self._awake.cancel(number)

    def step(self) -> list[Ended]:
        """Compute one pass; return the results of the texts that have ended, in any order."""
        self._prepare()
        return [Ended(row.index, self._extraction(row), row.error) for row in self._awake.step()]

    def _prepare(self) -> None:
        """Compile the layers before the first pass of many documents, if that saves time."""
        waiting = self._awake.waiting
        if waiting and is_worth_compiling(self._model, self._settings, is_bulk=waiting > self._rows):
            self._awake.compile()

    @property
    def _awake(self) -> Decoder:
        self.wake()
        assert self._decoder is not None
        return self._decoder

    def _extraction(self, row: Row) -> Extraction:
        status = row.status or Status.STOPPED
        try:
            written = Written(self._encoder.decode(row.ids), status, row.ids, row.logprobs)
            extraction = read_answer(row.document, written, self._encoder)
        except Exception as error:  # only this answer cannot be read
            return failed(row.document, error)
        if not row.failure:
            return extraction
        return replace(extraction, problems=(*extraction.problems, Problem(row.failure_kind, row.failure)))

    def _forward(self) -> Forward:
        window = self._model.config.max_position_embeddings
        longest = min(window, (self._encoder.max_tokens or window) + self._rules.limit)
        shape = Shape(self._rows, longest, TOKENS[self._kind])
        few = self._rules.on_choices and self._rules.constraint is not None and self._kind == "cpu"
        return Forward(self._model, shape, states=few)
