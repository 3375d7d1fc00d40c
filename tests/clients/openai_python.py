"""The official Python client against a running server: `openai_python.py http://127.0.0.1:8080 KEY`.

Every answer is held against what OpenAI's own service would have answered: the client's models parse it, its
iterators follow it, its exceptions say what was wrong.
"""

import sys

import openai

base, key = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0)
MODEL = "tinypython"


def complete(**fields):
    fields = {"model": MODEL, "prompt": "def area(width, height):\n    return", "max_tokens": 12, "seed": 3, **fields}
    return client.completions.create(**fields)


def expect(error, **fields):
    try:
        complete(**fields)
    except error as raised:
        return raised
    raise AssertionError(f"{fields}: no {error.__name__}")


def models():
    ids = [model.id for model in client.models.list()]
    assert MODEL in ids and f"{MODEL}-sparse" in ids, ids
    assert client.models.retrieve(MODEL).object == "model"


def completions():
    answer = complete(temperature=0)
    assert answer.object == "text_completion" and answer.model == MODEL
    assert answer.system_fingerprint and len(answer.choices) == 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert complete(temperature=0).choices[0].text == answer.choices[0].text
    several = complete(n=4, temperature=1.0)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    again = complete(n=4, temperature=1.0)
    assert [choice.text for choice in several.choices] == [choice.text for choice in again.choices]
    batch = complete(prompt=["x = ", "y = ", "z = "], max_tokens=4)
    assert len(batch.choices) == 3
    assert complete(prompt=[5, 6, 7], max_tokens=2).usage.prompt_tokens == 3


def logprobs_and_stops():
    choice = complete(logprobs=3, temperature=0, echo=True).choices[0]
    lists = choice.logprobs
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.top_logprobs) == len(lists.text_offset)
    assert lists.token_logprobs[0] is None and all(value <= 0 for value in lists.token_logprobs[1:])
    assert "".join(lists.tokens) == choice.text
    text = complete(temperature=0, max_tokens=24).choices[0].text
    stop = text[3:6]
    stopped = complete(temperature=0, max_tokens=24, stop=[stop]).choices[0]
    assert stopped.text == text[: text.index(stop)] and stopped.finish_reason == "stop"


def streams():
    whole = complete(n=2, temperature=0.8, logprobs=1)
    texts, ends, usage = {}, {}, None
    for chunk in complete(n=2, temperature=0.8, logprobs=1, stream=True, stream_options={"include_usage": True}):
        assert chunk.object == "text_completion"
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.finish_reason:
                assert choice.index not in ends
                ends[choice.index] = choice.finish_reason
    for choice in whole.choices:
        assert texts[choice.index] == choice.text and ends[choice.index] == choice.finish_reason
    assert usage.completion_tokens == whole.usage.completion_tokens
    # A client may stop reading.
    stream = complete(max_tokens=64, stream=True)
    next(iter(stream))
    stream.close()


def steering():
    steer = {
        "edits": [{"feature": {"node": "1.resid_mid", "channel": 3}, "op": "add", "value": 2.0}],
        "variants": ["steered", "baseline", "random"],
        "return": ["receipt"],
    }
    answer = complete(temperature=0, extra_body={"steer": steer})
    assert [choice.variant for choice in answer.choices] == ["steered", "baseline", "random"]
    assert answer.choices[1].text == complete(temperature=0).choices[0].text
    edit = answer.choices[0].receipt["edits"][0]
    assert edit["node"] == "1.resid_mid" and edit["tokens_touched"] > 0
    streamed = {}
    for chunk in complete(temperature=0, stream=True, extra_body={"steer": steer}):
        for choice in chunk.choices:
            streamed[choice.index] = streamed.get(choice.index, "") + choice.text
    assert [streamed[choice.index] for choice in answer.choices] == [choice.text for choice in answer.choices]


def chat():
    def say(messages, **fields):
        fields = {"max_completion_tokens": 12, "seed": 3, "temperature": 0.8, **fields}
        return client.chat.completions.create(model="my-chat-model", messages=messages, **fields)

    messages = [
        {"role": "developer", "content": "Answer in Python."},
        {"role": "user", "content": [{"type": "text", "text": "def area(width, height):"}]},
    ]
    answer = say(messages, n=2, logprobs=True, top_logprobs=2)
    assert answer.object == "chat.completion" and len(answer.choices) == 2
    for choice in answer.choices:
        assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length")
        tokens = choice.logprobs.content
        assert all(len(token.top_logprobs) == 2 for token in tokens)
        assert b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace") == choice.message.content
    contents, ends = {}, {}
    for chunk in say(messages, n=2, stream=True, stream_options={"include_usage": True}):
        assert chunk.object == "chat.completion.chunk"
        for choice in chunk.choices:
            assert (choice.index not in contents) == (choice.delta.role == "assistant")
            contents[choice.index] = contents.get(choice.index, "") + (choice.delta.content or "")
            ends[choice.index] = choice.finish_reason or ends.get(choice.index)
    assert contents == {choice.index: choice.message.content for choice in answer.choices}
    assert ends == {choice.index: choice.finish_reason for choice in answer.choices}
    assert chunk.usage.completion_tokens == answer.usage.completion_tokens
    # What was answered can be sent back as it came.
    longer = say([*messages, answer.choices[0].message, {"role": "user", "content": "go on"}])
    assert longer.usage.prompt_tokens > answer.usage.prompt_tokens
    for fields, param in (({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"), ({"n": 0}, "n")):
        try:
            say(messages, **fields)
        except openai.BadRequestError as raised:
            assert raised.param == param, raised
        else:
            raise AssertionError(f"{fields} was taken")


def errors():
    raised = expect(openai.BadRequestError, temperature=9)
    assert raised.param == "temperature" and raised.type == "invalid_request_error"
    assert expect(openai.NotFoundError, model="nothing").code == "model_not_found"
    raised = expect(openai.BadRequestError, extra_body={"steer": {"edits": [{"feature": "nothing", "op": "ablate"}]}})
    assert raised.param == "steer.edits[0].feature", raised.param
    assert raised.request_id
    expect(openai.BadRequestError, stream=True, temperature=9)
    stranger = openai.OpenAI(base_url=f"{base}/v1", api_key="ck-wrong", max_retries=0)
    try:
        stranger.models.list()
    except openai.AuthenticationError as raised:
        assert raised.code == "invalid_api_key"
    else:
        raise AssertionError("a wrong key was let in")


for check in (models, completions, logprobs_and_stops, streams, steering, chat, errors):
    check()
    print(f"{check.__name__}: ok")
