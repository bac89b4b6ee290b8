"""A table of token embeddings that stays in the host's memory; a GPU reads only the rows that it needs.

A pack needs a few thousand of 100,000 rows. To read them over the bus from pinned memory takes a millisecond. On the
GPU the table would take 1 GiB, with Phi-4's shape.
"""

from __future__ import annotations

from torch import Tensor, nn

from spantune.models.architecture import causal_lm, own_output_weights
from spantune.models.interfaces import CausalLM


class ParkedEmbedding(nn.Module):
    """Frozen token embeddings in the host's memory.

    Args:
        embedding: the embeddings that it replaces, on any device. If they are on a GPU, the table is pinned.
    """

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
        """Return the embeddings [..., size] of `ids` [...], on the device of `ids`."""
        return token_rows(self._table, ids)


def park_embedding(model: CausalLM) -> bool:
    """Move the frozen token embeddings of a model to the host's memory.

    Returns:
        Whether it was done. It is not done if the output layer shares the embeddings, if they are trained or are more
        than a plain look-up, or if the host cannot pin the memory.
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

    If the table is on the CPU and `ids` are on a GPU, the table must be in pinned memory.
    """
    if table.device == ids.device:
        return table[ids]
    from spantune.models.kernels.parked_triton import gathered

    return gathered(table, ids)
