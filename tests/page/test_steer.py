"""The Steer view, by mouse and by keyboard, against the API's own answers."""

import json
import os
import re
import subprocess
import sys

import pytest
from playwright.sync_api import expect

from conftest import ADDRESS, KEY
from steering import COUNTERFACTUAL, PATCH, PROMPT, a_try, done, link, text, texts


def answers(api, edits, control="random", **more):
    body = {"model": "tinypython", "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "seed": 1, "stop": "\n",
            "steer": {"edits": edits, "variants": ["baseline", "steered", control]}, **more}
    return {choice["variant"]: choice["text"] for choice in api("POST", "/v1/completions", body)["choices"]}


PATCHED = [{"feature": "quote_type", "op": "patch", "to": {"prompt": COUNTERFACTUAL}}]


def test_the_first_visit_is_one_button_away_from_a_steered_answer(opened, api):
    page = opened()
    expect(page.get_by_role("heading", name="See a feature")).to_be_visible()
    page.get_by_role("button", name="Steer it now").click()
    found = texts(page)
    assert found == answers(api, PATCHED)
    assert found["steered"].startswith("'") and found["baseline"].startswith('"') and found["random"].startswith('"')
    expect(page.locator(".column.steered .differs")).to_have_text(re.compile("'"))
    expect(page.locator(".column.steered .receipt")).to_contain_text("Edited 8 of")
    expect(page.locator(".column.steered .receipt")).to_contain_text("KL")


def test_an_edit_is_typed_and_its_slider_moved(opened, api):
    page = opened("#/steer")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Add an edit").click()
    page.get_by_label("Feature", exact=True).fill("quote_type")
    page.get_by_label("Operation").select_option("set")
    slider = page.get_by_label("Value to set", exact=True)
    slider.focus()
    for _ in range(8):
        slider.press("ArrowRight")
    expect(page.get_by_label("Value to set, as a number")).to_have_value("4")
    page.get_by_label("Value to set, as a number").fill("8")
    page.get_by_text("Settings:").click()
    page.get_by_label("Most tokens").fill("8")
    page.get_by_label("Stop at").fill("\\n")
    page.get_by_label("Control").select_option("random_feature")
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    done(page)
    expected = answers(api, [{"feature": "quote_type", "op": "set", "value": 8, "unit": "std"}], "random_feature")
    assert {arm: text(page, arm) for arm in expected} == expected
    # What was done stands in the list of tries, and goes back to where it was.
    page.get_by_label("Prompt", exact=True).fill("x = ")
    page.get_by_role("button", name="Run", exact=True).click()
    done(page)
    page.locator(".tries button").last.click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(PROMPT)
    assert text(page, "steered") == expected["steered"]


def test_a_clicked_token_is_where_the_edit_acts(opened):
    page = opened(a_try())
    done(page)
    page.locator(".prompt-tokens button").nth(1).click()
    expect(page.locator(".prompt-tokens")).to_contain_text("Edit 1 acts at the marked ones")
    page.get_by_label("generated tokens").uncheck()
    with page.expect_request("**/v1/completions") as sent:
        page.get_by_role("button", name="Run", exact=True).click()
    done(page)
    assert sent.value.post_data_json["steer"]["edits"][0]["at"] == {"prompt": [1], "generation": "none"}
    expect(page.locator(".column.steered .receipt")).to_contain_text("Edited 1 of")


def test_a_link_gives_the_same_texts_in_a_fresh_browser(opened):
    page = opened(a_try(temperature=0.8, seed=7, max=20, stop="", edits=[{**PATCH, "strength": 0.9}]))
    found = texts(page)
    page.get_by_role("button", name="Copy link").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(f"{ADDRESS}/#/steer?")
    assert texts(opened(copied[len(ADDRESS) + 1:])) == found
    assert texts(opened(page.url[len(ADDRESS) + 1:])) == found


def test_what_is_copied_gives_the_same_texts(opened):
    page = opened(a_try())
    found = texts(page)
    page.get_by_text("The same as curl or Python").click()
    page.get_by_role("button", name="Copy as curl").click()
    command = page.evaluate("navigator.clipboard.readText()")
    ran = subprocess.run(["bash", "-c", command], env={**os.environ, "CAUSEWAY_KEY": KEY}, capture_output=True, check=True)
    choices = json.loads(ran.stdout)["choices"]
    assert {choice["variant"]: choice["text"] for choice in choices} == found
    page.get_by_role("button", name="Python", exact=True).click()
    page.get_by_role("button", name="Copy as Python").click()
    program = page.evaluate("navigator.clipboard.readText()")
    compile(program, "copied", "exec")
    assert '"quote_type"' in program and "extra_body" in program


def test_tokens_tell_their_alternatives_by_mouse_and_keyboard(opened):
    page = opened(a_try())
    done(page)
    page.locator(".column.steered .tok").first.hover()
    tip = page.locator("#tip")
    expect(tip).to_contain_text("baseline")
    expect(tip.locator("tbody tr")).not_to_have_count(0)
    assert re.search(r"[+−]\d", tip.inner_text())
    page.mouse.move(2, 2)
    page.locator(".column.steered .text").focus()
    page.keyboard.press("ArrowRight")
    expect(tip).to_contain_text("%")
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()


def test_everything_can_be_done_by_keyboard(opened):
    page = opened()
    def tab_to(locator):
        for _ in range(60):
            if locator.evaluate("element => element === document.activeElement"):
                return
            page.keyboard.press("Tab")
        raise AssertionError("the tab key does not come to it")
    page.locator("body").press("Tab")
    tab_to(page.get_by_role("button", name="Steer it now"))
    page.keyboard.press("Enter")
    done(page)
    tab_to(page.locator(".prompt-tokens button").first)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    expect(page.locator(".prompt-tokens button").nth(1)).to_have_attribute("aria-pressed", "true")
    strength = page.get_by_label("Strength", exact=True)
    tab_to(strength)
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_label("Strength, as a number")).to_have_value("0.95")
    tab_to(page.get_by_role("button", name="Run", exact=True))
    page.keyboard.press("Enter")
    done(page)
    expect(page.locator(".column.steered .receipt")).to_contain_text("Edited")


def test_every_beginning_that_is_offered_changes_the_answer(opened):
    page = opened("#/steer")
    menu = page.get_by_label("Begin with")
    values = [value for value in menu.locator("option").evaluate_all("options => options.map((option) => option.value)") if value]
    assert len(values) >= 10
    for value in values:
        menu.select_option(value)
        done(page)
        found = texts(page)
        assert found["steered"] != found["baseline"], value


def test_an_answer_that_takes_long_can_be_stopped(opened):
    asked = []
    # The server is too fast to be stopped in time: this one never answers.
    page = opened(link("steer", model="tinypython", prompt=PROMPT, edits=[PATCH], max=200, temperature=1, go=True),
                  routes=[("**/v1/completions", lambda route: asked.append(route))])
    stop = page.get_by_role("button", name="Stop")
    expect(stop).to_be_enabled()
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/v1/completions")):
        stop.click()
    expect(stop).to_be_disabled()
    assert len(asked) == 1
    assert page.locator(".column .problem").count() == 0


def test_a_disturbance_is_warned_of(opened):
    page = opened(link("steer", model="tinypython", prompt=PROMPT, max=40, go=True, control="random",
                       edits=[{"feature": "quote_type", "op": "add", "value": 10, "unit": "max", "strength": 10}]))
    done(page)
    expect(page.locator(".warning").first).to_be_visible()


@pytest.mark.parametrize("model", ["tinypython", "tinypython-sparse"])
def test_both_models_of_the_pair_are_steered(opened, model):
    page = opened(a_try(model=model))
    done(page)
    found = page.locator(".column.steered .receipt").inner_text()
    assert ("natively" in found) == (model == "tinypython-sparse")


def test_a_try_is_kept_as_a_preset_and_begun_with(opened, api):
    page = opened(a_try(edits=[{"feature": "quote_type", "op": "set", "value": 8, "unit": "std", "generation": False}]))
    done(page)
    found = text(page, "steered")
    page.get_by_text("Keep it as a preset").click()
    page.get_by_label("Preset's id").fill("No Id")
    page.get_by_role("button", name="Keep it", exact=True).click()
    expect(page.locator(".steer-form details .problem")).to_contain_text("id")
    page.get_by_label("Preset's id").fill("by_the_page")
    page.get_by_role("button", name="Keep it", exact=True).click()
    expect(page.locator(".steer-form")).to_contain_text("Kept as")
    try:
        body = {"model": "tinypython@by_the_page", "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "seed": 1, "stop": "\n"}
        assert api("POST", "/v1/completions", body)["choices"][0]["text"] == found
        page = opened("#/steer")
        page.get_by_label("Prompt", exact=True).fill(PROMPT)
        page.get_by_label("Begin with").select_option(label="preset by_the_page")
        done(page)
        expect(page.get_by_label("Value to set, as a number")).to_have_value("8")
        page.get_by_role("link", name="Models").click()
        page.locator("tr", has_text="by_the_page").get_by_role("button", name="Delete").click()
        expect(page.locator("tr", has_text="by_the_page")).to_have_count(0)
    finally:
        left = [preset["name"] for preset in api("GET", "/v1/presets")["data"]]
        if "tinypython@by_the_page" in left:
            api("DELETE", "/v1/presets/tinypython@by_the_page")
