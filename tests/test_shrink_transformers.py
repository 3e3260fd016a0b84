"""Models of Hugging Face lose dead neurons and dead heads, whole."""

from typing import Any

import pytest
import torch

from shrinking import shrunk, why

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")  # of another package

HEADS, SIZE = 3, 4
SIZES = {
    "hidden_size": HEADS * SIZE,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 10,
}
WORDS = torch.randint(9, (2, 7), generator=torch.Generator().manual_seed(0))


def kill(weight, neurons, axis=1):
    with torch.no_grad():
        weight.index_fill_(axis, torch.tensor(neurons), 0.0)


def head(*numbers):
    return [number * SIZE + i for number in numbers for i in range(SIZE)]


def test_bert():
    config = transformers.BertConfig(vocab_size=9, max_position_embeddings=16, **SIZES)
    model = transformers.BertModel(config).eval()
    first, second = model.encoder.layer
    kill(first.attention.output.dense.weight, head(1))
    kill(second.attention.output.dense.weight, head(0, 2))
    for layer in (first, second):
        kill(layer.output.dense.weight, [0, 3, 5])
    slim = shrunk(model, {"input_ids": WORDS, "attention_mask": torch.ones_like(WORDS)})
    for layer, heads in zip(slim.encoder.layer, (2, 1), strict=True):
        own = layer.attention.self
        for part in (own.query, own.key, own.value):
            assert part.weight.shape == (heads * SIZE, 12)
        assert layer.intermediate.dense.out_features == 7


def test_half_a_dead_head_stays_with_a_reason():
    config = transformers.BertConfig(vocab_size=9, max_position_embeddings=16, **SIZES)
    model = transformers.BertModel(config).eval()
    kill(model.encoder.layer[0].attention.output.dense.weight, [0, 1])
    slim = shrunk(model, {"input_ids": WORDS})
    assert slim.encoder.layer[0].attention.self.query.out_features == 12
    assert "2: " in why(slim, "encoder.layer.0.attention.output.dense")


def test_gpt2():
    config = transformers.GPT2Config(
        vocab_size=9, n_positions=16, n_embd=12, n_layer=2, n_head=HEADS, n_inner=10,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2Model(config).eval()
    for block in model.h:
        kill(block.attn.c_proj.weight, head(1), axis=0)
        kill(block.mlp.c_proj.weight, [1, 2], axis=0)
    slim = shrunk(model, {"input_ids": WORDS, "use_cache": False})
    for block in slim.h:
        assert block.attn.c_attn.weight.shape == (12, 3 * 2 * SIZE)
        assert block.mlp.c_fc.weight.shape == (12, 8)


def test_vit():
    config = transformers.ViTConfig(image_size=8, patch_size=4, **SIZES)
    model = transformers.ViTModel(config).eval()
    dead = 0
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and layer.weight.shape == (12, 10):
            kill(layer.weight, [0, 4])
            dead += 2 * (12 + 12 + 1)
        elif name.endswith(("attention.o_proj", "attention.output.dense")):
            kill(layer.weight, head(2))
            dead += SIZE * (4 * 12 + 3)
    slim = shrunk(model, {"pixel_values": torch.randn(2, 3, 8, 8)})
    assert dead == 2 * (50 + 204)
    assert entries(model) - entries(slim) == dead


def test_llama_loses_heads_that_share_keys_together():
    config = transformers.LlamaConfig(
        vocab_size=9, max_position_embeddings=16, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, intermediate_size=10,
    )  # fmt: skip
    model = transformers.LlamaModel(config).eval()
    first, second = model.layers
    kill(first.self_attn.o_proj.weight, head(0, 1))  # those of the first keys
    kill(second.self_attn.o_proj.weight, head(0, 2))  # one of each
    for layer in (first, second):
        kill(layer.mlp.down_proj.weight, [0, 2, 9])
    slim = shrunk(model, {"input_ids": WORDS, "use_cache": False})
    widths = [(a.q_proj.out_features, a.k_proj.out_features) for a in attentions(slim)]
    assert widths == [(8, 4), (16, 8)]
    assert [layer.mlp.gate_proj.out_features for layer in slim.layers] == [7, 7]


def attentions(model: Any) -> list[Any]:
    return [layer.self_attn for layer in model.layers]


def entries(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
