"""A table of token embeddings that stays in the host's memory, of which a GPU reads the rows that it needs.

A pack needs a few thousand of 100,000 rows. They are read over the bus from memory that is pinned, which takes a
millisecond; the table would take 1 GiB of the GPU, with Phi-4's shape.
"""

from __future__ import annotations

from torch import Tensor, nn

from spantune.models.architecture import causal_lm, own_output_weights
from spantune.models.interfaces import CausalLM


class ParkedEmbedding(nn.Module):
    """Frozen token embeddings in the host's memory; it replaces `embedding`, which may be on any device."""

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        table = embedding.weight.detach().cpu()
        self._table = table.pin_memory() if embedding.weight.is_cuda else table

    @property
    def weight(self) -> Tensor:
        """The table [tokens, size], on the CPU."""
        return self._table

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings [..., size] of `ids` [...], on the device of these."""
        return token_rows(self._table, ids)


def park_embedding(model: CausalLM) -> bool:
    """Leave the frozen token embeddings of a model in the host's memory; whether it was done.

    It is not where the output layer shares them, they are computed in another way than looked up, or the host cannot
    pin the memory.
    """
    base = causal_lm(model)
    table = base.get_input_embeddings()
    if type(table) is not nn.Embedding or table.weight.requires_grad or not own_output_weights(model):
        return False
    try:
        parked = ParkedEmbedding(table)
    except RuntimeError:  # the host has no memory that can be pinned
        return False
    base.set_input_embeddings(parked)
    return True


def token_rows(table: Tensor, ids: Tensor) -> Tensor:
    """Return the rows [..., size] of `ids` [...] in a table [tokens, size], on the device of `ids`.

    A table on the CPU whose rows a GPU asks for is pinned.
    """
    if table.device == ids.device:
        return table[ids]
    from spantune.models.kernels.parked_triton import gathered

    return gathered(table, ids)
