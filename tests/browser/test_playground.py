"""The playground, in a real browser, against the numbers of the API itself."""

import base64
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from playwright.sync_api import FilePayload, Page, Route, expect

from tests.app.fakes import FakeEngine
from tests.browser.conftest import OpenPage, Serve, Watched
from tests.servers import RunningServer

IMAGES = Path(__file__).parents[1] / "data" / "gme_reference"
REFUSED = "status of 400"
"""Chromium writes each refusal to its console, whoever handles it."""


def cosines(server: RunningServer, items: list[dict[str, Any]]) -> npt.NDArray[np.float64]:
    """What the API says, asked without the page."""
    request = urllib.request.Request(
        f"{server.base_url}/embeddings",
        data=json.dumps({"model": served_name(server), "input": items}).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        rows = np.array([one["embedding"] for one in json.load(answer)["data"]])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def served_name(server: RunningServer) -> str:
    with urllib.request.urlopen(f"{server.base_url}/models", timeout=10) as answer:
        return json.load(answer)["data"][0]["id"]


def number(text: str) -> float:
    """A number as it is written for readers."""
    return float(text.replace("\N{MINUS SIGN}", "-"))


def shown(page: Page) -> npt.NDArray[np.float64]:
    """The matrix as a reader of labels gets it, with four digits."""
    page.wait_for_selector(".matrix")
    labels = page.locator(".matrix tbody tr").evaluate_all(
        "(rows) => rows.map((row) => [...row.querySelectorAll('td')].map((cell) => cell.ariaLabel))"
    )
    return np.array(
        [[number(re.findall(r": (.?\d\.\d{4})\. ", label)[0]) for label in row] for row in labels]
    )


def write(page: Page, *texts: str) -> None:
    """Put these texts in place of the examples."""
    page.click("#clear")
    for number, text in enumerate(texts):
        if number:
            page.keyboard.press("Enter")
        page.keyboard.insert_text(text)


def ready(watched: Watched) -> Page:
    watched.page.wait_for_selector('#state[data-state="ready"]')
    watched.page.wait_for_selector("#model-card dl")
    return watched.page


@pytest.mark.parametrize("encoding", ["base64", "float"])
def test_two_texts_are_compared_as_the_api_says(
    golden_server: RunningServer, open_page: OpenPage, encoding: str
):
    watched = open_page(golden_server.root)
    page = ready(watched)
    write(page, "a river", "a lake near the town")
    page.select_option("#encoding", encoding)
    page.click("#embed")
    matrix = shown(page)
    expected = cosines(
        golden_server,
        [
            {"text": "a river", "input_type": "query"},
            {"text": "a lake near the town", "input_type": "document"},
        ],
    )
    assert matrix.shape == (2, 2)
    assert np.abs(matrix - expected).max() < 6e-5
    assert number(page.inner_text(".matrix td[style] >> nth=0")) == round(expected[0, 1], 3)
    assert number(page.inner_text(".ranking li b")) == round(expected[0, 1], 3)
    expect(page.locator("#summary")).to_contain_text("2 vectors of 64 dimensions")
    (sent,) = watched.asked("/v1/embeddings")
    assert sent.post_data_json["encoding_format"] == encoding
    assert sent.post_data_json["priority"] == "query"


def test_an_instruction_goes_with_the_queries(golden_server: RunningServer, open_page: OpenPage):
    watched = open_page(golden_server.root)
    page = ready(watched)
    write(page, "a river", "a lake")
    page.fill("#instruction", "Find water.")
    page.click("#embed")
    matrix = shown(page)
    items = [
        {"text": "a river", "input_type": "query", "instruction": "Find water."},
        {"text": "a lake", "input_type": "document"},
    ]
    assert watched.asked("/v1/embeddings")[0].post_data_json["input"] == items
    assert np.abs(matrix - cosines(golden_server, items)).max() < 6e-5


def test_images_that_are_chosen_dropped_or_pasted_are_compared(
    golden_server: RunningServer, open_page: OpenPage
):
    page = ready(open_page(golden_server.root))
    write(page, "colours")
    page.set_input_files("#image-files", IMAGES / "image0.png")
    for event, name in (("drop", "image1.png"), ("paste", "image3.png")):
        page.evaluate(
            """([event, name, data]) => {
                const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
                const transfer = new DataTransfer();
                transfer.items.add(new File([bytes], name, {type: "image/png"}));
                const what = {bubbles: true, cancelable: true};
                document.body.dispatchEvent(event === "drop"
                    ? new DragEvent("drop", {...what, dataTransfer: transfer})
                    : new ClipboardEvent("paste", {...what, clipboardData: transfer}));
            }""",
            [event, name, base64.b64encode((IMAGES / name).read_bytes()).decode()],
        )
        page.wait_for_selector(f".of-image .name >> text={name}")
    page.fill(".of-image textarea >> nth=2", "with a text")
    page.click("#embed")
    matrix = shown(page)

    def uri(name: str) -> str:
        return "data:image/png;base64," + base64.b64encode((IMAGES / name).read_bytes()).decode()

    expected = cosines(
        golden_server,
        [
            {"text": "colours", "input_type": "query"},
            {"image": uri("image0.png"), "input_type": "document"},
            {"image": uri("image1.png"), "input_type": "document"},
            {"image": uri("image3.png"), "text": "with a text", "input_type": "document"},
        ],
    )
    assert matrix.shape == (4, 4)
    assert np.abs(matrix - expected).max() < 6e-5
    pictures = page.locator(".matrix img")
    assert pictures.count() == 3
    assert pictures.evaluate_all("(all) => all.every((one) => one.complete && one.naturalWidth > 0)")


def test_a_model_of_texts_takes_no_images(open_page: OpenPage, serve: Serve):
    origin = serve(FakeEngine())
    page = ready(open_page(origin))
    assert not page.is_visible("#add-image")
    page.set_input_files("#image-files", IMAGES / "image0.png")
    expect(page.locator("#inputs-notice")).to_have_text("This model reads texts only.")
    assert page.locator(".of-image").count() == 0


def test_documents_are_ranked_for_each_query(golden_server: RunningServer, open_page: OpenPage):
    page = ready(open_page(golden_server.root))
    texts = ["one", "two words", "three more words", "four"]
    write(page, *texts)
    page.select_option("#items li:nth-child(4) select", "query")
    page.click("#embed")
    matrix = shown(page)
    rankings = page.locator(".ranking")
    assert rankings.count() == 2
    for ranking, query in zip(rankings.all(), (0, 3), strict=True):
        order = [int(number) - 1 for number in ranking.locator("li .number").all_inner_texts()]
        assert order == sorted((1, 2), key=lambda index: -matrix[query, index])


def test_everything_can_be_done_with_the_keyboard(golden_server: RunningServer, open_page: OpenPage):
    page = ready(open_page(golden_server.root))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    for _ in range(2):  # the first role, the first text
        page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("a river")
    assert page.evaluate("document.querySelector('#items textarea').value") == "a river"
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".matrix")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.role") == "gridcell":
            break
    label = "document.activeElement.ariaLabel"
    assert page.evaluate(label).startswith("1 and 1: 1.0000. “a river” with itself")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(label).startswith("2 and 3: ")
    page.keyboard.press("Home")
    assert page.evaluate(label).startswith("2 and 1: ")
    expect(page.locator(".detail b")).to_have_text(page.evaluate(label).split(": ")[1].split(". ")[0])
    # One stop for the whole grid: the next is a program's tab, which arrows move among.
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.role") == "tab":
            break
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "Python"
    assert "from openai import OpenAI" in page.inner_text("#snippet")


def test_everything_has_a_name_for_who_does_not_see_it(golden_server: RunningServer, open_page: OpenPage):
    page = ready(open_page(golden_server.root))
    page.set_input_files("#image-files", IMAGES / "image0.png")
    page.wait_for_selector(".of-image")
    page.click("#embed")
    page.wait_for_selector(".matrix")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, a, img, [role]")].filter((one) =>
            one.checkVisibility() && !one.closest("[aria-hidden=true]") && !one.alt && !one.ariaLabel
            && !one.labels?.length && !one.textContent.trim() && !one.getAttribute("aria-labelledby")
            && one.alt !== "" && !["status", "alert"].includes(one.role)).map((one) => one.outerHTML)"""
    )
    assert nameless == []


PASTE = """(text) => {
    const transfer = new DataTransfer();
    transfer.setData("text/plain", text);
    return document.activeElement.dispatchEvent(
        new ClipboardEvent("paste", {bubbles: true, cancelable: true, clipboardData: transfer}));
}"""
"""Whether the browser is left to paste the text as it is."""


def test_pasted_lines_become_texts_and_can_be_taken_back(open_page: OpenPage, serve: Serve):
    origin = serve(FakeEngine())
    page = ready(open_page(origin))
    write(page, "")
    page.evaluate(PASTE, "first\r\n\r\nsecond\nthird\n")
    texts = "[...document.querySelectorAll('#items textarea')].map((one) => one.value)"
    assert page.evaluate(texts) == ["first", "second", "third"]
    expect(page.locator("#inputs-notice")).to_contain_text("3 lines became 3 texts.")
    page.click("text=Keep them as one text")
    assert page.evaluate(texts) == ["first\n\nsecond\nthird".replace("\n\n", "\r\n\r\n", 1).replace("\r", "")]


def test_pasted_lines_that_have_no_room_stay_one_text(open_page: OpenPage, serve: Serve):
    page = ready(open_page(serve(FakeEngine())))
    write(page, "one", "two")
    lines = [f"line {number}" for number in range(64)]
    assert page.evaluate(PASTE, "\n".join(lines)) is True
    expect(page.locator("#inputs-notice")).to_have_text(
        "There is room for 63 of these 64 lines, so they stay one text."
    )
    assert page.locator("#items > li").count() == 2
    assert page.evaluate(PASTE, "\n".join(lines[:63])) is False
    assert page.locator("#items > li").count() == 64


KEEP_COUNT = """() => {
    window.held = new Set();
    const [create, revoke] = [URL.createObjectURL, URL.revokeObjectURL];
    URL.createObjectURL = (file) => { const url = create.call(URL, file); held.add(url); return url; };
    URL.revokeObjectURL = (url) => { held.delete(url); revoke.call(URL, url); };
}"""
"""From now on ``held`` has the URLs that keep a file in memory."""


def images(num: int) -> list[FilePayload]:
    content = (IMAGES / "image0.png").read_bytes()
    return [{"name": f"{number}.png", "mimeType": "image/png", "buffer": content} for number in range(num)]


def test_images_that_are_shown_nowhere_are_let_go(golden_server: RunningServer, open_page: OpenPage):
    page = ready(open_page(golden_server.root))
    page.evaluate(KEEP_COUNT)
    write(page, "colours")
    page.set_input_files("#image-files", images(2))
    expect(page.locator(".of-image")).to_have_count(2)
    page.click("#embed")
    page.wait_for_selector(".matrix")
    page.click(".of-image .remove >> nth=0")
    assert page.evaluate("held.size") == 2  # the matrix shows it still
    page.click("#embed")
    expect(page.locator(".matrix tbody tr")).to_have_count(2)
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    assert page.evaluate("held.size") == 1
    page.click("#clear")
    page.keyboard.insert_text("colours")
    page.click("#embed")
    expect(page.locator(".matrix tbody tr")).to_have_count(1)
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    assert page.evaluate("held.size") == 0


def test_an_image_that_is_removed_while_it_is_embedded_is_in_the_answer(
    golden_server: RunningServer, open_page: OpenPage
):
    page = ready(open_page(golden_server.root))
    write(page, "colours")
    page.set_input_files("#image-files", images(1))
    expect(page.locator(".of-image")).to_have_count(1)
    waiting: list[Route] = []
    page.route("**/v1/embeddings", lambda route: waiting.append(route))
    with page.expect_request("**/v1/embeddings"):
        page.click("#embed")
    page.click(".of-image .remove")
    waiting[0].continue_()
    expect(page.locator(".matrix img")).to_have_count(1)
    page.wait_for_function("document.querySelector('.matrix img').naturalWidth > 0")


def test_images_beyond_the_limit_are_counted_and_not_read(golden_server: RunningServer, open_page: OpenPage):
    page = ready(open_page(golden_server.root))
    page.evaluate(KEEP_COUNT)
    write(page, "colours")
    page.set_input_files(
        "#image-files", [*images(65), {"name": "a.txt", "mimeType": "text/plain", "buffer": b""}]
    )
    expect(page.locator("#inputs-notice")).to_have_text(
        "1 of 66 files are no images. 2 of 66 files were left out: the playground compares up to 64 inputs."
    )
    assert page.locator(".of-image").count() == 63
    assert page.evaluate("held.size") == 63


def test_a_file_that_cannot_be_read_is_said_so(golden_server: RunningServer, open_page: OpenPage):
    """It was removed, say, between choosing and reading it."""
    page = ready(open_page(golden_server.root))
    write(page, "")
    page.evaluate(
        """() => { FileReader.prototype.readAsDataURL = function () { setTimeout(() => this.onerror()); }; }"""
    )
    page.set_input_files("#image-files", images(1))
    expect(page.locator("#inputs-notice")).to_have_text("1 of 1 files could not be read.")
    assert page.locator("#items > li").count() == 1


def test_a_refusal_is_told_in_the_servers_words_at_the_input_it_means(
    golden_server: RunningServer, open_page: OpenPage
):
    page = ready(open_page(golden_server.root, expects=(REFUSED,)))
    write(page, "fine")
    page.set_input_files(
        "#image-files", {"name": "broken.png", "mimeType": "image/png", "buffer": b"not an image"}
    )
    page.wait_for_selector(".of-image")
    with page.expect_response("**/v1/embeddings") as waiting:
        page.click("#embed")
    error = waiting.value.json()["error"]
    expect(page.locator(".refusal")).to_have_text(error["message"])
    expect(page.locator("#error")).to_contain_text(f"status 400 · {error['code']} · {error['param']}")
    assert page.locator(".item.refused").count() == 1
    assert "of-image" in page.get_attribute(".item.refused", "class")
    # Mended, it is forgotten.
    page.click(".of-image .remove")
    page.click("#embed")
    page.wait_for_selector(".matrix")
    assert page.locator(".refusal, .refused").count() == 0


def test_nothing_to_embed_is_no_request(open_page: OpenPage, serve: Serve):
    origin = serve(FakeEngine())
    watched = open_page(origin)
    page = ready(watched)
    write(page, "  ")
    page.click("#embed")
    expect(page.locator("#summary")).to_contain_text("nothing to embed yet")
    assert watched.asked("/v1/embeddings") == []


def test_a_key_is_sent_and_stays_in_its_tab(open_page: OpenPage, serve: Serve):
    origin = serve(FakeEngine())
    watched = open_page(origin)
    page = ready(watched)
    page.fill("#key", "sk-mine")
    page.press("#key", "Enter")
    page.press("#key", "Tab")
    page.click("#embed")
    page.wait_for_selector(".matrix")
    (sent,) = watched.asked("/v1/embeddings")
    assert sent.headers["authorization"] == "Bearer sk-mine"
    assert page.evaluate("JSON.stringify({...localStorage})") == "{}"
    assert page.evaluate("document.cookie") == ""
    assert "sk-mine" not in page.inner_text("#snippet")
    assert "$LANEWAY_API_KEY" in page.inner_text("#snippet")
    page.reload()
    ready(watched)
    assert page.input_value("#key") == "sk-mine"
    assert "sk-mine" not in page.url
    other = page.context.new_page()
    other.goto(f"{origin}/ui")
    assert other.input_value("#key") == ""


def test_a_text_never_becomes_markup(open_page: OpenPage, serve: Serve):
    hostile = '<img src=x onerror="document.title=1"><b>bold</b>'
    origin = serve(FakeEngine())
    page = ready(open_page(origin, expects=("TrustedHTML",)))
    write(page, hostile, "another")
    page.click("#embed")
    page.wait_for_selector(".matrix")
    expect(page.locator(".matrix .brief >> nth=0")).to_have_text(hostile)
    assert page.locator("#comparison b", has_text="bold").count() == 0
    assert page.locator("#comparison img").count() == 0
    # And if the page forgot itself, the browser would refuse.
    refused = page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; return 'done'; } catch (error) { return error.name; } }"
    )
    assert refused == "TypeError"


def test_who_is_quicker_than_the_models_card_gets_vectors_all_the_same(
    golden_server: RunningServer, open_page: OpenPage
):
    """The name of the model is on the card: without it the request named none, and was refused."""
    page = open_page(golden_server.root).page
    page.wait_for_selector("#model-card dt")
    held: list[Route] = []

    def hold_the_first(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route("**/v1/models", hold_the_first)
    page.reload()
    page.wait_for_selector('#state[data-state="ready"]')
    expect(page.locator("#embed")).to_be_visible()
    page.click("#embed")
    page.wait_for_selector(".matrix")
    assert len(held) == 1
    held[0].continue_()


def test_a_heat_map_that_scrolls_fades_where_there_is_more(open_page: OpenPage, serve: Serve):
    """On a phone nothing else tells of the columns beyond its edge: scroll bars there show while one scrolls."""
    page = ready(open_page(serve(FakeEngine()), viewport={"width": 360, "height": 800}))
    write(page, *(f"text {number}" for number in range(6)))
    page.click("#embed")
    page.wait_for_selector(".matrix")
    box = page.locator(".scroll")
    expect(box).to_have_class("scroll more-right")
    box.evaluate("(node) => node.scrollTo(20, 0)")
    for side in ("more-left", "more-right"):
        expect(box).to_contain_class(side)
    box.evaluate("(node) => node.scrollTo(9999, 0)")
    expect(box).to_have_class("scroll more-left")
    page.set_viewport_size({"width": 1360, "height": 800})
    expect(box).to_have_class("scroll")
