"""What several tests do with the Steer view."""

from urllib.parse import urlencode
import json

from playwright.sync_api import expect

PROMPT = 'print("hello world'
COUNTERFACTUAL = "print('hello world"
PATCH = {"feature": "quote_type", "op": "patch", "prompt": COUNTERFACTUAL}


def link(view, **values):
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return f"#/{view}?{urlencode(texts)}"


def a_try(**values):
    given = {"model": "tinypython", "prompt": PROMPT, "edits": [PATCH], "max": 8, "stop": "\\n", "go": True}
    return link("steer", **{**given, **values})


def text(page, arm):
    return page.locator(f".column.{arm} .text").get_attribute("data-text")


def done(page):
    """Waits until a try has ended."""
    expect(page.locator(".steer-result [role=status]")).to_contain_text("Done")


def texts(page):
    done(page)
    return {arm: text(page, arm) for arm in ("baseline", "steered", "random")}
