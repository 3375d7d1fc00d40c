"""The server's refusals stand at the field or the column that they are about, in its own words; texts are never markup."""

import json
import re

import pytest
from playwright.sync_api import expect

from conftest import KEY, READER_KEY
from steering import PATCH, PROMPT, a_try, done, link

MARKUP = "<img src=x onerror=\"window.hacked = 1\"><script>window.hacked = 1</script>"


def field(page, label):
    return page.locator(".field").filter(has=page.get_by_label(label, exact=True))


def test_a_wrong_field_is_told_at_the_field(opened):
    page = opened(a_try(edits=[{**PATCH, "feature": "quote_typ"}]))
    problem = field(page, "Feature").locator(".problem")
    expect(problem).to_contain_text("steer.edits[0].feature")
    expect(problem).to_contain_text("quote_type")
    expect(page.get_by_label("Feature", exact=True)).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Feature", exact=True).fill("quote_type")
    page.get_by_label("Strength, as a number").fill("99")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(field(page, "Strength").locator(".problem")).to_contain_text("10")
    page.get_by_label("Strength, as a number").fill("1")
    page.get_by_label("Counterfactual prompt").fill("print('hello")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(field(page, "Counterfactual prompt").locator(".problem")).to_contain_text("steer.edits[0].to")
    page.get_by_label("Align the two prompts").check()
    page.get_by_role("button", name="Run", exact=True).click()
    done(page)
    expect(page.locator(".problem")).to_have_count(0)


def test_a_key_is_asked_for_and_kept_nowhere(opened):
    page = opened(a_try(), key=None)
    asked = page.locator(".key-form")
    expect(asked).to_contain_text("an API key is needed")
    page.get_by_label("API key").fill("ck-wrong")
    page.get_by_role("button", name="Use it").click()
    expect(asked).to_contain_text("the API key is not known")
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Use it").click()
    done(page)
    kept = page.evaluate("JSON.stringify([Object.entries(localStorage), Object.entries(sessionStorage), document.cookie])")
    assert KEY not in kept and KEY not in page.url and KEY not in page.content()
    page.reload()
    expect(asked).to_contain_text("an API key is needed")


def test_what_a_key_may_not_do_is_not_offered(opened):
    page = opened("#/models", key=READER_KEY)
    expect(page.locator("main")).to_contain_text("keys of the role admin")
    expect(page.get_by_role("heading", name="Library")).to_have_count(0)
    page.get_by_role("link", name="Jobs").click()
    expect(page.locator("main")).to_contain_text("keys of the role train")
    expect(page.locator("form[aria-label='New job']")).to_have_count(0)
    page = opened("#/models")
    expect(page.get_by_role("heading", name="Library")).to_be_visible()


def test_a_busy_server_is_tried_again(opened):
    tries = []

    def answer(route):
        tries.append(route)
        if len(tries) > 1:
            return route.continue_()
        error = {"message": "the server has as many requests as it can carry", "type": "server_error", "param": None, "code": "overloaded"}
        return route.fulfill(status=503, headers={"retry-after": "5"}, content_type="application/json", body=json.dumps({"error": error}))

    page = opened(a_try(), routes=[("**/v1/completions", answer)])
    problem = page.locator(".steer-form > .problem")
    expect(problem).to_contain_text("as many requests as it can carry")
    expect(problem).to_contain_text("5 s")
    problem.get_by_role("button", name="Try again").click()
    done(page)
    assert len(tries) == 2


@pytest.mark.parametrize("end, words", [
    ("", "the connection broke before the answer's end"),
    ('data: {"error": {"message": "the completion took longer than the server lets one take", "type": "server_error", "param": null, "code": "deadline_exceeded"}}\n\n', "longer than the server lets one take"),
])
def test_a_stream_that_breaks_is_told_in_the_columns_that_are_not_done(opened, end, words):
    def event(index, variant, text, finish):
        piece = {"text": text, "index": index, "variant": variant, "finish_reason": finish,
                 "logprobs": {"tokens": [text], "token_logprobs": [-0.1], "top_logprobs": [{text: -0.1}], "text_offset": [0]}}
        return f"data: {json.dumps({'choices': [piece]})}\n\n"

    body = event(0, "baseline", '")', "stop") + event(1, "steered", "')", None) + event(2, "random", '")', None) + end
    page = opened(a_try(), routes=[("**/v1/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))])
    expect(page.locator(".column.steered .problem")).to_contain_text(words)
    expect(page.locator(".column.random .problem")).to_contain_text(words)
    expect(page.locator(".column.baseline .problem")).to_have_count(0)


def test_markup_is_text_wherever_it_comes_from(opened, api):
    feature = {"name": "markup", "description": MARKUP, "node": "0.mlp.act_in", "channels": [{"channel": 20, "weight": 1}],
               "tests": [{"prompt": MARKUP, "counterfactual": MARKUP, "expected": "<b>", "instead": "<i>", "at_least": 0, "at_most_before": 1}]}
    api("POST", "/v1/features", feature)
    try:
        addresses = [
            a_try(prompt=MARKUP, edits=[{"feature": MARKUP, "op": "add"}], stop=MARKUP), a_try(prompt=MARKUP, edits=[]), a_try(model=MARKUP),
            link("features", query="markup"), link("features/markup", text=MARKUP), f"#/features/{MARKUP}", f"#/circuits/{MARKUP}",
            f"#/jobs/{MARKUP}", link("activations", text=MARKUP), link("contrast", pairs=[{"prompt": MARKUP, "counterfactual": MARKUP, "expected": MARKUP, "instead": MARKUP}]),
            link("dose", model=MARKUP, edits=[{"feature": MARKUP, "op": "patch", "prompt": MARKUP}], pairs=[{"prompt": MARKUP, "counterfactual": MARKUP, "expected": "x", "instead": MARKUP}]),
        ]
        for address in addresses:
            page = opened(address)
            page.wait_for_load_state("networkidle")
            assert page.evaluate("window.hacked") is None, address
            assert page.locator("img[src=x], main script").count() == 0, address
            page.context.close()
    finally:
        api("DELETE", "/v1/features/markup")


@pytest.mark.parametrize("address", [
    "#/steer?edits=[{}]", "#/steer?edits=[1,null,{\"feature\":{\"a\":[]},\"prompt\":3,\"at\":{},\"when\":{}}]&max=null&go=1", "#/steer?edits={", "#/%E0%A4%A", "#/nowhere",
    "#/dose?pairs=[3,null,{\"prompt\":{}}]&edits=[{}]&strengths=a", "#/contrast?pairs=[{}]&node=[]", "#/activations?nodes=[{}]&channels=[null]&count=-3&layer=99",
    "#/features?order=x&task=[]", "#/circuits?threshold=-1", "#/jobs?type=x&hyper={\"a\":1}",
])
def test_a_link_that_was_damaged_breaks_nothing(opened, address):
    page = opened(address)
    page.wait_for_load_state("networkidle")
    expect(page.locator("h1").first).to_be_attached()
    expect(page.locator("main")).not_to_contain_text("this view has failed")


def test_file_names_with_markup_are_text(opened):
    page = opened(link("jobs", type="dense"))
    page.get_by_label("Upload text").set_input_files({"name": "<b onclick=x>.txt", "mimeType": "text/plain", "buffer": b"x = 1\n" * 2000})
    menu = page.get_by_label("Training text")
    expect(menu.locator("option", has_text="<b onclick=x>.txt")).to_have_count(1)
    assert page.locator("main b[onclick]").count() == 0
