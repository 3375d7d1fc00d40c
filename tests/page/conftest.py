"""A browser, and pages of the server under test that fail a test when the page itself fails.

An error in JavaScript, a word of the browser's about a broken rule of the page's policy, or a request to another host
fails the test that it happened in, whatever the test looked at.
"""

import os
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

ADDRESS = os.environ["CAUSEWAY_ADDRESS"]
KEY = os.environ["CAUSEWAY_KEY"]
READER_KEY = os.environ["CAUSEWAY_READER_KEY"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

expect.set_options(timeout=60_000)


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens an address of the page in a browser of its own, which knows nothing, and gives it a key."""
    contexts, problems = [], []

    def refused(message):
        # Answers that are errors are told here too; the page shows them, which the tests look at.
        return message.type == "error" and "Failed to load resource" not in message.text

    def open_page(address="", key=KEY, routes=(), **options):
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("console", lambda message: refused(message) and problems.append(message.text))
        page.on("request", lambda request: request.url.startswith((ADDRESS, "blob:", "data:"))
                or problems.append(f"a request to {request.url}"))
        for pattern, answer in routes:
            page.route(pattern, answer)
        page.goto(f"{ADDRESS}/{address}")
        if key:
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Use it").click()
            expect(page.locator("main .waiting")).to_have_count(0)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture(scope="session")
def api(browser):
    """The server without the page: `api("POST", "/v1/...", {...})` gives the answer's JSON."""
    context = browser.new_context()

    def ask(method, path, body=None):
        headers = {"authorization": f"Bearer {KEY}"}
        answer = context.request.fetch(ADDRESS + path, method=method, data=body, headers=headers)
        assert answer.ok, answer.text()
        return answer.json()

    yield ask
    context.close()
