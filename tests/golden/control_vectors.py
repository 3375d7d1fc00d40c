"""Writes a control vector for the tiny random Llama of `tests/golden/families`, and what `transformers` makes of it.

    python3 -m venv venv && venv/bin/pip install torch transformers safetensors gguf
    venv/bin/python tests/golden/control_vectors.py tests/golden/families/llama tests/golden/control_vectors

`vector.gguf` is written by the `gguf` package with the keys and tensors that repeng writes: `direction.N` is added to what
block N puts out, counted from 0, at every token. `expected.safetensors` holds `ids [tokens]`, the `scales`, and for the
n-th of them `logits.n [tokens, vocabulary]` and `greedy.n [tokens]`, which follow the ids.
"""

import sys
from pathlib import Path

import gguf
import torch
import transformers
from safetensors.torch import save_file

TOKENS = 12
GENERATED = 10
SCALES = [1.0, -0.75, 2.5]


class Steered:
    """Adds `scale` times each direction behind its block, as long as it is entered."""

    def __init__(self, model, directions, scale):
        self.hooks = []
        self.model, self.directions, self.scale = model, directions, scale

    def __enter__(self):
        for block, direction in self.directions.items():

            def add(_module, _arguments, output, change=self.scale * direction):
                return output + change if torch.is_tensor(output) else (output[0] + change, *output[1:])

            self.hooks.append(self.model.model.layers[block].register_forward_hook(add))

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


def main():
    checkpoint, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    torch.manual_seed(5)
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    directions = {block: torch.randn(width) for block in range(1, layers)}
    writer = gguf.GGUFWriter(str(folder / "vector.gguf"), "controlvector")
    writer.add_string("controlvector.model_hint", model.config.model_type)
    writer.add_uint32("controlvector.layer_count", len(directions))
    for block, direction in directions.items():
        writer.add_tensor(f"direction.{block}", direction.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ids = torch.randint(3, model.config.vocab_size, (1, TOKENS))
    expected = {"ids": ids[0].int(), "scales": torch.tensor(SCALES)}
    with torch.no_grad():
        plain = model(ids, use_cache=False).logits[0]
        for number, scale in enumerate(SCALES):
            with Steered(model, directions, scale):
                logits = model(ids, use_cache=False).logits[0]
                whole = ids
                for _ in range(GENERATED):
                    following = model(whole, use_cache=False).logits[0, -1]
                    best = following.topk(2).values
                    print(number, "ahead by", float(best[0] - best[1]))
                    whole = torch.cat([whole, following.argmax().view(1, 1)], 1)
            print(number, "moved by", float((logits - plain).abs().max()))
            expected[f"logits.{number}"] = logits.contiguous()
            expected[f"greedy.{number}"] = whole[0, TOKENS:].int().contiguous()
    save_file(expected, folder / "expected.safetensors")


main()
