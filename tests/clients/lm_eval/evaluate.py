"""Scores by lm-evaluation-harness of a model, of a preset of it, and of the same steering sent in every body:
`evaluate.py http://127.0.0.1:8080 DIRECTORY`, with a key that may make presets in OPENAI_API_KEY. The directory has a
folder `tokenizer`; what the harness writes goes there too.

The model and the preset are scored by the harness' own command, which is told nothing but a model's name. It has no way
to put a field of ours into a body, so the third is scored by its library, with a client that adds `steer` and is
otherwise its own.
"""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import lm_eval
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager

base, directory = sys.argv[1], Path(sys.argv[2])
TASKS = ["quotes_closed", "quotes_written"]
HERE = Path(__file__).parent
MODEL = "tinypython"
PRESET = "single_quotes"
STEER = {"edits": [{"feature": "quote_type", "op": "set", "value": 8, "unit": "std"}]}
ARGUMENTS = {
    "base_url": f"{base}/v1/completions",
    "tokenizer_backend": "huggingface",
    "tokenizer": str(directory / "tokenizer"),
    # The model's context.
    "max_length": 256,
    "num_concurrent": 4,
}


def send(method, path, body=None):
    headers = {"authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "content-type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(base + path, data, headers, method=method)) as answer:
        return json.load(answer)


class SteeredInTheBody(LocalCompletionsAPI):
    def _create_payload(self, *arguments, **fields):
        return {**super()._create_payload(*arguments, **fields), "steer": STEER}


def by_command(model):
    """The results of the harness' command."""
    out = directory / "results" / model
    arguments = ",".join(f"{name}={value}" for name, value in {"model": model, **ARGUMENTS}.items())
    command = [Path(sys.executable).parent / "lm_eval", "--model", "local-completions", "--model_args", arguments]
    command += ["--tasks", ",".join(TASKS), "--include_path", HERE, "--output_path", out, "--log_samples"]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=sys.stderr)
    (results,) = out.rglob("results_*.json")
    found = {}
    for task in TASKS:
        (samples,) = out.rglob(f"samples_{task}_*.jsonl")
        found[task] = [json.loads(line) for line in samples.read_text().splitlines()]
    return json.loads(results.read_text())["results"], found


def in_body():
    """The same of the harness' library, with the steering in every body."""
    model = SteeredInTheBody(model=MODEL, **ARGUMENTS)
    manager = TaskManager(include_path=str(HERE))
    found = lm_eval.simple_evaluate(model, tasks=TASKS, task_manager=manager, log_samples=True)
    return found["results"], found["samples"]


def score(results, task):
    metric = {"quotes_closed": "acc,none", "quotes_written": "exact_match,none"}[task]
    return results[task][metric]


def written(value):
    """Every number in the digits that it is written with, as the command's files have it."""
    return [written(part) for part in value] if isinstance(value, (list, tuple)) else str(value)


def answers(samples):
    """By document, what the harness was answered: log-likelihoods, or texts."""
    by_document = {sample["doc_id"]: written(sample["resps"]) for sample in samples}
    return [by_document[document] for document in sorted(by_document)]


made = send("POST", "/v1/presets", {"id": PRESET, "model": MODEL, "steer": STEER})
plain, plain_samples = by_command(MODEL)
preset, preset_samples = by_command(made["name"])
body, body_samples = in_body()
for task in TASKS:
    of = [answers(samples[task]) for samples in (plain_samples, preset_samples, body_samples)]
    print(f"{task}: {score(plain, task):.4f} {MODEL}, {score(preset, task):.4f} {made['name']}, "
          f"{score(body, task):.4f} steered in the body; {len(of[0])} documents")
    assert len(of[0]) == len((HERE / "quotes.jsonl").read_text().splitlines())
    assert score(preset, task) != score(plain, task), "the preset's score is the model's"
    # Every log-likelihood to its last digit, every text to its last character.
    assert of[1] == of[2], "the preset does not say what the same steering in the body does"
    assert of[0] != of[1]
send("DELETE", f"/v1/presets/{made['name']}")
print("the preset's answers are those of the same steering in the body")
