"""A decoder of the transformers package in the manner of LLaMA: grouped-query attention, rotary
embedding, RMS norm."""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM


def make_model() -> nn.Module:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 160}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=200, max_position_embeddings=64, use_cache=False, **sizes, **heads)
    )


example_inputs = (torch.randint(0, 200, (1, 16)),)


def forward(model: nn.Module, tokens: Tensor) -> object:
    return model(input_ids=tokens, use_cache=False).logits
