"""Finds two features of a served SmolLM2 pair by contrast, and measures what they do to prompts of other words and forms.

    cargo run --release -- serve --no-shipped-pair --pair runs/smollm2/bridge/pair
    python3 configs/recipes/smollm2/steer.py [URL]

`limits.examination_seconds` of the server bounds a search; one takes minutes on a CPU. A feature is the group of channels that
`POST /v1/features/contrast` finds at one node. It is patched from a prompt's counterfactual, all channels at once, and the
log-odds of the other answer against the prompt's own are compared with those of the unsteered model. The control writes
random directions, at each token as large as the edits' changes.
"""

import json
import statistics
import sys
import urllib.error
import urllib.request

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
NODES = ["1.resid_in", "1.resid_mid"]
STRENGTHS = [1, 3]
CONTROLS = 3


def both_ways(forms, words, answers):
    """(prompt, counterfactual, own answer, other answer) of every form and pair of words."""
    for form in forms:
        for one, other in words:
            yield form.format(one), form.format(other), answers[0], answers[1]
            yield form.format(other), form.format(one), answers[1], answers[0]


def plurals(*words):
    return [(word, word + "s") for word in words]


FEATURES = {
    "gender": (
        [" he", " she"],
        ["My {} said that"],
        [("brother", "sister"), ("father", "mother"), ("uncle", "aunt"), ("son", "daughter"), ("husband", "wife"), ("king", "queen")],
        ["The {} told me that", "Yesterday the {} said that"],
        [("grandfather", "grandmother"), ("boy", "girl"), ("man", "woman"), ("prince", "princess"), ("actor", "actress")],
    ),
    "number": (
        [" was", " were"],
        ["Yesterday the {} in the city"],
        plurals("dog", "cat", "car", "house", "student", "river"),
        ["Last year the {} near the lake", "At that time the {} of the village"],
        plurals("tree", "book", "bird", "road", "bridge", "teacher", "horse", "ship"),
    ),
}


def post(path, body):
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), {"content-type": "application/json"})
    return json.load(urllib.request.urlopen(request))


def log_probabilities(prompt, answer, edits, seed):
    """Of the answer after the prompt, by arm: the answer is part of what is scored, and nothing is read behind it."""
    steer = {"edits": edits, "variants": ["baseline", "steered", "random"]}
    body = {"model": "smollm2", "prompt": prompt + answer, "max_tokens": 1, "temperature": 0, "seed": seed}
    answered = post("/v1/completions", {**body, "echo": True, "logprobs": 0, "steer": steer})
    found = {}
    for choice in answered["choices"]:
        told = choice["logprobs"]
        place = len(told["tokens"]) - 1 - told["tokens"][::-1].index(answer)
        found[choice["variant"]] = told["token_logprobs"][place]
    return found


def odds(prompt, counterfactual, own, other, group, strength, seed):
    """The log-odds of the other answer, by arm."""
    def edits(answer):
        address = [{"node": group["node"], "channel": channel["channel"]} for channel in group["channels"]]
        to = {"prompt": counterfactual + answer}
        return [{"feature": feature, "op": "patch", "to": to, "strength": strength} for feature in address]

    scored = [log_probabilities(prompt, answer, edits(answer), seed) for answer in (other, own)]
    return {arm: scored[0][arm] - scored[1][arm] for arm in scored[0]}


for name, (answers, forms, words, held_out_forms, held_out_words) in FEATURES.items():
    pairs = [
        {"prompt": prompt, "counterfactual": counterfactual, "expected": other, "instead": own}
        for prompt, counterfactual, own, other in both_ways(forms, words, answers)
    ]
    found = post("/v1/features/contrast", {"pairs": pairs, "nodes": NODES, "max_channels": 16, "limit": 1})
    group = found["data"][0]
    print(f"{name}: {len(group['channels'])} channels of {group['node']}; right unsteered {found['dense_accuracy']:.2f}", flush=True)
    for strength in STRENGTHS:
        steered, random, flips, skipped = [], [], [0, 0], 0
        for case in both_ways(held_out_forms, held_out_words, answers):
            try:
                arms = [odds(*case, group, strength, seed) for seed in range(CONTROLS)]
            except urllib.error.HTTPError as error:
                # Two words of different length in tokens cannot be patched into one another.
                skipped += 1
                error.close()
                continue
            before = arms[0]["baseline"]
            steered.append(arms[0]["steered"] - before)
            random += [arm["random"] - before for arm in arms]
            flips[0] += before < 0 < arms[0]["steered"]
            flips[1] += before < 0 < arms[0]["random"]
        told = [f"{statistics.mean(values):+.2f} (spread {statistics.stdev(values):.2f})" for values in (steered, random)]
        print(
            f"  strength {strength}, {len(steered)} held-out prompts ({skipped} left out): log-odds {told[0]}, random {told[1]};"
            f" answers turned {flips[0]}, random {flips[1]}",
            flush=True,
        )
