"""The upper half of the page, in a real browser: numbers that move, and what it looks like."""

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import cast

import pytest
from playwright.sync_api import Page, Route, expect

from app.engine import Engine
from app.live import LiveGpu, LiveView
from batching import Lane
from tests.app.fakes import IDLE, FakeEngine
from tests.browser.conftest import OpenPage, Serve
from tests.servers import RunningServer

THEMES = ("light", "dark")
HIDE = """(hidden) => {
    Object.defineProperty(document, "hidden", {configurable: true, get: () => hidden});
    document.dispatchEvent(new Event("visibilitychange"));
}"""
"""Hides the tab, or shows it again, as far as the page can tell."""


def post(server: RunningServer, **body: object) -> None:
    request = urllib.request.Request(
        f"{server.base_url}/embeddings",
        data=json.dumps({"model": "tiny-gme", **body}).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()


def wait_until_ready(page: Page) -> None:
    page.wait_for_selector('#state[data-state="ready"]')


def test_the_page_is_drawn_and_nothing_moves_while_it_is(golden_server: RunningServer, open_page: OpenPage):
    """No complaint of the policy, no request elsewhere (the fixture sees to both), no jump under the cursor."""
    watched = open_page(golden_server.root)
    page = watched.page
    wait_until_ready(page)
    page.wait_for_selector("#model-card dt >> nth=5")
    assert page.locator("h2").all_inner_texts() == ["Live", "Playground", "Model", "Use it"]
    assert page.locator(".lane h3").all_inner_texts()[0].startswith("Query")
    assert page.inner_text("#model-name") == page.inner_text("#model-card dd code")
    shift = page.evaluate(
        """() => new Promise((done) => {
            let sum = 0;
            new PerformanceObserver((list) => list.getEntries().forEach((one) => (sum += one.value)))
                .observe({type: "layout-shift", buffered: true});
            setTimeout(() => done(sum), 1500);
        })"""
    )
    # Google's bound for a good page is 0.1; https://web.dev/articles/cls
    assert shift < 0.01
    assert len(watched.asked("/live")) >= 2


def test_numbers_move_while_there_is_load(golden_server: RunningServer, open_page: OpenPage):
    page = open_page(golden_server.root).page
    wait_until_ready(page)
    before = page.inner_text(".lane.document .fact >> nth=2")
    stop = threading.Event()

    def load(**body: object) -> None:
        while not stop.is_set():
            post(golden_server, **body)

    with ThreadPoolExecutor(2) as pool:
        tasks = [
            pool.submit(load, input="a query", priority="query"),
            pool.submit(load, input=["a document"] * 8, priority="document"),
        ]
        try:
            for lane in ("query", "document"):
                for place in (0, 1):  # p50, p99
                    fact = page.locator(f".lane.{lane} .measure >> nth=0").locator(".fact b").nth(place)
                    expect(fact).to_have_text(re.compile(r"^[\d.,]+ m?s$"), timeout=8_000)
            line = page.locator(".lane.document path.line >> nth=0")
            expect(line).not_to_have_attribute("d", line.get_attribute("d") or "")
            told = page.evaluate("fetch('/live').then((answer) => answer.json())")
        finally:
            stop.set()
        for task in tasks:
            task.result()
    assert told["lanes"]["document"]["items_per_s"] > told["lanes"]["query"]["items_per_s"] > 0
    assert told["device"]["passes_per_s"] > 0
    assert page.inner_text(".lane.document .fact >> nth=2") != before


class PastClock:
    """The machine's clock, but for what is told to have happened before."""

    def __init__(self, *, ago_s: float) -> None:
        self.ago_s = ago_s

    def __call__(self) -> float:
        return time.monotonic() - self.ago_s


def view_with_a_past(engine: FakeEngine, *gpus: LiveGpu) -> LiveView:
    """A view that watched the engine for a minute: one query a second, and 40 documents waiting."""
    clock = PastClock(ago_s=60)
    view = LiveView(version="9.9.9", read_gpus=lambda: gpus, clock=clock)
    view.watch(cast("Engine", engine), aliases=(), num_in_flight=lambda: 0)
    engine.lanes = {**engine.lanes, Lane.DOCUMENT: replace(IDLE, num_waiting=40)}
    for ago_s in range(60, 0, -1):
        clock.ago_s = ago_s
        view.remember()
        view.observe_http("/v1/embeddings", "POST", 200, 0.02, failure=None, lane=Lane.QUERY)
    engine.lanes = dict.fromkeys(Lane, IDLE)
    clock.ago_s = 0
    return view


def num_points(page: Page, lane: str, chart: int) -> int:
    """Points of the line in one of a lane's charts: latency, throughput, queue."""
    line = page.locator(f".lane.{lane} .chart").nth(chart).locator("path.line")
    return len(re.findall("[ML]", line.get_attribute("d") or ""))


def test_a_page_that_is_opened_after_the_load_shows_it_at_once(open_page: OpenPage, serve: Serve):
    """Whoever opens it because something was slow must not have to wait until it is slow again."""
    engine = FakeEngine()
    gpu = LiveGpu(index=0, name="NVIDIA H200", utilization_ratio=0.42)
    watched = open_page(serve(engine, view=view_with_a_past(engine, gpu)))
    page = watched.page
    wait_until_ready(page)
    assert watched.asked("/live")[0].url.endswith("?history_s=120")
    for lane, chart in (("query", 0), ("query", 1), ("document", 2)):
        # Of a latency all but the first second, in which nothing was answered yet.
        assert num_points(page, lane, chart) >= 58
    with page.expect_request("**/live"):  # and from now on without
        pass

    page.locator("#lookback").fill("-30")
    query, document = page.locator(".lane.query"), page.locator(".lane.document")
    expect(query.locator(".fact", has_text="p50")).to_contain_text("20 ms")
    expect(query.locator(".fact", has_text="items/s")).to_contain_text("0")
    expect(document.locator(".fact", has_text="waiting")).to_contain_text("40")
    # What nobody wrote down is not made up.
    for fact in ("Workers ready", "In flight", "On the device"):
        expect(page.locator("#device .fact", has_text=fact)).to_contain_text("\N{EN DASH}")
    expect(page.locator(".gpu")).to_contain_text("NVIDIA H200")
    expect(page.locator(".gpu .gauge >> nth=0")).to_contain_text("\N{EN DASH}")
    page.locator("#lookback").fill("0")
    expect(document.locator(".fact", has_text="waiting")).to_contain_text("0")
    expect(page.locator(".gpu .gauge >> nth=0")).to_contain_text("42 %")
    expect(page.locator("#device .fact", has_text="Workers ready")).to_contain_text("1 of 1")


def test_a_lane_that_refuses_looks_like_it(open_page: OpenPage, serve: Serve):
    """Its latency and throughput may look well: those few that it takes are answered as ever."""
    clock = PastClock(ago_s=60)
    view = LiveView(clock=clock)
    for ago_s in range(60, 0, -1):
        clock.ago_s = ago_s
        view.remember()
        for status in [200] if ago_s > 20 else [429] * 51 + [408, 200]:
            view.observe_http("/v1/embeddings", "POST", status, 0.02, failure=None, lane=Lane.DOCUMENT)
    clock.ago_s = 0
    page = open_page(serve(FakeEngine(), view=view)).page
    wait_until_ready(page)
    document, query = page.locator(".lane.document"), page.locator(".lane.query")
    device = page.locator("#device")
    expect(document.locator(".refusing")).to_have_text(re.compile(r"^refuses \d+ of \d+ requests/s$"))
    expect(document).to_have_class(re.compile(r"\bbad\b"))
    expect(query.locator(".refusing")).to_be_hidden()
    expect(query).not_to_have_class(re.compile(r"\bbad\b"))
    expect(device.locator(".fact", has_text="4xx/s")).not_to_have_text(re.compile(r"4xx/s\s*0$"))
    expect(device.locator(".fact", has_text="5xx/s")).to_have_text(re.compile(r"5xx/s\s*0$"))
    page.locator("#lookback").fill("-40")
    expect(document.locator(".refusing")).to_be_hidden()
    page.locator("#lookback").fill("-8")
    expect(document.locator(".refusing")).to_have_text("refuses 52 of 53 requests/s")
    expect(device.locator(".fact", has_text="4xx/s")).to_contain_text("52")


def test_history_fills_what_a_page_missed_and_nothing_else(open_page: OpenPage, serve: Serve):
    """A tab that slept for three seconds asks for three; what it saw itself stays as it saw it."""
    watched = open_page(serve(FakeEngine()))
    page = watched.page
    wait_until_ready(page)
    page.evaluate(HIDE, True)
    page.wait_for_timeout(3_200)
    with page.expect_request("**/live?history_s=*") as asked:
        page.evaluate(HIDE, False)
    assert 4 <= int(asked.value.url.partition("=")[2]) < 20
    told = """import('/ui/ui-live.js').then(({pastOf}) => {
        const history = {device: {busy_ratio: [0.1, null, 0.3]}, lanes: {query: {p50_ms: [null, null, 5]}}};
        return [pastOf({history}, 100), pastOf({}, 100)];
    })"""
    assert page.evaluate(told) == [
        [
            {"at": 97, "told": {"device": {"busy_ratio": 0.1}, "lanes": {"query": {"p50_ms": None}}}},
            {"at": 99, "told": {"device": {"busy_ratio": 0.3}, "lanes": {"query": {"p50_ms": 5}}}},
        ],
        [],
    ]


def test_a_moment_of_the_past_can_be_read(golden_server: RunningServer, open_page: OpenPage):
    """By the keyboard, too: the slider is one that the browser knows."""
    page = open_page(golden_server.root).page
    wait_until_ready(page)
    page.wait_for_timeout(2_500)
    page.focus("#lookback")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#lookback-text")).to_have_text("2 s ago")
    assert page.get_attribute("#lookback", "aria-valuetext") == "2 seconds ago"
    page.keyboard.press("End")
    expect(page.locator("#lookback-text")).to_have_text("now")


@pytest.mark.parametrize(
    ("width", "theme"), [(360, "light"), (360, "dark"), (820, "light"), (1360, "dark"), (2200, "light")]
)
def test_it_fits_every_width_in_both_themes(
    golden_server: RunningServer, open_page: OpenPage, width: int, theme: str
):
    """Nothing makes the page scroll sideways, and nothing sticks out of its card."""
    page = open_page(golden_server.root, viewport={"width": width, "height": 800}, color_scheme=theme).page
    wait_until_ready(page)
    page.click("#embed")
    page.wait_for_selector(".matrix")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """() => [...document.querySelectorAll(".card")].flatMap((card) => {
            const edge = card.getBoundingClientRect().right + 0.5;
            return [...card.querySelectorAll("*")].filter((one) => !one.closest(".scroll, pre, .brief, svg")
                && one.getBoundingClientRect().right > edge).map((one) => one.className || one.tagName);
        })"""
    )
    assert outside == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(ground) < 60) == (theme == "dark")


CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const luminance = (css) => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = css; canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (one, other) => {
        const [a, b] = [luminance(one), luminance(other)];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    };
    const ground = (node) => {
        for (; node; node = node.parentElement) {
            const color = getComputedStyle(node).backgroundColor;
            if (color !== "rgba(0, 0, 0, 0)") return color;
        }
    };
    const cell = document.querySelector(".matrix td[style]");
    const heats = Array.from({length: 41}, (_, step) => {
        cell.style.setProperty("--heat", step / 40);
        return contrast(getComputedStyle(cell).color, getComputedStyle(cell).backgroundColor);
    });
    const texts = [...document.querySelectorAll("main *, header *")]
        .filter((one) => [...one.childNodes].some((child) => child.nodeType === 3 && child.data.trim()) && one.checkVisibility())
        .map((one) => [contrast(getComputedStyle(one).color, ground(one)), one.className || one.tagName]);
    return {heats: Math.min(...heats), texts: texts.filter(([ratio]) => ratio < 4.5)};
}"""


@pytest.mark.parametrize("theme", THEMES)
def test_every_text_can_be_read_on_its_ground(golden_server: RunningServer, open_page: OpenPage, theme: str):
    """4.5 to 1, the bound of WCAG 2.2, 1.4.3; on the heat map for every value between cold and hot."""
    page = open_page(golden_server.root, color_scheme=theme).page
    wait_until_ready(page)
    page.click("#embed")
    page.wait_for_selector(".matrix")
    told = page.evaluate(CONTRAST)
    assert told["texts"] == []
    assert told["heats"] >= 4.5


def test_a_server_that_is_gone_is_said_plainly_and_found_again(open_page: OpenPage, serve: Serve):
    origin = serve(FakeEngine())
    page = open_page(origin, expects=("ERR_FAILED",)).page
    wait_until_ready(page)
    page.route("**/live*", lambda route: route.abort())
    expect(page.locator("#state-text")).to_have_text("unreachable, asking again")
    assert page.get_attribute("#state", "data-state") == "lost"
    page.unroute("**/live*")
    expect(page.locator("#state-text")).to_have_text("ready")


def test_a_loading_model_shows_its_stage_and_then_its_card(open_page: OpenPage, serve: Serve):
    engine = FakeEngine(stage="downloading 43%")
    origin = serve(engine)
    page = open_page(origin).page
    expect(page.locator("#state-text")).to_have_text("downloading 43%")
    expect(page.locator("#model-card")).to_contain_text("loading")
    engine.stage = "ready"
    expect(page.locator("#state-text")).to_have_text("ready")
    expect(page.locator("#model-card dd >> nth=0")).to_contain_text("tiny")
    expect(page.locator("#snippet")).to_contain_text('"model":"tiny"')


def test_a_card_that_could_not_be_had_is_asked_for_again(open_page: OpenPage, serve: Serve):
    engine = FakeEngine(stage="loading")
    page = open_page(serve(engine), expects=("ERR_FAILED",)).page
    expect(page.locator("#model-card")).to_contain_text("loading")
    page.route("**/v1/models", lambda route: route.abort())
    engine.stage = "ready"
    expect(page.locator("#model-card")).not_to_contain_text("loading")
    assert page.locator("#model-card dl").count() == 0
    page.unroute("**/v1/models")
    expect(page.locator("#model-card dd >> nth=0")).to_contain_text("tiny")


def test_an_answer_about_an_earlier_model_is_not_shown(open_page: OpenPage, serve: Serve):
    """The first question is answered last: while it waited the model became ready, and was asked for again."""
    engine = FakeEngine(stage="loading")
    page = open_page(serve(engine)).page
    expect(page.locator("#model-card")).to_contain_text("loading")
    held: list[Route] = []
    page.route("**/v1/models", lambda route: held.append(route), times=1)
    with page.expect_request("**/v1/models"):
        page.fill("#key", "sk-mine")
        page.press("#key", "Tab")
    engine.stage = "ready"
    expect(page.locator("#model-card dd >> nth=0")).to_contain_text("tiny")
    with page.expect_response("**/v1/models"):
        held[0].fulfill(json={"object": "list", "data": []})
    page.evaluate("() => new Promise((done) => setTimeout(done))")
    expect(page.locator("#model-card dd >> nth=0")).to_contain_text("tiny")


def test_a_hidden_tab_asks_for_nothing(open_page: OpenPage, serve: Serve):
    """A page in a forgotten tab must not be a client for weeks."""
    origin = serve(FakeEngine())
    watched = open_page(origin)
    page = watched.page
    wait_until_ready(page)
    page.evaluate(HIDE, True)
    page.wait_for_timeout(200)  # what was on its way
    asked = len(watched.asked("/live"))
    page.wait_for_timeout(2_500)
    assert len(watched.asked("/live")) == asked
    with page.expect_request("**/live*", timeout=900):
        page.evaluate(HIDE, False)
    # However often it is hidden and shown: once a second.
    for hidden in (True, False) * 4:
        page.evaluate(HIDE, hidden)
    page.wait_for_timeout(200)
    asked = len(watched.asked("/live"))
    page.wait_for_timeout(2_200)
    assert len(watched.asked("/live")) - asked in (1, 2, 3)


def test_gpus_are_shown_as_far_as_they_tell(open_page: OpenPage, serve: Serve):
    first = LiveGpu(
        index=0, name="NVIDIA H200", utilization_ratio=0.42, memory_used_bytes=12 * 2**30,
        memory_total_bytes=140 * 2**30, power_watts=310.4, temperature_celsius=51,
    )  # fmt: skip
    origin = serve(FakeEngine(), first, LiveGpu(index=1, name="<b>slice</b>"))
    page = open_page(origin).page
    wait_until_ready(page)
    whole, part = page.locator(".gpu").all()
    for text in ("NVIDIA H200", "42 %", "12 GiB of 140 GiB", "310 W", "51 °C"):
        expect(whole).to_contain_text(text)
    expect(part).to_contain_text("<b>slice</b>")
    expect(part).to_contain_text("\N{EN DASH}")


def test_who_wants_less_motion_gets_none(golden_server: RunningServer, open_page: OpenPage):
    style = "getComputedStyle(document.documentElement).scrollBehavior"
    calm = open_page(golden_server.root, reduced_motion="reduce").page
    assert calm.evaluate(style) == "auto"
    assert calm.evaluate("document.getAnimations().length") == 0


def test_charts_have_round_scales_and_gaps(golden_server: RunningServer, open_page: OpenPage):
    """A line across the minutes in which nobody looked would tell what nobody saw."""
    page = open_page(golden_server.root).page
    scales = "[[0, 10], [11, 10], [20, 10], [4321, 10]].map(([value, least]) => niceMax(value, least))"
    samples = "[[1, 1], [2, null], [3, 3], [4, 4], [9, 9]].map(([at, value]) => ({at, value}))"
    drawn = page.evaluate(
        f"import('/ui/ui-chart.js').then(({{niceMax, pieces}}) => [{scales}, pieces({samples}, (one) => one.value)])"
    )
    assert drawn == [[10, 20, 20, 5000], [[[1, 1]], [[3, 3], [4, 4]], [[9, 9]]]]


def test_the_programs_run_as_they_are_copied(golden_server: RunningServer, open_page: OpenPage):
    page = open_page(golden_server.root).page
    expect(page.locator("#snippet")).to_contain_text('"model":"tiny-gme"')
    programs = {}
    for tab in page.locator("[role=tab]").all():
        tab.click()
        programs[tab.inner_text()] = page.inner_text("#snippet")
    assert list(programs) == ["curl", "Python", "LangChain", "LlamaIndex"]
    running = [
        subprocess.Popen(
            ["bash", "-c", program] if name == "curl" else [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, program in programs.items()
    ]
    for name, process in zip(programs, running, strict=True):
        printed, complained = process.communicate(timeout=60)
        assert process.returncode == 0, (name, complained)
        assert "embedding" in printed or printed.startswith("["), (name, printed)
