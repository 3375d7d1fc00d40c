"""The steps of `benches/training_step` in PyTorch, eager, in float32 and in bfloat16 autocast.

    python3 -m venv peers && peers/bin/pip install torch==2.13.0 numpy
    peers/bin/python benches/peers/training_step.py [THREADS]

The same shapes, AbsTopK at every node, sinks, the magnitude mask after every step, AdamW; distillation from a random
dense model of the shipped pair's shape. It prints the fastest step of five.
"""

import sys
import time

import torch
import torch.nn.functional as F

THREADS = int(sys.argv[1]) if len(sys.argv) > 1 else 1
torch.set_num_threads(THREADS)
VOCABULARY, CONTEXT, SEQUENCES, LAYERS = 2048, 256, 8, 4


def abs_top_k(x):
    k = x.shape[-1] // 4
    index = x.abs().topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(x).scatter(-1, index, x.gather(-1, index))


class Model(torch.nn.Module):
    def __init__(self, d, mlp, sparse):
        super().__init__()
        self.d, self.heads, self.sparse = d, d // 16, sparse
        def matrix(rows, columns):
            return torch.nn.Parameter(torch.randn(rows, columns) * columns**-0.5)

        self.embedding = matrix(VOCABULARY, d)
        self.positions = matrix(CONTEXT, d)
        self.layers = torch.nn.ModuleList()
        for _ in range(LAYERS):
            layer = torch.nn.Module()
            layer.joint, layer.joint_bias = matrix(3 * d, d), torch.nn.Parameter(torch.zeros(3 * d))
            layer.out, layer.out_bias = matrix(d, d), torch.nn.Parameter(torch.zeros(d))
            layer.expand, layer.expand_bias = matrix(mlp, d), torch.nn.Parameter(torch.zeros(mlp))
            layer.project, layer.project_bias = matrix(d, mlp), torch.nn.Parameter(torch.zeros(d))
            layer.norms = torch.nn.Parameter(torch.ones(2, d))
            layer.sinks = torch.nn.Parameter(torch.zeros(self.heads))
            self.layers.append(layer)
        self.norm = torch.nn.Parameter(torch.ones(d))
        self.unembedding = matrix(VOCABULARY, d)

    def forward(self, ids):
        active = abs_top_k if self.sparse else (lambda x: x)
        rows, length = ids.shape
        h = self.embedding[ids] + self.positions[:length]
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        for layer in self.layers:
            x = active(F.rms_norm(h, (self.d,), layer.norms[0]))
            q, k, v = F.linear(x, layer.joint, layer.joint_bias).chunk(3, -1)
            q, k, v = (active(t).view(rows, length, self.heads, 16).transpose(1, 2) for t in (q, k, v))
            scores = (q @ k.transpose(-1, -2) / 4).masked_fill(~mask, float("-inf"))
            sinks = layer.sinks.view(1, -1, 1, 1).expand(rows, -1, length, 1)
            shares = torch.cat([scores, sinks], -1).float().softmax(-1)[..., :-1].to(v.dtype)
            y = (shares @ v).transpose(1, 2).reshape(rows, length, self.d)
            h = h + active(F.linear(y, layer.out, layer.out_bias))
            x = active(F.rms_norm(h, (self.d,), layer.norms[1]))
            x = active(F.gelu(F.linear(x, layer.expand, layer.expand_bias)))
            h = h + active(F.linear(x, layer.project, layer.project_bias))
        return F.linear(F.rms_norm(h, (self.d,), self.norm), self.unembedding)


def fastest(d, mlp, kept, low):
    torch.manual_seed(0)
    teacher, student = Model(96, 384, False), Model(d, mlp, True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    times = []
    for step in range(6):
        ids = torch.randint(0, VOCABULARY, (SEQUENCES, CONTEXT + 1))
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            with torch.no_grad():
                target = teacher(ids[:, :-1]).float().log_softmax(-1)
            logits = student(ids[:, :-1]).float()
        found = logits.log_softmax(-1)
        entropy = F.nll_loss(found.flatten(0, 1), ids[:, 1:].flatten())
        divergence = (target.exp() * (target - found)).sum(-1).mean()
        optimizer.zero_grad(set_to_none=True)
        (entropy + divergence).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for weight in student.parameters():
                if weight.dim() == 2 and weight.shape[0] > 2:
                    keep = int(kept * weight.numel())
                    threshold = weight.abs().flatten().kthvalue(weight.numel() - keep + 1).values
                    weight.mul_(weight.abs() >= threshold)
        if step:
            times.append(time.perf_counter() - begun)
    return min(times)


for name, d, mlp, kept in [
    ("distillation, 1 in 16", 384, 1024, 1 / 16),
    ("distillation, 1 in 64, width 1024", 1024, 2048, 1 / 64),
]:
    for precision, low in [("float32", False), ("bfloat16", True)]:
        taken = fastest(d, mlp, kept, low)
        tokens = SEQUENCES * CONTEXT / taken
        print(f"{name}, {THREADS} thread(s), {precision}: {taken:.3f} s a step, {tokens:.0f} tokens/s", flush=True)
