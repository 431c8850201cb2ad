"""The page in the system's Chromium, without a window: what people do on it, by mouse and by keyboard alone.

JAXGPT_SCREENSHOTS=docs/images writes the pictures of the documentation.
"""

# ruff: noqa: E402 - the libraries are an extra
import os
import re
import shutil
from pathlib import Path

import pytest

for library in ("starlette", "uvicorn", "pydantic", "prometheus_client", "playwright"):
    pytest.importorskip(library, reason=f"no {library}; the extras serve and dev have it")

from playwright.sync_api import expect, sync_playwright

from parity_tests.helpers.scripted_server import ANSWERS, Scripted, scripted_server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium; apt-get install chromium", allow_module_level=True)

CONTRAST = 4.5
"""WCAG 2.2 AA, for text."""
SCRIPT = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\"> **b** &amp;"

(QUESTION,) = ANSWERS


@pytest.fixture(scope="module")
def address():
    with scripted_server() as (found, _, _):
        yield found


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, address):
    """A new profile. Whatever the page asks of another host, and every error, fails the test."""
    context = chromium.new_context(permissions=["clipboard-read", "clipboard-write"])
    page, faults = context.new_page(), []
    page.set_default_timeout(10_000)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on("request", lambda asked: None if asked.url.startswith((address, "data:")) else faults.append(asked.url))
    page.goto(address)
    expect(page.locator("#title")).to_contain_text("scripted")
    yield page
    context.close()
    assert faults == []


def send(page, text):
    page.fill("#question", text)
    page.press("#question", "Enter")


def texts(page):
    return page.locator("#log .text").all_text_contents()


def expect_texts(page, *wanted):
    expect(page.locator("#log .text")).to_have_text(list(wanted))
    expect(page.locator("#send")).to_be_visible()


def test_send_edit_regenerate_copy_and_reload(page):
    send(page, "say hello 🙂")
    expect_texts(page, "say hello 🙂", "hello 🙂")
    expect(page.locator(".speed")).to_have_text(re.compile(r"^10 tokens · [\d.]+ tokens/s$"))
    send(page, "say more")
    expect_texts(page, "say hello 🙂", "hello 🙂", "say more", "more")

    page.locator("article.user").first.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit your message").fill("seeded")
    page.get_by_role("button", name="Send the edited message").click()
    expect(page.locator("#log .text")).to_have_count(2)
    expect(page.locator("#send")).to_be_visible()
    before = texts(page)[1]
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator("#log .text").nth(1)).not_to_have_text(before)
    expect(page.locator("#send")).to_be_visible()

    page.locator("article.assistant").get_by_role("button", name="Copy").click()
    expect(page.locator("article.assistant").get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == texts(page)[1]
    after = texts(page)
    page.reload()
    expect_texts(page, *after)


def test_an_answer_comes_in_pieces_and_stops(page):
    send(page, "slow 200")
    answer = page.locator("#log .text").nth(1)
    expect(answer).to_contain_text("2 3")
    assert "60" not in answer.text_content()
    expect(page.locator("#send")).to_be_hidden()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#send")).to_be_visible()
    stopped = answer.text_content()
    assert "60" not in stopped, "it ran to its end"
    page.wait_for_timeout(100)
    assert answer.text_content() == stopped
    page.reload()
    assert texts(page) == ["slow 200", stopped], "what had come is kept"


def test_text_is_only_ever_text(page):
    send(page, f"say {SCRIPT}")
    expect_texts(page, f"say {SCRIPT}", SCRIPT)
    page.reload()
    expect_texts(page, f"say {SCRIPT}", SCRIPT)
    assert page.locator("#log script, #log img, #conversations img").count() == 0
    assert "taken" not in page.title()


def test_without_a_mouse(page):
    page.keyboard.type("say one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect_texts(page, "say one\ntwo", "one\ntwo")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Control+A")
    page.keyboard.type("slow 200")
    page.keyboard.press("Enter")
    expect(page.locator("#log .text").nth(1)).to_contain_text("3")
    page.keyboard.press("Escape")
    expect(page.locator("#send")).to_be_visible()
    page.keyboard.press("Alt+n")
    expect(page.locator("#log .text")).to_have_count(0)
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"new", "open", "theme", "open-settings", "log", "question"} <= reached


def test_settings_are_sent_and_kept(page):
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System message").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Most tokens").fill("3")
    page.get_by_label("Seed").fill("41")
    page.keyboard.press("Escape")
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, "say hello")
    body = asked.value.post_data_json
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.5, 3, 41)
    expect_texts(page, "say hello", "hel")
    page.reload()
    expect(page.get_by_label("System message")).to_have_value("Be brief.")


def test_what_goes_wrong_is_said(page):
    send(page, "break now")
    expect(page.get_by_role("alert")).to_have_text("No answer: the server failed at this request; its log says why")
    expect(page.locator("#log .text")).to_have_text(["break now", "ok"])


def test_a_base_model_continues_a_text(chromium):
    backend = Scripted()
    backend.is_chat = False
    with scripted_server(backend) as (address, _, _):
        page = chromium.new_page()
        page.goto(address)
        expect(page.locator("#title")).to_contain_text("scripted")
        with page.expect_request("**/v1/completions") as asked:
            send(page, "say hello")
        expect_texts(page, "say hello", "hello")
        assert asked.value.post_data_json["max_tokens"] == 256
        page.close()


def test_a_conversation_longer_than_the_context_loses_its_oldest_turns(chromium):
    backend = Scripted()
    backend.n_context = 100
    with scripted_server(backend) as (address, _, _):
        page = chromium.new_page()
        page.goto(address)
        for i in range(4):  # a turn has 39 tokens, an answer may have 25
            send(page, f"say answer number {i}")
            expect(page.locator("#log .text").nth(2 * i + 1)).to_have_text(f"answer number {i}")
            expect(page.locator("#send")).to_be_visible()
        expect(page.get_by_role("alert")).to_contain_text("its oldest messages were left out")
        assert len(texts(page)) == 8 and backend.asked[-1][0][:19] == (256, 257, *b"say answer number")
        page.close()


SPLITS = """async () => {
  const { readEvents } = await import("/sse.js");
  const text = ': c\\r\\ndata: {"a":"é🙂"}\\r\\n\\r\\nevent: error\\r\\ndata: x\\r\\ndata:y\\n\\n'
    + 'data: z\\r\\rid: 1\\n\\ndata: [DONE]\\n\\ndata: cut';
  const bytes = new TextEncoder().encode(text);
  const stream = (parts) => new ReadableStream({ start(c) { for (const p of parts) c.enqueue(p); c.close(); } });
  const all = async (parts) => {
    const found = [];
    for await (const one of readEvents(stream(parts))) found.push(one);
    return found;
  };
  const found = new Set();
  for (let i = 0; i <= bytes.length; i++) found.add(JSON.stringify(await all([bytes.slice(0, i), bytes.slice(i)])));
  found.add(JSON.stringify(await all(Array.from(bytes, (_, i) => bytes.slice(i, i + 1)))));
  return [...found];
}"""


def test_events_split_at_every_byte_are_the_same_events(page):
    assert page.evaluate(SPLITS) == [
        '[{"event":"message","data":"{\\"a\\":\\"é🙂\\"}"},{"event":"error","data":"x\\ny"},'
        '{"event":"message","data":"z"},{"event":"message","data":"[DONE]"}]'
    ]


CONTRASTS = """() => {
  const rgb = (text) => { const c = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    c.fillStyle = text; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data]; };
  const light = (text) => { const [r, g, b] = rgb(text).slice(0, 3).map((v) => { v /= 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (e) => { for (; e; e = e.parentElement) { const found = getComputedStyle(e).backgroundColor;
    if (rgb(found)[3] === 255) return found; } return "white"; };
  const found = {};
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || e.matches("input, textarea");
    if (!own || !e.checkVisibility({ visibilityProperty: true })) continue;
    const pair = [light(getComputedStyle(e).color), light(ground(e))].sort((a, b) => b - a);
    found[`${e.tagName} ${e.id || e.className}`] = (pair[0] + 0.05) / (pair[1] + 0.05);
  }
  return found;
}"""


@pytest.mark.parametrize("look", ["desktop", "phone", "dark"])
def test_each_look_has_contrast_and_fits_its_width(page, look):
    page.set_viewport_size({"width": 390, "height": 780} if look == "phone" else {"width": 1100, "height": 720})
    if look == "dark":
        page.get_by_role("button", name="Dark").click()
    send(page, QUESTION)
    expect_texts(page, QUESTION, ANSWERS[QUESTION])
    if directory := os.environ.get("JAXGPT_SCREENSHOTS"):
        Path(directory).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{directory}/serve_{look}.png")
    send(page, f"say {'wide' * 60}")
    expect(page.locator("#send")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    seen = page.evaluate(CONTRASTS)
    if look == "phone":
        assert page.locator("#sidebar").is_hidden()
        page.get_by_role("button", name="Conversations").click()
        expect(page.locator("#sidebar")).to_be_visible()
        assert page.locator("#new").bounding_box()["height"] >= 44, "a finger's width"
    page.get_by_role("button", name="Settings").click()
    seen |= page.evaluate(CONTRASTS)
    assert len(seen) > 10
    assert {name: ratio for name, ratio in seen.items() if ratio < CONTRAST} == {}
