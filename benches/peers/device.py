"""Decoding and AbsTopK of `benches/device` beside PyTorch, eager, on the same device and weights, in one run.

    python3 -m venv peers && peers/bin/pip install torch==2.13.0 numpy safetensors transformers
    cargo bench --no-run --bench device [--features cuda]       # prints where the program is
    peers/bin/python benches/peers/device.py PROGRAM [DEVICE] [GPT2_DIR]

DEVICE is `cuda:0` unless given. Lines: AbsTopK against `torch.topk` with `scatter`; a token of the sparse model against the
forward pass of one token as its released code takes it (dense matrices, AbsTopK at every node); with GPT2_DIR, a GPT-2 of
transformers' own, a token with its cache. Each side is the fastest of seven rounds.
"""

import json
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

PROGRAM = sys.argv[1]
DEVICE = sys.argv[2] if len(sys.argv) > 2 else "cuda:0"
GPT2 = sys.argv[3] if len(sys.argv) > 3 else None


def ours(*arguments):
    told = subprocess.run([PROGRAM, *map(str, arguments)], check=True, capture_output=True, text=True)
    return json.loads(told.stdout.strip().splitlines()[-1]) if told.stdout.strip() else None


def fastest(step, count=64):
    def wait():
        if DEVICE.startswith("cuda"):
            torch.cuda.synchronize()

    for _ in range(8):
        step()
    wait()
    times = []
    for _ in range(7):
        begun = time.perf_counter()
        for _ in range(count):
            step()
        wait()
        times.append((time.perf_counter() - begun) / count)
    return min(times)


def abs_top_k(x):
    k = x.shape[-1] // 4
    index = x.abs().topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(x).scatter(-1, index, x.gather(-1, index))


def line(name, own, theirs):
    print(f"{name:40} ours {1e6 * own:10.1f} us  PyTorch {1e6 * theirs:10.1f} us  ratio {theirs / own:6.2f}", flush=True)


def top_k(rows, width):
    x = torch.randn(rows, width, device=DEVICE)
    own = ours("top_k", DEVICE, rows, width)["fastest"]
    line(f"AbsTopK {rows} x {width}", own, fastest(lambda: abs_top_k(x)))


class Released:
    """One token of the sparse model, all matrices dense."""

    def __init__(self, weights, layers, d_head):
        self.weights = {name: tensor.to(DEVICE) for name, tensor in weights.items()}
        self.layers, self.d_head = layers, d_head

    def linear(self, name, x):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, name, x):
        gain = self.weights[f"{name}.weight"]
        return F.rms_norm(x, gain.shape, gain)

    @torch.no_grad()
    def token(self, ids):
        h = self.weights["transformer.wte.weight"][ids]
        for layer in range(self.layers):
            at = f"transformer.h.{layer}."
            joint = self.linear(at + "attn.c_attn", abs_top_k(self.norm(at + "ln_1", h)))
            heads = [abs_top_k(part).view(len(ids), -1, 1, self.d_head) for part in joint.chunk(3, -1)]
            y = F.scaled_dot_product_attention(*heads).reshape(len(ids), -1)
            h = h + abs_top_k(self.linear(at + "attn.c_proj", y))
            neurons = abs_top_k(F.gelu(self.linear(at + "mlp.c_fc", abs_top_k(self.norm(at + "ln_2", h)))))
            h = h + abs_top_k(self.linear(at + "mlp.c_proj", neurons))
        return self.linear("lm_head", self.norm("transformer.ln_f", h)).cpu()


def sparse():
    with tempfile.TemporaryDirectory() as directory:
        ours("write", directory)
        own = ours("decode", directory, DEVICE, 1)
        released = Released(load_file(f"{directory}/model.safetensors"), 8, 16)
        ids = torch.tensor([13], device=DEVICE)
        line("sparse model, a token", own["fastest"], fastest(lambda: released.token(ids)))
        print(f"    {own['bytes'] / 1e6:.1f} MB of weights a token, {own['bytes_per_second'] / 1e9:.1f} GB/s")


def dense():
    from transformers import AutoModelForCausalLM

    for ours_in, theirs_in in [("float32", torch.float32), ("bfloat16", torch.bfloat16)]:
        model = AutoModelForCausalLM.from_pretrained(GPT2, dtype=theirs_in, attn_implementation="eager").to(DEVICE).eval()
        held = {"cache": None}
        ids = torch.tensor([[13]], device=DEVICE)

        @torch.no_grad()
        def step():
            answer = model(ids, past_key_values=held["cache"], use_cache=True)
            held["cache"] = answer.past_key_values
            return answer.logits[0, -1].float().cpu()

        for rows in (1, 64):
            own = ours("decode", GPT2, DEVICE, rows, ours_in)
            print(f"    {rows} rows: {1e6 * own['fastest']:.1f} us a step, {own['bytes'] / 1e6:.1f} MB of weights, "
                  f"{own['bytes_per_second'] / 1e9:.1f} GB/s")
            if rows == 1:
                line(f"GPT-2 in {ours_in}, a token", own["fastest"], fastest(step, 16))


for rows, width in [(1, 8192), (256, 2048), (256, 8192)]:
    top_k(rows, width)
sparse()
if GPT2:
    dense()
edits = ours("edits", DEVICE)
print(f"{edits['rows']} rows with an edit each of their own: {edits['ratio']:.3f} of unsteered "
      f"({edits['lowest']:.3f} to {edits['highest']:.3f})")
