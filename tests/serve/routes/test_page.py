"""The drawing page in Chromium, with a gunicorn service and its content security policy."""

import base64
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.polling import PATIENCE, wait
from tests.serve.hostile import encode

CHROMIUM = Path("/usr/bin/chromium")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("page"),  # all tests of this file run in one pytest process, with one browser
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"expected Chromium at {CHROMIUM}, found none"),
]

Stroke = list[tuple[float, float]]  # x and y as fractions of the canvas's side, from its left and top
STROKES: dict[int, list[Stroke]] = {  # a 1, 4, 7 and 9 in styles that are rare in MNIST, and a 3
    1: [[(0.38, 0.38), (0.53, 0.2), (0.53, 0.8)]],
    3: [[(0.3, 0.25), (0.6, 0.2), (0.65, 0.35), (0.45, 0.48), (0.68, 0.6), (0.6, 0.78), (0.3, 0.76)]],
    4: [[(0.66, 0.62), (0.32, 0.62), (0.56, 0.2), (0.56, 0.82)]],
    7: [[(0.3, 0.22), (0.7, 0.22), (0.55, 0.5), (0.45, 0.8)], [(0.4, 0.5), (0.68, 0.48)]],
    9: [[(0.6, 0.3), (0.48, 0.2), (0.36, 0.32), (0.46, 0.46), (0.6, 0.34), (0.6, 0.55), (0.52, 0.75), (0.36, 0.78)]],
}
SCRIBBLE: Stroke = [(0.2, 0.2), (0.8, 0.8), (0.2, 0.8), (0.8, 0.2)]
LETTER: list[Stroke] = [[(0.3, 0.82), (0.5, 0.18), (0.7, 0.82)], [(0.37, 0.6), (0.63, 0.6)]]  # the letter A

# Return the pixels of a canvas as a flat list: red, green, blue and alpha of each pixel.
READ = """(it) => {
  const copy = new OffscreenCanvas(it.width, it.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(it, 0, 0);
  return copy.getImageData(0, 0, it.width, it.height).data;
}"""

# Delay each request by 400 ms, and count the maximum number of concurrent requests.
SLOW = """
Object.assign(window, { quick: fetch, waiting: 0, most: 0 });
window.fetch = async (...request) => {
  window.most = Math.max(window.most, ++window.waiting);
  await new Promise((resolve) => setTimeout(resolve, 400));
  try { return await window.quick(...request); } finally { window.waiting -= 1; }
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, start, service) -> Iterator[Callable[..., Page]]:
    """Return a function that opens the page. Only `expected` messages may appear on the browser's console."""
    contexts, problems, hosts, allowed = [], [], set(), []

    def visit(url: str = service.url, script: str = "", expected: tuple[str, ...] = (), **options: object) -> Page:
        allowed.extend(expected)
        context = browser.new_context(**{"viewport": {"width": 1120, "height": 900}, **options})
        contexts.append(context)
        context.set_default_timeout(1_000 * PATIENCE)
        context.add_init_script(script)
        page = context.new_page()
        page.on("console", lambda found: problems.append(f"{found.type}: {found.text}"))
        page.on("pageerror", lambda error: problems.append(f"exception: {error}"))
        page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        page.goto(url)
        page.wait_for_selector("tbody tr")
        return page

    expect.set_options(timeout=1_000 * PATIENCE)
    yield visit
    for context in contexts:
        context.close()
    assert hosts <= {"127.0.0.1", None}  # None: the host of blob: and data: URLs
    assert [problem for problem in problems if not any(part in problem for part in allowed)] == []


@pytest.fixture
def page(visit) -> Page:
    return visit()


@pytest.fixture
def enlarged(images) -> Callable[..., bytes]:
    """Return a function that returns the MNIST test image with a given index, enlarged to 336×336."""
    return lambda index, kind="PNG": encode(np.kron(images[index], np.ones((12, 12), np.uint8)), kind)


def draw(page: Page, *strokes: Stroke) -> None:
    box = page.locator("#canvas").bounding_box()
    for stroke in strokes:
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=3)
        page.mouse.up()


def bars(page: Page) -> list[str]:
    rows = page.get_by_role("table", name="Probability of each digit").locator("tbody").get_by_role("row")
    assert rows.get_by_role("rowheader").all_inner_texts() == [str(digit) for digit in range(10)]
    return [row.get_by_role("cell").last.inner_text() for row in rows.all()]


def pixels(canvas: Locator) -> list[int]:
    return canvas.evaluate(f"(it) => [...({READ})(it)]")


def expect_digit(page: Page, digit: int) -> None:
    """Wait until no request is pending and the page shows and announces `digit`."""
    expect(page.locator("#bars")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#digit")).to_have_text(str(digit))
    expect(page.locator("#spoken")).to_have_text(re.compile(rf"^{digit}, (> )?\d+\.\d %$"))


def expect_nothing(page: Page) -> None:
    expect(page.locator("#digit")).to_have_text("–")
    expect(page.locator("#confidence")).to_have_text("")
    expect(page.locator("#doubtful")).to_have_text("")
    assert bars(page) == [""] * 10
    assert not any(pixels(page.locator("#seen")))


def ink(page: Page) -> int:
    return page.locator("#canvas").evaluate(
        f"(it) => ({READ})(it).filter((value, i) => i % 4 === 0 && value === 0).length"
    )


def until(page: Page, condition: str) -> None:
    """Wait for a JavaScript condition. The page's policy forbids page.wait_for_function."""
    wait(lambda: page.evaluate(condition), PATIENCE, lambda: condition)


def status(page: Page) -> Locator:
    return page.get_by_role("status")


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name)


def test_drawn_digits_are_recognised_and_announced_once(page):
    page.evaluate("""() => {
      window.said = [];
      const region = document.getElementById("spoken");
      new MutationObserver(() => said.push(region.textContent)).observe(region, { childList: true });
    }""")
    widths = "(bars) => bars.map((bar) => 100 * parseFloat(getComputedStyle(bar, '::before').width) / bar.clientWidth)"
    for digit, strokes in STROKES.items():
        page.evaluate("() => { said.length = 0; }")
        draw(page, *strokes)
        expect_digit(page, digit)
        shares = [float(text.strip("> %")) for text in bars(page)]
        assert sum(shares) == pytest.approx(100, abs=0.6)  # ten values, each rounded to 0.1
        assert shares.index(max(shares)) == digit
        until(page, "document.getAnimations().length === 0")  # the bars no longer move
        assert page.locator(".bar").evaluate_all(widths) == pytest.approx(shares, abs=0.2)
        assert page.locator("#confidence").inner_text() == bars(page)[digit]
        said = page.evaluate("said")
        assert said[-1] == page.locator("#spoken").inner_text()
        assert len(said) <= 2  # a slow machine may announce the digit twice
        expect(status(page)).to_have_text("")
        page.keyboard.press("Escape")
        expect(page.locator("#spoken")).to_have_text("The paper is empty.")
    assert page.locator("#spoken").get_attribute("aria-live") == "polite"


def test_letter_is_reported_as_doubtful(page):
    words = "not sure that this is a digit"
    shown = page.get_by_text(words).filter(visible=True).and_(page.locator("main p:not(.aside)"))
    draw(page, *LETTER)
    expect(shown).to_be_visible()
    expect(page.locator("#spoken")).to_have_text(re.compile(rf"^\d, (> )?\d+\.\d %, {words}$"))
    expect(page.locator("#digit")).to_have_text(re.compile(r"^\d$"))  # the digit is still shown
    button(page, "Clear").click()
    expect(shown).to_have_count(0)
    draw(page, *STROKES[3])
    expect_digit(page, 3)
    expect(shown).to_have_count(0)
    button(page, "Undo").click()
    button(page, "Undo").click()
    expect(shown).to_be_visible()


def test_shows_the_pixels_that_the_model_was_given_and_how_to_ask_it(page, service):
    answers = []
    page.on("response", lambda response: answers.append(response) if "/predict" in response.url else None)
    draw(page, *STROKES[3])
    expect_digit(page, 3)
    rows = answers[-1].json()["predictions"][0]["pixels"]
    given = [grey for row in rows for grey in row]
    assert max(given) > 200
    shown = pixels(page.get_by_role("img", name="What the model saw, 28 by 28 pixels"))
    assert shown[0::4] == shown[1::4] == shown[2::4] == given
    assert set(shown[3::4]) == {255}
    command = f"curl --data-binary @digit.png -H 'Content-Type: image/png' {service.url}/predict"
    expect(page.locator("#curl")).to_have_text(command)
    address = page.get_by_role("link", name="openapi.json").evaluate("(it) => it.href")
    assert "openapi" in page.request.get(address).json()


def test_undo_restores_the_drawing_before_a_stroke_or_a_clear(page):
    undo, clear = button(page, "Undo"), button(page, "Clear")
    for control in (undo, clear):
        expect(control).to_be_disabled()
    draw(page, *STROKES[1])
    expect_digit(page, 1)
    before = bars(page), pixels(page.locator("#seen")), ink(page)
    draw(page, SCRIBBLE)
    expect(page.locator("#digit")).not_to_have_text("1")
    undo.click()
    expect_digit(page, 1)
    assert (bars(page), pixels(page.locator("#seen")), ink(page)) == before
    clear.click()
    expect_nothing(page)
    assert ink(page) == 0
    expect(page.locator("#spoken")).to_have_text("The paper is empty.")
    undo.click()  # undoes Clear
    expect_digit(page, 1)
    undo.click()
    expect_nothing(page)
    expect(undo).to_be_disabled()


# Return a File with the type image/`kind` and the bytes `content`, given in base64.
FILE = """([kind, content]) =>
  new File([Uint8Array.from(atob(content), (c) => c.charCodeAt())], `digit.${kind}`, { type: `image/${kind}` })"""


def drop(page: Page, kind: str, content: bytes) -> None:
    transfer = page.evaluate_handle(
        f"(it) => {{ const all = new DataTransfer(); all.items.add(({FILE})(it)); return all; }}",
        [kind, base64.b64encode(content).decode()],
    )
    for event in ("dragover", "drop"):
        page.locator("#canvas").dispatch_event(event, {"dataTransfer": transfer})


def choose(page: Page, kind: str, content: bytes) -> None:
    with page.expect_file_chooser() as chooser:
        button(page, "Choose a picture").click()
    chooser.value.set_files({"name": f"digit.{kind}", "mimeType": f"image/{kind}", "buffer": content})


def paste(page: Page, kind: str, content: bytes) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        f"(it) => navigator.clipboard.write([new ClipboardItem({{ [`image/${{it[0]}}`]: ({FILE})(it) }})])",
        [kind, base64.b64encode(content).decode()],
    )
    page.keyboard.press("Control+V")


@pytest.mark.parametrize(("give", "kind"), [(drop, "png"), (drop, "jpeg"), (choose, "webp"), (paste, "png")])
def test_dropped_chosen_or_pasted_picture_is_shown_and_sent_unchanged_until_a_stroke(visit, enlarged, give, kind):
    page = visit(
        script="const send = fetch; window.fetch = (to, how) => { window.sent = how.body; return send(to, how); }"
    )
    for index, digit in ((0, 7), (2, 1)):
        content = enlarged(index, kind)
        give(page, kind, content)
        expect_digit(page, digit)
        expect(page.get_by_role("img", name="Paper: the picture")).to_be_visible()
        assert ink(page) > 100_000  # the black background of MNIST's image counts as ink
        sent = page.evaluate("async () => [sent.type, ...new Uint8Array(await sent.arrayBuffer())]")
        assert give is paste or sent == [f"image/{kind}", *content]  # the clipboard encodes a picture again
    before = bars(page), ink(page)
    draw(page, *STROKES[3])  # replaces the picture by a drawing
    expect_digit(page, 3)
    assert ink(page) < before[1]
    button(page, "Undo").click()
    expect_digit(page, 1)
    assert (bars(page), ink(page)) == before


def test_file_that_is_not_a_picture_is_refused_with_a_message(visit):
    page = visit(expected=("status of 422",))
    draw(page, *STROKES[7])
    expect_digit(page, 7)
    before = bars(page)
    drop(page, "svg+xml", b"seven")
    expect(status(page)).to_have_text("Expected a PNG, JPEG, WebP or GIF picture, found digit.svg+xml, image/svg+xml.")
    assert bars(page) == before  # the result of the drawing stays
    drop(page, "png", b"seven")
    expect(status(page)).to_have_text("Expected a PNG, JPEG, WebP or GIF picture, found 5 bytes of another format")
    expect_nothing(page)
    page.keyboard.press("Control+Z")
    expect_digit(page, 7)
    expect(status(page)).to_have_text("")


def test_one_request_at_a_time_and_only_the_last_drawing_is_shown(visit):
    page = visit(script=SLOW)
    draw(page, *STROKES[4])
    expect_digit(page, 4)
    shown = bars(page)
    assert page.evaluate("[most, waiting]") == [1, 0]
    page.keyboard.press("Escape")
    page.keyboard.press("Control+Z")
    until(page, "waiting > 0")  # the request is sent
    page.keyboard.press("Escape")
    until(page, "waiting === 0")
    page.wait_for_timeout(200)  # milliseconds, in which a wrong update would appear
    expect_nothing(page)
    expect(status(page)).to_have_text("")
    page.keyboard.press("Control+Z")
    expect_digit(page, 4)
    assert bars(page) == shown


def test_keyboard_reaches_every_control(page, enlarged):
    file = {"name": "digit.png", "mimeType": "image/png", "buffer": enlarged(0)}
    page.on("filechooser", lambda chooser: chooser.set_files(file))
    for name in ("Undo", "Clear", "Choose a picture"):
        page.keyboard.press("Tab")
        expect(button(page, name)).to_be_focused()
        assert button(page, name).evaluate("(it) => getComputedStyle(it).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect_digit(page, 7)
    for key in ("Escape", "Delete"):
        page.keyboard.press(key)
        expect_nothing(page)
        page.keyboard.press("Control+z")
        expect_digit(page, 7)
    button(page, "Clear").focus()
    page.keyboard.press("Enter")
    expect_nothing(page)
    expect(button(page, "Clear")).to_be_focused()  # Clear keeps the focus, although nothing is left to clear
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="openapi.json")).to_be_focused()


@pytest.mark.parametrize("width", [320, 768])
def test_fits_a_narrow_screen_and_accepts_touch(visit, width):
    page = visit(viewport={"width": width, "height": 700}, has_touch=True, is_mobile=True)
    box = page.locator("#canvas").bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in STROKES[1][0]]
    finger = page.context.new_cdp_session(page)
    for kind, point in [("touchStart", points[0]), *(("touchMove", point) for point in points[1:]), ("touchEnd", None)]:
        touches = [{"x": point[0], "y": point[1]}] if point else []
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
    expect_digit(page, 1)
    assert page.evaluate("scrollY") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for part in page.locator("h1, #canvas, button:visible, #digit, #confidence, #seen, tbody tr, pre, a").all():
        expect(part).to_be_visible()
        box = part.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


def test_asks_for_the_api_key_and_says_if_the_service_cannot_be_reached(visit, start):
    service = start(WEB_CONCURRENCY=1, API_KEY="a-secret")
    page = visit(service.url, expected=("status of 401", "net::ERR_CONNECTION_REFUSED"))
    field, use = page.get_by_label("API key"), button(page, "Use this key")
    expect(field).to_be_hidden()
    draw(page, *STROKES[1])
    expect(field).to_be_visible()
    expect(status(page)).to_have_text("This service asks for a key.")
    assert [field.get_attribute(name) for name in ("type", "autocomplete")] == ["password", "off"]
    field.fill("another")
    use.click()
    expect(status(page)).to_have_text("The service does not know this key.")
    field.fill("a-secret")
    field.press("Enter")
    expect_digit(page, 1)
    expect(field).to_be_hidden()
    expect(page.locator("#curl")).to_contain_text('-H "Authorization: Bearer $API_KEY"')
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    assert "a-secret" not in page.url
    service.stop()
    before = ink(page)
    draw(page, SCRIBBLE)
    expect(status(page)).to_contain_text("The service cannot be reached.")
    expect_nothing(page)
    assert ink(page) > before
