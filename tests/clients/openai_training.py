"""The official Python client trains: `openai_training.py http://127.0.0.1:8080 KEY`.

A file is uploaded, a dense model, a sparse model and a bridge are trained on it with tiny recipes, their events are
followed to the end, and each result answers at once, the bridge's steered, until it is deleted.
"""

import io
import json
import sys
import time

import openai

base, key = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0)

TRANSFORMER = {
    "n_layers": 4, "d_model": 32, "n_heads": 2, "d_head": 16, "d_mlp": 64, "vocab_size": 2048, "context_length": 64,
    "norm": "rms", "bias": True, "activation": "gelu", "positions": "added",
}
COMMON = {
    "batches": {"steps": 6, "sequences": 2, "length": 32, "seed": 1},
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1},
    "watch": {"checkpoint_every": 2, "evaluate_every": 3, "evaluation_sequences": 1},
}
SPARSITY = {"kept_fraction": 0.2}
METHODS = {
    "dense": {"model": TRANSFORMER, **COMMON},
    "sparse": {"model": TRANSFORMER, "sparsity": SPARSITY, **COMMON},
    "bridge": {
        "sparse": TRANSFORMER, "sparsity": SPARSITY, "bridge_learning_rate": 1e-3,
        "terms": {
            "cross_entropy": 1, "distillation": 1, "encoder": 1, "decoder": 1, "dense_to_sparse": 1,
            "sparse_to_dense": 1,
        },
        **COMMON,
    },
}


def upload():
    lines = [json.dumps({"text": f"def f{number}(x):\n    return x + {number}\n" * 20}) for number in range(20)]
    text = "\n".join(lines).encode()
    file = client.files.create(file=("code.jsonl", io.BytesIO(text)), purpose="fine-tune")
    assert file.bytes == len(text) and file.status == "processed"
    assert client.files.content(file.id).read() == text
    assert file.id in [found.id for found in client.files.list()]
    return file


def train(kind, file):
    suffix = f"made-{kind}"
    job = client.fine_tuning.jobs.create(
        model="tinypython", training_file=file.id, suffix=suffix, metadata={"kind": kind},
        method={"type": kind, kind: {"hyperparameters": METHODS[kind]}},
    )
    assert job.status == "queued" and job.training_file == file.id
    begun = time.time()
    while job.status in ("queued", "running"):
        assert time.time() - begun < 300, job
        time.sleep(0.2)
        job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model == suffix and job.trained_tokens == 6 * 2 * 32
    assert set(job.evaluation["sources"]) == {"real"} and job.evaluation["parameters"] > 0
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=4))
    steps = [event.message for event in reversed(events) if event.message.startswith("step ")]
    assert steps == [f"step {number}" for number in range(1, 7)], steps
    assert all("loss" in event.data for event in events if event.message.startswith("step "))
    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert [checkpoint.step_number for checkpoint in checkpoints] == [6, 4, 2]
    assert job.id in [found.id for found in client.fine_tuning.jobs.list(limit=2)]
    served = lambda: suffix in [model.id for model in client.models.list()]
    while not served():
        assert time.time() - begun < 300, "the result is not served"
        time.sleep(0.2)
    return suffix


def refusals(file):
    wrong = {**METHODS["dense"], "batches": {**COMMON["batches"], "length": 1000}}
    for fields, param in (
        ({"method": {"type": "dense", "dense": {"hyperparameters": wrong}}},
         "method.dense.hyperparameters.batches.length"),
        ({"training_file": "file-nothing"}, "training_file"),
        ({"suffix": "tinypython"}, "suffix"),
    ):
        body = {
            "model": "tinypython", "training_file": file.id,
            "method": {"type": "dense", "dense": {"hyperparameters": METHODS["dense"]}}, **fields,
        }
        try:
            client.fine_tuning.jobs.create(**body)
        except openai.BadRequestError as raised:
            assert raised.param == param, raised
        else:
            raise AssertionError(f"{fields} was taken")
    try:
        client.files.create(file=("bad.jsonl", io.BytesIO(b'{"text": "x"}\n{"txt": 1}\n')), purpose="fine-tune")
    except openai.BadRequestError as raised:
        assert "line 2" in raised.message, raised
    else:
        raise AssertionError("a broken file was taken")


file = upload()
print("files: ok")
refusals(file)
print("refusals: ok")
for kind in METHODS:
    model = train(kind, file)
    fields = {"model": model, "prompt": "x = ", "max_tokens": 4}
    if kind == "bridge":
        edit = {"feature": {"node": "1.resid_mid", "channel": 3}, "op": "add", "value": 2}
        fields["extra_body"] = {"steer": {"edits": [edit], "variants": ["steered", "baseline"], "return": ["receipt"]}}
    choices = client.completions.create(**fields).choices
    if kind == "bridge":
        assert choices[0].receipt["bridge"] == model and choices[0].receipt["edits"][0]["tokens_touched"] > 0
    assert client.models.delete(model).deleted
    try:
        client.completions.create(model=model, prompt="x = ", max_tokens=1)
    except openai.NotFoundError:
        pass
    else:
        raise AssertionError(f"{model} was deleted and answers")
    print(f"{kind}: ok")
assert client.files.delete(file.id).deleted
