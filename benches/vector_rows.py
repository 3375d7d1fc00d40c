"""What it costs that every row of a batch is steered by a vector of its own.

    causeway convert SmolLM2-135M-Instruct.Q4_1.gguf smollm2
    CAUSEWAY_ENGINE__SEQUENCES=256 causeway serve --no-shipped-pair --model smollm2=smollm2 &
    python3 benches/vector_rows.py smollm2 [http://127.0.0.1:8080] [ROWS [SITE]]

256 requests are sent at once, each with a prompt of its own and 32 tokens to generate, in turns: without `steer`, and each with
another random vector that is added to the residual stream at every token, a tenth of the stream's norm. Each line is a round:
tokens a second of both, and their ratio; the last is the median of the ratios, the first round being left out. The server
decodes as many rows together as `engine.sequences` says, 128 unless it is told otherwise.
"""

import http.client
import json
import random
import statistics
import sys
import threading
import time
import urllib.parse

ROUNDS = 7
TOKENS = 32
SHARE = 0.1
WORDS = "river stone cloud lamp paper garden winter engine music letter bridge window ocean silver story market".split()


def main():
    model = sys.argv[1]
    server = urllib.parse.urlsplit(sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8080")
    rows = int(sys.argv[3]) if len(sys.argv) > 3 else 256
    site = sys.argv[4] if len(sys.argv) > 4 else "14.resid_in"
    width = channels(server, model)
    draw = random.Random(0)
    ratios = []
    for turn in range(ROUNDS):
        # Nothing of a prompt that was answered before may be taken up.
        prompts = [" ".join(draw.choices(WORDS, k=8)) + f" {turn} {row}" for row in range(2 * rows)]
        plain = [{"prompt": prompt} for prompt in prompts[:rows]]
        steered = [{"prompt": prompt, "steer": steer(draw, site, width)} for prompt in prompts[rows:]]
        order = [plain, steered] if turn % 2 else [steered, plain]
        rates = {id(bodies): rate(server, model, bodies) for bodies in order}
        ratio = rates[id(steered)] / rates[id(plain)]
        ratios += [ratio] if turn else []
        print(f"{rates[id(plain)]:.0f} tokens a second unsteered, {rates[id(steered)]:.0f} with {rows} vectors, {ratio:.3f}", flush=True)
    print(f"{rows} rows with a vector each keep {statistics.median(ratios):.3f} of the unsteered throughput, the median of {len(ratios)}")


def steer(draw, site, width):
    vector = [round(draw.gauss(0, 1), 4) for _ in range(width)]
    return {"edits": [{"feature": {"site": site, "vector": vector}, "op": "add", "value": SHARE, "unit": "residual"}]}


def channels(server, model):
    connection = http.client.HTTPConnection(server.netloc)
    connection.request("GET", f"/v1/models/{model}")
    answer = json.load(connection.getresponse())
    return answer["d_model"]


def rate(server, model, bodies):
    """Tokens a second of requests that are sent together."""
    together, failures = threading.Barrier(len(bodies) + 1), []

    def ask(body):
        # The end of a text is forbidden, so that every row is there until the last step.
        fixed = {"model": model, "max_tokens": TOKENS, "temperature": 0, "logit_bias": {"0": -100, "2": -100}}
        text = json.dumps(body | fixed)
        connection = http.client.HTTPConnection(server.netloc)
        connection.connect()
        together.wait()
        try:
            connection.request("POST", "/v1/completions", text, {"content-type": "application/json"})
            response = connection.getresponse()
            answer = json.load(response)
            if response.status != 200 or answer["usage"]["completion_tokens"] != TOKENS:
                failures.append(answer)
        except Exception as error:
            failures.append(error)
        connection.close()

    threads = [threading.Thread(target=ask, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    together.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    taken = time.perf_counter() - begun
    if failures:
        sys.exit(f"{len(failures)} requests failed, one with {failures[0]}")
    return len(bodies) * TOKENS / taken


main()
