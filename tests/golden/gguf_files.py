"""Writes a tiny random Llama as GGUF files, with what `transformers` makes of their weights and `tokenizers` of their texts.

    python3 -m venv venv && venv/bin/pip install torch transformers safetensors gguf tokenizers numpy
    venv/bin/python tests/golden/gguf_files.py tests/golden/gguf

`TYPE.gguf` holds the matrices in that type and a byte-level BPE whose digits are pieces of their own (`pre = smollm`),
`TYPE.safetensors` the `ids` of a prompt and the `logits` of the weights as they are after quantisation,
`texts.json` texts and their ids.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TYPES = {
    "F16": gguf.GGMLQuantizationType.F16,
    "BF16": gguf.GGMLQuantizationType.BF16,
    "Q4_0": gguf.GGMLQuantizationType.Q4_0,
    "Q4_1": gguf.GGMLQuantizationType.Q4_1,
    "Q5_0": gguf.GGMLQuantizationType.Q5_0,
    "Q5_1": gguf.GGMLQuantizationType.Q5_1,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
}
HEADS, KV_HEADS, WIDTH, LAYERS = 4, 2, 32, 2
TEXTS = [
    "hello world",
    "In 2026 there were 1234567 of them, 3.14 each.",
    "tabs\tand\r\nlines\n\n  indented",
    "naïve café — “quotes” … ١٢٣ ½ ²",
    "emoji 👩‍👩‍👧 and e\u0301",
    "it's we'll I'd THEY'RE",
    "<|im_start|>user\nhi<|im_end|>",
    "",
    "   ",
]


def tokenizer():
    """The 256 bytes, a few merges, and two control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("o", "r"), ("Ġ", "t"), ("1", "2"), ("i", "n")]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, *("".join(merge) for merge in merges)]
    model = models.BPE({token: index for index, token in enumerate(tokens)}, merges)
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(tokens[:3])
    return made, tokens, merges


def permuted(weight, heads):
    """The rows of each head as llama.cpp wants them: neighbours are rotated together."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def restored(weight, heads):
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def main():
    root = Path(sys.argv[1])
    made, tokens, merges = tokenizer()
    texts = [{"text": text, "ids": made.encode(text, add_special_tokens=False).ids} for text in TEXTS]
    (root / "texts.json").write_text(json.dumps(texts, ensure_ascii=True, indent=1))
    config = transformers.LlamaConfig(
        vocab_size=len(tokens), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=64, rms_norm_eps=1e-5,
        rope_parameters=dict(rope_type="default", rope_theta=5000.0), tie_word_embeddings=True,
    )
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for layer in range(LAYERS):
        for theirs, ours in {
            "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
            "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
            "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
        }.items():
            names[f"model.layers.{layer}.{theirs}.weight"] = f"blk.{layer}.{ours}.weight"
    for name, kind in TYPES.items():
        torch.manual_seed(11)
        config._attn_implementation = "eager"
        model = transformers.LlamaForCausalLM(config).float().eval()
        writer = gguf.GGUFWriter(root / f"{name}.gguf", "llama")
        writer.add_context_length(64)
        writer.add_embedding_length(WIDTH)
        writer.add_block_count(LAYERS)
        writer.add_feed_forward_length(64)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_rope_freq_base(5000.0)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
        writer.add_token_merges([" ".join(merge) for merge in merges])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
        with torch.no_grad():
            for theirs, parameter in model.named_parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0.0, 1.2 / parameter.shape[1] ** 0.5)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
                values = parameter.numpy().astype(np.float32)
                heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(theirs.split(".")[-2])
                values = permuted(values, heads) if heads else values
                if parameter.dim() == 1:
                    writer.add_tensor(names[theirs], values)
                    continue
                packed = gguf.quants.quantize(values, kind)
                writer.add_tensor(names[theirs], packed, raw_dtype=kind)
                back = gguf.quants.dequantize(packed, kind).reshape(values.shape)
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(restored(back, heads) if heads else back)))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            ids = torch.randint(3, len(tokens), (1, 20))
            save_file({"ids": ids[0].int(), "logits": model(ids).logits[0].contiguous()}, root / f"{name}.safetensors")


main()
