"""Writes a tiny random model of every architecture that is read as a GGUF file, and blocks of every quantised type.

    python3 -m venv venv && venv/bin/pip install torch transformers safetensors gguf numpy
    venv/bin/python tests/golden/gguf_families.py tests/golden/gguf_families

`NAME.gguf` has its tensors by llama.cpp's names and as its converter stores them, `NAME.safetensors` the `ids` of a prompt
and the `logits` that `transformers` makes of them in float32. `types.gguf` has random blocks of each type in a tensor of
its name, `types.safetensors` their values as the `gguf` package dequantises them.
"""

import math
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

TOKENS = 41
SMALL = dict(
    vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
LONGROPE = dict(
    rope_type="longrope", rope_theta=10000.0, short_factor=[1.0, 1.5], long_factor=[2.0, 3.0],
    original_max_position_embeddings=64,
)


def cases():
    t = transformers
    yield "llama", "llama", t.LlamaConfig(**SMALL)
    yield "llama-llama3", "llama", t.LlamaConfig(**SMALL, rope_parameters=LLAMA3, tie_word_embeddings=True)
    yield "llama-biases", "llama", t.LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True)
    yield "qwen2", "qwen2", t.Qwen2Config(**SMALL)
    yield "qwen3", "qwen3", t.Qwen3Config(**SMALL, head_dim=8)
    gemma = dict(head_dim=8, query_pre_attn_scalar=8, sliding_window=5)
    yield "gemma2", "gemma2", t.Gemma2Config(**SMALL, **gemma, attn_logit_softcapping=3.0, final_logit_softcapping=4.0)
    yield "phi3", "phi3", t.Phi3Config(**SMALL, sliding_window=11)
    phi3 = dict(SMALL, original_max_position_embeddings=64)
    yield "phi3-longrope", "phi3", t.Phi3Config(**phi3, rope_parameters=LONGROPE, sliding_window=None)
    yield "olmo2", "olmo2", t.Olmo2Config(**SMALL)
    yield "smollm3", "smollm3", t.SmolLM3Config(**dict(SMALL, num_hidden_layers=4), no_rope_layer_interval=4)


def permuted(values, heads):
    """The rows of each head as llama.cpp wants them: neighbours are rotated together."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def frequency_factors(config, channels):
    """What each pair's frequency is divided by, as converters write it down."""
    scaling, factors = config.rope_parameters, []
    for channel in range(0, channels, 2):
        turns = scaling["original_max_position_embeddings"] / (2 * math.pi * scaling["rope_theta"] ** (channel / channels))
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1.0 / ((1.0 - kept) / scaling["factor"] + kept))
    return np.array(factors, np.float32)


def write(root, name, architecture, config):
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    writer = gguf.GGUFWriter(root / f"{name}.gguf", architecture)
    width, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    head = getattr(config, "head_dim", None) or width // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head)
    if head != width // heads:
        writer.add_key_length(head)
        writer.add_value_length(head)
    if getattr(config, "sliding_window", None) and architecture in ("gemma2", "phi3"):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(["<unk>", "<s>", "</s>"] + [chr(0x61 + index) for index in range(config.vocab_size - 3)])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([2, 3, 3] + [1] * (config.vocab_size - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", frequency_factors(config, head))
    if config.rope_parameters["rope_type"] == "longrope":
        first, whole = config.rope_parameters["original_max_position_embeddings"], config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(first)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(whole / first) / math.log(first)))
        writer.add_tensor("rope_factors_long.weight", np.array(config.rope_parameters["long_factor"], np.float32))
        writer.add_tensor("rope_factors_short.weight", np.array(config.rope_parameters["short_factor"], np.float32))
    kind = next(kind for kind, known in gguf.MODEL_ARCH_NAMES.items() if known == architecture)
    names = gguf.get_tensor_name_map(kind, layers)
    with torch.no_grad():
        for theirs, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, 1.2 / parameter.shape[1] ** 0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            values = parameter.numpy().astype(np.float32)
            if architecture in ("llama", "smollm3"):
                module = theirs.split(".")[-2]
                turned = {"q_proj": heads, "k_proj": config.num_key_value_heads}.get(module)
                values = permuted(values, turned) if turned else values
            if architecture == "gemma2" and theirs.endswith("norm.weight"):
                values = values + 1.0
            writer.add_tensor(names.get_name(theirs, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(values))
        ids = torch.randint(3, config.vocab_size, (1, TOKENS))
        logits = model(ids, use_cache=False).logits[0].contiguous()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file({"ids": ids[0].int(), "logits": logits}, root / f"{name}.safetensors")
    print(name, float(logits.abs().max()))


# Where a block has numbers in half precision; whatever else is in it may be any bytes.
TYPES = {
    "F16": [], "BF16": [], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}


def blocks(root):
    draw = np.random.default_rng(3)
    writer = gguf.GGUFWriter(root / "types.gguf", "llama")
    expected = {}
    for name, halves in TYPES.items():
        kind = gguf.GGMLQuantizationType[name]
        values, size = gguf.GGML_QUANT_SIZES[kind]
        count = 512 // values
        if values == 1:
            stored = gguf.quants.quantize(draw.normal(size=(2, 256)).astype(np.float32), kind)
        else:
            stored = draw.integers(0, 256, (count, size), dtype=np.uint8)
            for at in halves:
                stored[:, at : at + 2] = draw.normal(scale=0.1, size=(count, 1)).astype(np.float16).view(np.uint8)
            stored = stored.reshape(2, -1)
        writer.add_tensor(name, stored, raw_dtype=kind)
        expected[name] = gguf.quants.dequantize(stored, kind).astype(np.float32).reshape(2, 256)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_arrays(expected, root / "types.safetensors")


def main():
    root = Path(sys.argv[1])
    root.mkdir(exist_ok=True)
    for seed, (name, architecture, config) in enumerate(cases()):
        torch.manual_seed(seed)
        write(root, name, architecture, config)
    blocks(root)


main()
