"""The parts of a transformers model and of its configuration that spantune uses, as types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class ModelConfig(Protocol):
    """The configuration of a causal language model of transformers (`PreTrainedConfig`)."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    use_cache: bool
    _attn_implementation: str
    _name_or_path: str

    def __getattr__(self, name: str) -> Any:
        """Any other value of the architecture's configuration."""

    def get_text_config(self) -> ModelConfig:
        """The configuration of the part for text; the configuration itself if the model has no other part."""


class CausalLM(Protocol):
    """A causal language model of transformers, with or without PEFT adapters (`PreTrainedModel`, `PeftModel`)."""

    config: ModelConfig
    training: bool
    device: torch.device
    name_or_path: str
    generation_config: object

    def __call__(self, **inputs: Any) -> Any:
        """The forward pass; the output has `logits` [batch, tokens, vocabulary]."""

    def __getattr__(self, name: str) -> Any:
        """Any other attribute of the model's class."""

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of token embeddings."""

    def get_output_embeddings(self) -> nn.Linear:
        """The output layer, which computes the logits."""

    def modules(self) -> Iterator[nn.Module]:
        """Every module, the model itself included."""

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Every module with its dotted name."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter with its dotted name."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Every tensor by its dotted name."""

    def train(self, mode: bool = True) -> CausalLM:
        """Switch to training."""

    def eval(self) -> CausalLM:
        """Switch to inference."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
