"""Every other view used for what it is for, and every view held to the rules of accessibility in both schemes and on a
narrow screen."""

import json
import math
import os
import re

import pytest
from playwright.sync_api import expect

from conftest import ADDRESS
from circuit_record import large_circuit
from steering import COUNTERFACTUAL, PATCH, PROMPT, a_try, done, link

PAIR = {"prompt": PROMPT, "counterfactual": COUNTERFACTUAL, "expected": "')", "instead": '")'}
VIEWS = {
    "first visit": "", "steer": a_try(), "dose": link("dose", model="tinypython", edits=[PATCH], pairs=[PAIR], strengths="0, 1", go=True),
    "features": "#/features", "feature": link("features/quote_type", bridge="tinypython", text=PROMPT), "contrast": "#/contrast",
    "activations": "#/activations", "circuits": "#/circuits", "models": "#/models", "jobs": "#/jobs",
}


def rows(page, label):
    """The numbers of a chart's table."""
    table = page.locator(f"[aria-label*='{label}'][role=region] table")
    texts = table.locator("tbody tr").evaluate_all("rows => rows.map((row) => [...row.cells].map((cell) => cell.textContent))")
    return [[float(re.match(r"[-+.\de]+", cell)[0]) for cell in row] for row in texts]


def settle(page):
    page.wait_for_load_state("networkidle")
    expect(page.locator("main .waiting")).to_have_count(0)


def accessible(page):
    """Holds what is shown, unfolded, to axe's rules. The page's policy lets no script in; axe runs beside it."""
    page.locator("details").evaluate_all("all => all.forEach((one) => (one.open = true))")
    page.evaluate(open(os.environ["AXE"]).read())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    told = [(problem["id"], [node["html"][:160] for node in problem["nodes"][:3]]) for problem in found["violations"]]
    assert told == [], json.dumps(told, indent=1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_no_rule_of_accessibility_is_broken(opened, view, scheme):
    page = opened(VIEWS[view], color_scheme=scheme)
    settle(page)
    if view == "steer":
        done(page)
    accessible(page)


@pytest.mark.parametrize("view", VIEWS)
def test_the_tab_key_comes_to_every_control(opened, view):
    page = opened(VIEWS[view])
    settle(page)
    if view == "steer":
        done(page)
    controls = page.locator("button, a[href], input, select, textarea, summary, [tabindex='0']")
    count = controls.count()
    page.locator("body").press("Tab")
    for _ in range(count + 5):
        page.evaluate("document.activeElement.dataset.reached = 'yes'")
        page.keyboard.press("Tab")
    missed = controls.evaluate_all("""all => all.filter((one) => one.checkVisibility() && !one.disabled && one.tabIndex >= 0 && !one.dataset.reached)
        .map((one) => one.outerHTML.slice(0, 120))""")
    assert count > 10 and missed == []


@pytest.mark.parametrize("view", VIEWS)
def test_a_narrow_screen_shows_everything(opened, view):
    page = opened(VIEWS[view], viewport={"width": 390, "height": 800})
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    cut = page.locator("button, a, input, select, textarea").evaluate_all(
        "all => all.filter((one) => one.offsetWidth > 0 && (one.getBoundingClientRect().left < -1)).map((one) => one.outerHTML.slice(0, 100))")
    assert cut == []


def test_the_colours_follow_the_switch(opened):
    page = opened("#/features", color_scheme="light")
    colour = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = colour()
    page.get_by_label("Colours").select_option("dark")
    assert colour() != light
    page.reload()
    assert colour() != light


def test_the_first_view_is_small(browser):
    """All files of the page; what the server tells it depends on what the server has."""
    context = browser.new_context()
    page = context.new_page()
    session = context.new_cdp_session(page)
    paths, sizes = {}, []
    session.on("Network.requestWillBeSent", lambda event: paths.update({event["requestId"]: event["request"]["url"][len(ADDRESS):]}))
    session.on("Network.loadingFinished", lambda event: paths[event["requestId"]].startswith("/v1/") or sizes.append(event["encodedDataLength"]))
    session.send("Network.enable")
    page.goto(ADDRESS)
    page.wait_for_load_state("networkidle")
    assert len(sizes) > 10 and sum(sizes) < 150_000, sum(sizes)
    context.close()


def test_a_sweep_draws_a_dose_and_a_flat_control(opened):
    page = opened("#/dose")
    expect(page.locator(".pairs tbody tr")).to_have_count(8)
    page.get_by_label("Strengths").fill("0, 0.5, 1")
    page.get_by_role("button", name="Sweep", exact=True).click()
    expect(page.locator(".chart canvas")).to_be_visible()
    table = rows(page, "Probability of the answers")
    steered, control = [row[1] for row in table], [row[3] for row in table]
    assert [row[0] for row in table] == [0, 0.5, 1]
    assert steered[2] > steered[0] + 0.2 and steered[2] > control[2] + 0.2
    assert steered[0] == pytest.approx(control[0], abs=1e-4)
    again = opened(page.url[len(ADDRESS) + 1:])
    expect(again.locator(".chart canvas")).to_be_visible()
    assert rows(again, "Probability of the answers") == table


def test_a_sweep_without_another_prompt_scores_the_same_as_a_completion(opened, api):
    edit = {"feature": "quote_type", "op": "set", "value": 8, "unit": "std"}
    page = opened(link("dose", model="tinypython", edits=[edit], pairs=[{**PAIR, "counterfactual": ""}], strengths="0, 1", go=True))
    expect(page.locator(".chart canvas")).to_be_visible()
    body = {"model": "tinypython", "prompt": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": 5, "steer": {"edits": [edit]}}
    told = api("POST", "/v1/completions", body)["choices"][0]["logprobs"]
    shown = {row[0]: row[1] for row in rows(page, "Probability of the answers")}
    import math
    assert shown[1] == pytest.approx(math.exp(told["top_logprobs"][0].get("')", -99)), rel=0.01, abs=1e-3)


def test_features_are_searched_opened_and_tested(opened):
    page = opened("#/features")
    expect(page.locator(".feature-list li")).to_have_count(22)
    page.get_by_label("Search").fill("with_statement")
    expect(page.locator(".feature-list li")).to_have_count(2)
    expect(page).to_have_url(re.compile("query=with_statement"))
    page.get_by_label("Search").fill("")
    page.get_by_label("Task").select_option("single_double_quote")
    expect(page.locator(".feature-list li")).to_have_count(2)
    page.get_by_role("link", name="quote_type", exact=True).click()
    expect(page.get_by_role("heading", name="quote_type")).to_be_visible()
    page.get_by_role("button", name="Run the tests now").click()
    expect(page.locator("main")).to_contain_text("All passed.")
    page.get_by_label("Text", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Look", exact=True).click()
    expect(page.get_by_label("The text, coloured by activation")).to_contain_text("hello")
    expect(page.locator(".histogram rect")).not_to_have_count(0)
    spans = page.locator(".example .heat-text").first.locator("span")
    values = spans.evaluate_all("all => all.map((one) => Number(one.title.split('  ')[1]))")
    assert max(values) == pytest.approx(2.95, abs=0.01) and sum(value != 0 for value in values) > 3
    page.locator("a", has_text=re.compile(r"^1\.attn\.y:\d+$")).first.click()
    expect(page.locator("main")).to_contain_text("A channel that nobody has named.")
    page.get_by_role("link", name="Steer with it").click()
    done(page)


def test_a_contrast_finds_channels_that_get_a_name(opened, api):
    page = opened("#/contrast")
    page.get_by_label("Take pairs of a task").select_option("single_double_quote")
    expect(page.locator(".pairs tbody tr")).to_have_count(8)
    page.get_by_label("Place").select_option("1.resid_mid")
    page.get_by_role("button", name="Find channels").click()
    found = page.get_by_role("region", name="1.resid_mid", exact=True)
    expect(found.locator("tbody tr").first).to_contain_text("176")
    accessible(page)
    page.get_by_label("Name", exact=True).fill("Not A Name")
    page.get_by_role("button", name="Register it").click()
    expect(page.locator(".register .problem")).to_contain_text("name")
    page.get_by_label("Name", exact=True).fill("page_quote")
    page.get_by_role("button", name="Register it").click()
    page.get_by_role("link", name="page_quote").click()
    expect(page.get_by_role("heading", name="page_quote")).to_be_visible()
    page.get_by_role("button", name="Delete it").click()
    expect(page.locator(".feature-list li")).to_have_count(22)


def test_activations_of_both_models_stand_side_by_side(opened, api):
    page = opened("#/activations")
    page.get_by_label("Text", exact=True).fill(PROMPT)
    page.get_by_label("Channels of each").fill("3")
    page.get_by_role("button", name="Look", exact=True).click()
    grid = page.locator(".activations")
    expect(grid.locator("tbody tr")).to_have_count(8)
    expect(grid).to_contain_text("tinypython-sparse: 1.resid_mid")
    expect(grid).to_contain_text("quote_type")
    expect(page.locator(".pattern rect")).to_have_count(36)
    accessible(page)
    page.get_by_label("Attention").select_option("sparse")
    page.get_by_label("Head", exact=True).select_option("31")
    page.get_by_role("button", name="Look", exact=True).click()
    expect(page.locator(".chart figcaption")).to_contain_text("tinypython-sparse: layer 0, head 31")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as JSON").click()
    told = json.load(open(download.value.path()))
    assert len(told["dense"]["nodes"]["1.resid_mid"]["values"]) == 8
    pattern = told["attention"]["attention"][0]["values"]
    assert all(0 < sum(row) <= 1.0001 for row in pattern) and pattern[0][1:] == [0] * 7


def test_a_circuit_is_looked_at(opened):
    """With a record of two thousand edges, which no served pair need have."""
    record = large_circuit(nodes=400, edges=2000)
    listed = {**{name: record[name] for name in ("id", "model", "task", "summary", "controls", "stale")}, "object": "circuit", "nodes": 400, "edges": 2000, "task_loss": 0.1}
    page = opened("#/circuits", routes=[
        ("**/v1/circuits?*", lambda route: route.fulfill(json={"object": "list", "data": [listed], "last_id": "large", "has_more": False})),
        ("**/v1/circuits/large", lambda route: route.fulfill(json=record))])
    page.get_by_role("link", name="large").click()
    expect(page.locator(".graph circle")).to_have_count(400)
    drawn = lambda: page.locator(".graph .edges .edge").evaluate_all("paths => paths.map((path) => path.getAttribute('d').split('M').length - 1).reduce((sum, edges) => sum + edges, 0)")
    assert drawn() == 2000
    # Drawn, and covered by nothing: most of the picture is edges.
    graph = page.locator(".graph")
    with_edges = graph.screenshot()
    page.locator(".graph .edges").evaluate("edges => { edges.style.visibility = 'hidden' }")
    assert 2 * len(graph.screenshot()) < len(with_edges)
    page.locator(".graph .edges").evaluate("edges => { edges.style.visibility = '' }")
    slider = page.get_by_label("Hide weak edges")
    slider.focus()
    for _ in range(3):
        slider.press("PageUp")
    expect(page.locator(".filters")).to_contain_text("of 2000 shown: effects from")
    assert 0 < drawn() < 2000
    page.locator(".graph").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    panel = page.get_by_role("complementary", name="Node")
    expect(panel).to_contain_text("Held at")
    expect(page).to_have_url(re.compile("pinned="))
    page.locator(".graph circle").nth(50).hover()
    expect(page.locator(".graph .name")).to_be_visible()
    expect(page.locator("main")).to_contain_text("control: shuffled labels")
    accessible(page)


def test_circuits_are_told_of_where_there_are_none(opened):
    page = opened("#/circuits", routes=[
        ("**/v1/circuits?*", lambda route: route.fulfill(json={"object": "list", "data": [], "last_id": None, "has_more": False}))])
    expect(page.locator("main")).to_contain_text("No circuit is served yet")


def test_a_job_is_estimated_started_followed_and_tried(opened):
    page = opened("#/jobs")
    page.get_by_label("Train", exact=True).select_option("dense")
    page.get_by_label("Call the result").fill("by-the-page")
    page.get_by_label("steps", exact=True).fill("6")
    page.get_by_label("sequences", exact=True).fill("0")
    page.get_by_label("length", exact=True).fill("32")
    page.get_by_label("documents", exact=True).fill("40")
    page.get_by_role("button", name="Start").click()
    expect(page.locator(".problem").first).to_contain_text("sequences")
    page.get_by_label("sequences", exact=True).fill("2")
    page.get_by_role("button", name="Estimate").click()
    expect(page.locator("main")).to_contain_text("6 steps of", timeout=120_000)
    page.get_by_role("button", name="Start").click()
    expect(page.locator("main [role=status]").first).to_contain_text("succeeded", timeout=300_000)
    expect(page.locator(".curves canvas").first).to_be_visible()
    expect(page.locator("[role=log]")).to_contain_text("step 6")
    accessible(page)
    page.get_by_role("link", name="Try it").click()
    expect(page.get_by_label("Model", exact=True)).to_have_value("by-the-page")
    page.get_by_label("Prompt", exact=True).fill("x = ")
    page.get_by_role("button", name="Run", exact=True).click()
    done(page)
    page.get_by_role("link", name="Models").click()
    row = page.locator("tr", has_text="by-the-page")
    row.get_by_role("button", name="Delete").click()
    expect(row).to_have_count(0)


def test_a_job_is_paused_resumed_and_cancelled(opened):
    page = opened(link("jobs", type="dense"))
    page.get_by_label("steps", exact=True).fill("100000")
    page.get_by_label("sequences", exact=True).fill("1")
    page.get_by_label("length", exact=True).fill("16")
    page.get_by_role("button", name="Start").click()
    status = page.locator("main [role=status]").first
    expect(status).to_contain_text("running", timeout=120_000)
    page.get_by_role("button", name="Pause").click()
    expect(status).to_contain_text(re.compile("^paused"), timeout=120_000)
    page.get_by_role("button", name="Resume").click()
    expect(status).to_contain_text(re.compile("^(running|queued)"), timeout=120_000)
    page.get_by_role("button", name="Cancel").click()
    expect(status).to_contain_text("cancelled", timeout=120_000)
    page.get_by_role("button", name="Forget it").click()
    expect(page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()


def test_the_library_is_looked_after(opened):
    page = opened("#/models")
    expect(page.locator("main")).to_contain_text("tinypython-sparse")
    page.get_by_label("Its id there").fill("no such/id/")
    page.get_by_role("button", name="Bring it").click()
    expect(page.locator("form .problem")).to_contain_text("hub_id")
    page.get_by_label("Its id there").fill("some/model")
    page.get_by_role("button", name="Bring it").click()
    operation = page.locator("tr", has_text="some/model").first
    expect(operation).to_contain_text(re.compile("queued|downloading|failed"), timeout=60_000)
    expect(operation.locator(".problem")).to_be_visible(timeout=120_000)
