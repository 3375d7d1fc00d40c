"""A direction of sentiment in a served dense model, from 16 contrast prompts, checked on 32 others.

    causeway convert SmolLM2-135M-Instruct.Q4_1.gguf smollm2 && causeway serve --model smollm2=smollm2 &
    python3 benches/sentiment_direction.py smollm2 [http://127.0.0.1:8080] [SITE ...]

The direction is the difference of means at the last token of eight glad and eight sad reviews. The 32 held-out prompts are
reviews of other things that go on with "Overall it was"; the measure is how much likelier " great" than " terrible" comes
next, in nats, beside ten random directions of the same norm.
"""

import json
import sys
import urllib.request

GLAD = ["I loved every minute of it", "What a wonderful surprise", "It made me so happy", "I could not stop smiling"]
SAD = ["I hated every minute of it", "What a bitter disappointment", "It made me so angry", "I could not stop crying"]
MADE_OF = ["film", "concert"]
HELD_OUT = ["dinner", "journey", "book", "hotel", "class", "match", "party", "visit"]
SITES = ["10.resid_in", "14.resid_in", "18.resid_in", "22.resid_in"]


def reviews(things, sentences, end):
    return [f"Review of the {thing}: {sentence}.{end}" for thing in things for sentence in sentences]


def main():
    model = sys.argv[1]
    server = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8080"
    end = " Overall it was"
    held_out = {"positive": reviews(HELD_OUT[:4], GLAD, end), "negative": reviews(HELD_OUT[4:], SAD, end)}
    body = {
        "model": model,
        "positive": reviews(MADE_OF, GLAD, end),
        "negative": reviews(MADE_OF, SAD, end),
        "held_out": held_out,
        "sites": sys.argv[3:] or SITES,
        "answers": {"positive": " great", "negative": " terrible"},
        "strengths": [-0.4, -0.2, 0.2, 0.4],
    }
    request = urllib.request.Request(
        server + "/v1/features/direction", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        answer = json.load(urllib.request.urlopen(request))
    except urllib.error.HTTPError as error:
        sys.exit(error.read().decode())
    print(f"measure: {answer['measure']}; held out: {len(held_out['positive'])} glad, {len(held_out['negative'])} sad")
    for site in answer.get("data", answer.get("sites", [])):
        print(site["site"], json.dumps(site["separation"]))
        for effect in site["effects"]:
            print("   ", json.dumps(effect))


main()
