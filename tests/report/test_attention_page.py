# SPDX-License-Identifier: Apache-2.0
"""The page holds the numbers, loads nothing, cannot be broken by a text, and runs in a browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hftune.report.attention_page import attention_page, pack_weights, unpack_weights

NASTY = 'a </script><script>alert("b")</script> {{script}} {{title}} <!-- & \u2028'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def record(
    tokens: list[dict[str, Any]], *, causal: bool = False, hide: bool = False
) -> dict[str, Any]:
    T = len(tokens)
    scores = np.random.default_rng(0).normal(size=(2, 3, T, T), scale=2)
    if causal:
        scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
    shares = np.exp(scores)
    weights = (shares / shares.sum(-1, keepdims=True)).astype(np.float32)
    one = {"kind": "self", "causal": causal, "layers": [0, 1], "heads": 3, "weights": weights}
    return {
        "model": "runs/x",
        "task": "text-classification",
        "text": NASTY,
        "text_pair": None,
        "prediction": {"kind": "label", "scores": [{"name": "red", "probability": 0.75}]},
        "remarks": [],
        "hide_special": hide,
        "look_first": {"layer": 1, "head": 2, "share": 0.5},
        "maps": [{**one, "queries": tokens, "keys": tokens}],
    }


def tokens_of(*texts: str, segments: str = "") -> list[dict[str, Any]]:
    names = {"a": "text", "b": "text_pair", "g": "generated", "v": "virtual"}
    segments = segments or "a" * len(texts)
    return [
        {"text": text, "id": i, "special": text.startswith("["), "segment": names[segment]}
        for i, (text, segment) in enumerate(zip(texts, segments, strict=True))
    ]


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script":
            self.scripts[-1] += data


def test_packed_weights_are_off_by_less_than_they_are_shown_with() -> None:
    weights = np.linspace(0, 1, 20011, dtype=np.float32).reshape(-1, 1)
    back = unpack_weights(pack_weights(weights), weights.shape)
    assert np.abs(back - weights).max() < 0.00025
    small = weights < 0.01
    assert np.abs(back - weights)[small].max() < 0.000025
    assert back[0] == 0
    assert back[-1] == 1


def test_a_text_cannot_break_the_page() -> None:
    whole = record(tokens_of("[CLS]", NASTY, "b"))
    found = Elements(attention_page(whole))
    data, program = found.scripts
    read = json.loads(data)
    assert read["text"] == NASTY
    assert read["maps"][0]["keys"][1]["text"] == NASTY
    shown = unpack_weights(read["maps"][0]["weights"], (2, 3, 3, 3))
    np.testing.assert_allclose(shown, whole["maps"][0]["weights"], atol=2.5e-4)
    assert program.strip().startswith('"use strict"')
    assert [tag for tag, _ in found.tags].count("script") == 2


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = attention_page(record(tokens_of("a", "b")))
    found = Elements(page)
    outside = [
        (tag, key, value)
        for tag, attributes in found.tags
        for key, value in attributes.items()
        if key in ("src", "href", "srcset", "action") and not (value or "").startswith("data:")
    ]
    assert outside == []
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest|import\(", page)
    policy = next(a["content"] for _, a in found.tags if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_the_page_of_a_usual_model_is_a_few_megabytes() -> None:
    T = 128
    whole = record(tokens_of(*["word"] * T))
    scores = np.random.default_rng(0).normal(size=(6, 12, T, T), scale=2)
    shares = np.exp(scores)
    whole["maps"][0]["weights"] = (shares / shares.sum(-1, keepdims=True)).astype(np.float32)
    assert len(attention_page(whole).encode()) < 3e6


#: Uses the page as a reader does and writes down what it sees.
VISIT = """
<script>
(async () => {
  const seen = {}, wait = (ms) => new Promise((done) => setTimeout(done, ms));
  while (!document.documentElement.dataset.ready) await wait(20);
  const all = (query) => [...document.querySelectorAll(query)];
  const one = (query) => document.querySelector(query);
  const text = (query) => one(query).textContent;
  seen.start = text("#chosen");
  seen.thumbs = all("#thumbs button").length;
  seen.painted = all("#thumbs canvas").every((canvas) => canvas.width > 0);
  seen.tokens = all("#from-text .token").map((token) => token.textContent);
  seen.segments = all("#from-text .segment").map((part) => part.textContent);
  const press = (element, key) =>
    element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  all("#thumbs button")[0].click();
  seen.clicked = text("#chosen");
  press(all("#thumbs button")[0], "ArrowRight");
  seen.moved = [text("#chosen"), document.activeElement.title];
  const over = (element) =>
    element.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
  over(all("#from-text .token")[1]);
  seen.hovered = [text("#from-title"), text("#to-title")];
  const rows = (query) =>
    all(query).map((row) => [row.children[0].textContent, row.children[2].textContent]);
  seen.top = rows("#from-top li");
  seen.back = rows("#to-top li");
  all("#to-text .token")[2].click();
  over(all("#from-text .token")[0]);
  seen.kept = [text("#from-title"), text("#readout")];
  press(document.body, "Escape");
  over(all("#from-text .token")[0]);
  seen.released = text("#from-title");
  one("#hide").click();
  seen.hidden = all("#from-text .token").filter((token) => token.hidden).length;
  seen.note = text("#hidden-note").length > 0;
  one("#layer").value = 1;
  one("#layer").dispatchEvent(new Event("change"));
  one("#head").value = -1;
  one("#head").dispatchEvent(new Event("change"));
  seen.mean = text("#chosen");
  const matrix = one("#matrix").getBoundingClientRect();
  one("#matrix").focus();
  press(one("#matrix"), "ArrowDown");
  seen.matrix = [matrix.width > 50, text("#readout").length > 0];
  one("#look-first").click();
  seen.first = text("#chosen");
  const result = document.createElement("pre");
  result.id = "seen";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
})();
</script>
"""


def browse(page: Path, *options: str) -> tuple[str, list[str]]:
    """Return the page's elements after its scripts, and what the console said."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=20000",
            "--enable-logging=stderr", "--dump-dom", *options, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def seen_in(dom: str) -> dict[str, Any]:
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom[-2000:]
    seen: dict[str, Any] = json.loads(
        found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    )
    return seen


def visited(folder: Path, whole: dict[str, Any], steps: str) -> dict[str, Any]:
    """Open the page, run steps in it that fill ``seen``, and return that; nothing is complained of.

    Args:
        folder: Where the page is written.
        whole: What the page shows.
        steps: JavaScript; ``text(id)`` and ``all(query)`` read the page.
    """
    script = """<script>(async () => {
      const seen = {}, text = (id) => document.getElementById(id).textContent;
      const all = (query) => [...document.querySelectorAll(query)];
      const wait = () => new Promise((done) => setTimeout(done, 20));
      while (!document.documentElement.dataset.ready) await wait();
      STEPS
      document.body.append(Object.assign(document.createElement("pre"),
        { id: "seen", textContent: JSON.stringify(seen) }));
    })();</script></body>"""
    path = folder / "attention.html"
    page = attention_page(whole).replace("</body>", script.replace("STEPS", steps))
    path.write_text(page, "utf-8")
    dom, console = browse(path)
    assert console == []
    return seen_in(dom)


def shares(weights: np.ndarray, tokens: list[dict[str, Any]]) -> list[list[str]]:
    """What the page lists: names and percentages, the largest first."""
    order = np.argsort(-weights, kind="stable")
    return [
        [
            tokens[i]["text"].strip(),
            f"{p:.1f} %" if (p := 100 * weights[i]) < 9.95 else f"{p:.0f} %",
        ]
        for i in order
        if weights[i] > 0
    ][:6]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_works_in_a_browser(scheme: str, tmp_path: Path) -> None:
    tokens = tokens_of("[CLS]", " one", " </script>", "three", "[SEP]", segments="aaabb")
    whole = record(tokens)
    path = tmp_path / "attention.html"
    path.write_text(attention_page(whole).replace("</body>", VISIT + "</body>"), "utf-8")
    dark = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    dom, console = browse(path, dark)
    assert console == []
    seen = seen_in(dom)
    weights = whole["maps"][0]["weights"]
    assert seen["start"] == seen["first"] == "Layer 1, head 2"
    assert seen["thumbs"] == 2 * (3 + 1)
    assert seen["painted"]
    assert seen["tokens"] == ["[CLS]", "one", "</script>", "three", "[SEP]"]
    assert seen["segments"] == ["text", "text pair"]
    assert seen["clicked"] == "Layer 0, head 0"
    assert seen["moved"] == ["Layer 0, head 1", "layer 0, head 1"]
    assert seen["hovered"] == ["one attends to", "one is attended to by"]
    assert seen["top"] == shares(weights[0, 1, 1], tokens)
    assert seen["back"] == shares(weights[0, 1, :, 1], tokens)
    assert seen["kept"][0] == "</script> attends to"
    assert "</script>” attends to “[CLS]”: " in seen["kept"][1]
    assert seen["released"] == "[CLS] attends to"
    assert seen["hidden"] == 2
    assert seen["note"]
    assert seen["mean"] == "Layer 1, mean over heads"
    assert seen["matrix"] == [True, True]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_maps_that_are_not_square_work_in_a_browser(tmp_path: Path) -> None:
    """Prefix tuning has columns without rows; cross attention has other tokens in its rows."""
    tokens = tokens_of("<virtual 0>", " one", " two", "three", segments="vaag")
    prefix = record(tokens, causal=True)
    (one,) = prefix["maps"]
    one["queries"], one["weights"] = tokens[1:], one["weights"][:, :, 1:]
    cross = {**one, "kind": "cross", "queries": tokens_of("x", "y", "z")}
    prefix["maps"].append(cross)
    prefix["look_first"] = None
    seen = visited(tmp_path, prefix, """
      const over = (query, i) => document.querySelectorAll(query)[i]
        .dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
      seen.start = text("from-title");
      over("#from-text .token", 0);
      seen.virtual = [text("from-title"), text("from-hidden"), text("to-title")];
      const map = document.getElementById("map");
      map.value = 1;
      map.dispatchEvent(new Event("change"));
      over("#to-text .token", 2);
      over("#from-text .token", 1);
      seen.cross = [text("chosen"), text("from-title"), text("to-title")];
    """)  # fmt: skip
    assert seen["start"] == "three attends to"
    assert seen["virtual"][0] == "<virtual 0> attends to"
    assert "attends to nothing" in seen["virtual"][1]
    assert seen["virtual"][2] == "<virtual 0> is attended to by"
    assert seen["cross"] == [
        "Cross attention, layer 1, mean over heads", "z attends to", "one is attended to by",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_an_encoder_decoder_opens_where_to_look_first(tmp_path: Path) -> None:
    """At the cross attention, each row named by what is read and what is written there."""
    whole = record(tokens_of(" one", " two", "[E]"))
    (encoder,) = whole["maps"]
    answer = tokens_of("[P]", " uno", segments="gg")
    for token, following in zip(answer, [" uno", " dos"], strict=True):
        token["output"] = following
    encoder["kind"] = "encoder"
    decoder = {**encoder, "kind": "decoder", "causal": True, "queries": answer, "keys": answer}
    decoder["weights"] = np.tile(np.array([[1, 0], [0.5, 0.5]], np.float32), (2, 3, 1, 1))
    cross = {**encoder, "kind": "cross", "queries": answer}
    cross["weights"] = encoder["weights"][:, :, :2]
    whole["maps"] += [decoder, cross]
    whole["prediction"] = {"kind": "text", "scores": [{"name": "uno dos", "probability": None}]}
    whole["look_first"]["kind"] = "cross"
    seen = visited(tmp_path, whole, """
      seen.start = text("chosen");
      seen.maps = all("#map option").map((option) => option.textContent);
      seen.prediction = text("prediction");
      const token = all("#to-text .token")[1];
      token.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
      seen.row = text("from-title");
      seen.top = text("readout");
      seen.back = all("#to-top li").map((row) => row.children[0].textContent).sort();
      const map = document.getElementById("map");
      map.value = 1;
      map.dispatchEvent(new Event("change"));
      seen.decoder = [text("chosen"), text("from-title")];
      document.getElementById("look-first").click();
      seen.first = text("chosen");
    """)  # fmt: skip
    assert seen["start"] == seen["first"] == "Cross attention, layer 1, head 2"
    assert seen["maps"] == [
        "encoder: text to text", "decoder: answer to answer", "cross: answer to text",
    ]  # fmt: skip
    assert seen["prediction"] == "Written textuno dos"
    assert seen["row"] == "uno, where dos is written, attends to"
    assert seen["top"].startswith("“uno → dos” attends most to “")
    assert seen["back"] == ["[P] → uno", "uno → dos"]
    assert seen["decoder"][0] == "Decoder attention, layer 1, mean over heads"
    assert seen["decoder"][1] == "uno, where dos is written, attends to"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("entities", [False, True])
def test_a_taggers_words_show_their_tags(entities: bool, tmp_path: Path) -> None:
    tokens = tokens_of("[CLS]", " new", " york", " is")
    for token, tag in zip(tokens, [None, "B-city", "I-city", "O"], strict=True):
        token["output"] = tag
    whole = record(tokens)
    scores = [
        ("new", "B-city", 0.9),
        ("york", "I-city", 0.8),
        ("is", "O", 1.0),
        ("lost", None, None),
    ]
    whole["prediction"] = {
        "kind": "tags",
        "scores": [{"word": w, "name": n, "probability": p} for w, n, p in scores],
    }
    if entities:
        found = {"text": "new york", "entity": "city", "score": 0.85}
        whole["prediction"]["entities"] = [found]
    seen = visited(tmp_path, whole, """
      const texts = (query) => [...document.querySelectorAll(query)].map((one) => one.textContent);
      Object.assign(seen, { tokens: texts("#from-text .token"), rows: texts("#prediction li"),
        title: texts("#from-title") });
    """)  # fmt: skip
    assert seen["tokens"] == ["[CLS]", "newB-city", "yorkI-city", "is"]
    assert seen["title"] == ["york attends to"]
    assert seen["rows"] == (
        ["new york → city85 %"]
        if entities
        else ["new → B-city90 %", "york → I-city80 %", "is → O100 %"]
    )
