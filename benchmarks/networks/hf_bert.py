"""BERT of the transformers package, small, with random weights: a mask, a pooled output, an output
class of its own."""

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel


def make_model() -> nn.Module:
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    }
    return BertModel(BertConfig(vocab_size=200, max_position_embeddings=32, **sizes))


example_inputs = (torch.randint(0, 200, (1, 16)), torch.ones(1, 16, dtype=torch.int64))


def forward(model: nn.Module, tokens: Tensor, mask: Tensor) -> object:
    found = model(input_ids=tokens, attention_mask=mask)
    return {"hidden": found.last_hidden_state, "pooled": found.pooler_output}
