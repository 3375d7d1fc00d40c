"""A served GGUF model against llama.cpp on the same file, with the same threads, in turns.

    python3 -m venv peers && peers/bin/pip install xllamacpp
    causeway convert FILE.gguf smollm2
    RAYON_NUM_THREADS=1 taskset -c 0 causeway serve --model smollm2=smollm2 &
    taskset -c 0 peers/bin/python benches/peers/llama_cpp.py FILE.gguf smollm2 1 [http://127.0.0.1:8080]

`xllamacpp` is llama.cpp with Python around it. The last numbers are the threads of both and the server's address. Each line
is the median of the rounds, in tokens a second, and the median of the rounds' ratios, ours over llama.cpp's: decoding 128
tokens of one stream, reading a prompt of 512 tokens, and 64 tokens of each of eight streams at once. Neither side may
answer from a prompt it has seen before, so that every prompt begins differently.
"""

import json
import statistics
import sys
import threading
import time
import urllib.request

import xllamacpp

ROUNDS = 5
file, model, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
address = sys.argv[4] if len(sys.argv) > 4 else "http://127.0.0.1:8080"

parameters = xllamacpp.CommonParams()
parameters.model.path = file
parameters.n_ctx = 8 * 1024
parameters.n_parallel = 8
parameters.cpuparams.n_threads = threads
parameters.cpuparams_batch.n_threads = threads
llama_cpp = xllamacpp.Server(parameters)


def ours(prompt, tokens):
    # The end of a text is forbidden, so that every completion has all of its tokens.
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logit_bias": {"0": -100, "2": -100}}
    request = urllib.request.Request(
        address + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    answer = json.load(urllib.request.urlopen(request))
    assert answer["usage"]["completion_tokens"] == tokens, answer["usage"]


def theirs(prompt, tokens):
    answer = llama_cpp.handle_completions({
        "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False,
    })
    assert answer["usage"]["completion_tokens"] == tokens, answer["usage"]


def prompt_of(length, seed):
    return [100 + (seed * 7919 + at * 104729) % 40000 for at in range(length)]


def seconds(work):
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def decode(side, seed):
    return 128 / seconds(lambda: side(prompt_of(4, seed), 128))


def prefill(side, seed):
    return 512 / seconds(lambda: side(prompt_of(512, seed), 1))


def streams(side, seed):
    def all_of_them():
        workers = [threading.Thread(target=side, args=(prompt_of(4, 100 * seed + n), 64)) for n in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return 8 * 64 / seconds(all_of_them)


seed = int(time.time())
for name, measure in [("decode", decode), ("prefill of 512", prefill), ("8 streams", streams)]:
    pairs = []
    for turn in range(ROUNDS + 1):
        seed += 1
        pair = (measure(ours, seed), measure(theirs, seed))
        # The first warms both up.
        pairs += [pair] if turn > 0 else []
    ratio = statistics.median(one / other for one, other in pairs)
    one, other = (statistics.median(side) for side in zip(*pairs))
    print(f"{name}: {one:.1f} against {other:.1f} tokens a second, ratio {ratio:.2f}", flush=True)
