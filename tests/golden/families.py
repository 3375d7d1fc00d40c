"""Writes a tiny random checkpoint of every dense family with what `transformers` makes of it, in float32.

    python3 -m venv venv && venv/bin/pip install torch transformers safetensors
    venv/bin/python tests/golden/families.py tests/golden/families

Each folder holds a checkpoint as `save_pretrained` writes it and `expected.safetensors`: `ids [tokens]`, `logits
[tokens, vocabulary]`, `stream.N [tokens, width]` before layer N. Prompts are longer than the sliding windows.
"""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

TOKENS = 41
SMALL = dict(
    vocab_size=48,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
LLAMA = dict(SMALL, intermediate_size=24, num_key_value_heads=2)


def variants():
    t = transformers
    yield "llama", t.LlamaConfig(**LLAMA)
    yield "llama-biases", t.LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    rope = lambda **fields: dict(rope_theta=10000.0, **fields)
    yield "llama-linear", t.LlamaConfig(**LLAMA, rope_parameters=rope(rope_type="linear", factor=4.0))
    llama3 = rope(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
    )
    yield "llama-llama3", t.LlamaConfig(**LLAMA, rope_parameters=llama3)
    yarn = rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
    yield "llama-yarn", t.LlamaConfig(**LLAMA, rope_parameters=yarn)
    yield "mistral", t.MistralConfig(**LLAMA, sliding_window=9, head_dim=8)
    yield "qwen2", t.Qwen2Config(**LLAMA)
    yield "qwen2-window", t.Qwen2Config(**LLAMA, use_sliding_window=True, sliding_window=7, max_window_layers=1)
    yield "qwen3", t.Qwen3Config(**LLAMA, head_dim=8)
    gemma = dict(LLAMA, head_dim=8, sliding_window=5, query_pre_attn_scalar=12)
    yield "gemma2", t.Gemma2Config(**gemma, attn_logit_softcapping=3.0, final_logit_softcapping=4.0)
    yield "phi3", t.Phi3Config(**LLAMA, sliding_window=11)
    longrope = rope(
        rope_type="longrope",
        short_factor=[1.0, 1.5],
        long_factor=[2.0, 3.0],
        original_max_position_embeddings=64,
    )
    yield "phi3-longrope", t.Phi3Config(
        **LLAMA, original_max_position_embeddings=64, rope_parameters=longrope, sliding_window=None
    )
    yield "olmo2", t.Olmo2Config(**LLAMA)
    yield "smollm3", t.SmolLM3Config(**dict(LLAMA, num_hidden_layers=4), no_rope_layer_interval=2)
    neox = dict(SMALL, intermediate_size=24, rotary_pct=0.5)
    yield "gpt_neox", t.GPTNeoXConfig(**neox)
    yield "gpt_neox-sequential", t.GPTNeoXConfig(**neox, use_parallel_residual=False)


def main():
    root = Path(sys.argv[1])
    for seed, (name, config) in enumerate(variants()):
        torch.manual_seed(seed)
        config._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0.0, 1.2 / parameter.shape[1] ** 0.5)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
            ids = torch.randint(3, config.vocab_size, (1, TOKENS))
            output = model(ids, output_hidden_states=True, use_cache=False)
        folder = root / name
        if name == "llama":
            model.to(torch.bfloat16).save_pretrained(root / "llama-bfloat16", max_shard_size="8KB")
            rounded = transformers.AutoModelForCausalLM.from_pretrained(root / "llama-bfloat16", dtype=torch.float32)
            rounded.config._attn_implementation = "eager"
            with torch.no_grad():
                write(root / "llama-bfloat16", ids, rounded(ids, output_hidden_states=True, use_cache=False))
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            model.load_state_dict({key: value.float() for key, value in rounded.state_dict().items()})
            with torch.no_grad():
                output = model.eval()(ids, output_hidden_states=True, use_cache=False)
        model.save_pretrained(folder)
        write(folder, ids, output)
        print(name, float(output.logits.abs().max()))


def write(folder, ids, output):
    expected = {"ids": ids[0].int(), "logits": output.logits[0].contiguous()}
    # The last hidden state is behind the final norm; it is not the stream.
    for layer, state in enumerate(output.hidden_states[:-1]):
        expected[f"stream.{layer}"] = state[0].contiguous()
    save_file(expected, folder / "expected.safetensors")
    (folder / "generation_config.json").unlink(missing_ok=True)


main()
