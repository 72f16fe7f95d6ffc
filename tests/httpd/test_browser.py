"""A browser: pages with their resources, sorted listings, and seeking."""

from __future__ import annotations

import json
import os
import re
import socket
import wave
from contextlib import ExitStack
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from iobatch.httpd.headerfields import HeaderFields, parse_rule
from tests.support.httpd import MODIFIED, serving
from tests.support.programs import browse, tool
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("chromium")  # skips before a server or thread runs

PAGE = """<!DOCTYPE html>
<html><head><link rel="stylesheet" href="style.css"><title>Page</title></head><body>
<img src="red.svg"><img src="sub/blue%20square.svg">
<script src="script.js"></script></body></html>
"""
SQUARE = """<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64">
<rect width="64" height="64" fill="{}"/></svg>
"""


def test_browser_loads_a_page_with_its_style_sheet_script_and_images(
    site: Path, tmp_path: Path
) -> None:
    (site / "index.html").write_text(PAGE)
    (site / "style.css").write_text("body { margin-left: 7px }")
    (site / "script.js").write_text(
        """addEventListener("load", () => {
            const widths = Array.from(document.images, image => image.naturalWidth);
            const margin = getComputedStyle(document.body).marginLeft;
            document.body.textContent = "loaded: " + widths + " " + margin;
        });"""
    )
    (site / "red.svg").write_text(SQUARE.format("red"))
    (site / "sub" / "blue square.svg").write_text(SQUARE.format("blue"))
    with serving(site) as (_, (host, port)):
        page = browse(f"http://{host}:{port}/", tmp_path / "profile")
    assert "loaded: 64,64 7px" in page


APPLICATION = """<!DOCTYPE html>
<body>
<script>
const statuses = [["/api", "application/json"], ["/x.js", "*/*"], ["/y", "*/*"]].map(
  ([path, accept]) => {
    const request = new XMLHttpRequest();
    request.open("GET", path, false);
    request.setRequestHeader("Accept", accept);
    request.send();
    return request.status;
  });
document.body.textContent = location.pathname + " shows " + statuses;
</script>
"""


def test_browser_shows_an_application_at_each_of_its_addresses(
    chromium: str, site: Path, tmp_path: Path
) -> None:
    (site / "app.html").write_text(APPLICATION)
    with serving(site, spa="app.html") as (_, (host, port)):
        page = browse(f"http://{host}:{port}/users/7", tmp_path / "profile")
    assert "/users/7 shows 404,404,200" in page


ORDERS = ["./", "?sort=-name", "?sort=size", "?sort=-size", "?sort=date", "?sort=-date"]
SORTER = f"""<!DOCTYPE html>
{"".join(f'<iframe src="../bare/{query}"></iframe>' for query in ORDERS)}
<script>
onload = () => {{
  const orders = Array.from(frames, ({{ document: page }}) => {{
    const names = [...page.querySelectorAll("tbody a")].map(a => a.textContent).join("");
    const mark = page.querySelector("th[aria-sort] a");
    return names + getComputedStyle(mark, "::after").content + mark.getAttribute("href");
  }});
  const widths = [...frames[0].document.querySelectorAll("bdi")].map(each => each.offsetWidth);
  document.body.textContent = "orders: " + orders.join(" ") + "; wider: " + (widths[3] > widths[4]);
}};
</script>
"""


def test_browser_shows_each_order_with_its_mark_and_all_blanks(
    chromium: str, site: Path, tmp_path: Path
) -> None:
    """An arrow has no text for a screen reader, which reads aria-sort."""
    for name, size, age in (("a b", 30, 1), ("a  b", 30, 1), ("c1", 4, 4), ("d", 20, 3)):
        (site / "bare" / name).write_bytes(bytes(size))
        os.utime(site / "bare" / name, (MODIFIED - age, MODIFIED - age))
    (site / "bare" / "D").mkdir()
    (site / "sub" / "index.html").write_text(SORTER)
    with serving(site) as (_, (host, port)):
        result = browse(f"http://{host}:{port}/sub/", tmp_path / "profile")
    assert (
        'orders: Da  ba bc1d" \u2191" / ""?sort=-name Ddc1a ba  b" \u2193" / ""./ '
        'Dc1da  ba b" \u2191" / ""?sort=-size Da ba  bdc1" \u2193" / ""?sort=size '
        'Dc1da  ba b" \u2191" / ""?sort=-date Da ba  bdc1" \u2193" / ""?sort=date; wider: true'
    ) in result


FRAME = """<!DOCTYPE html>
<iframe src="../bare/"></iframe>
<script>
onload = () => {
  const page = frames[0].document;
  const shown = page.querySelector("[role=search]").offsetHeight > 0;
  const style = getComputedStyle(page.querySelector("table")).borderCollapse;
  document.body.textContent = `filter: ${shown}, style: ${style}`;
};
</script>
"""
# As the manual says.
ENOUGH = "style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("", "filter: false, style: separate"), (ENOUGH, "filter: true, style: collapse")],
    ids=["self", "inline"],
)
def test_listing_needs_its_style_and_script_in_the_policy(
    chromium: str, site: Path, tmp_path: Path, policy: str, expected: str
) -> None:
    (site / "bare" / "file").write_bytes(b"x")
    (site / "sub" / "index.html").write_text(FRAME)
    rule = parse_rule(f"/bare/* Content-Security-Policy: default-src 'self'; {policy}".rstrip())
    with serving(site, header_fields=HeaderFields([rule])) as (_, (host, port)):
        result = browse(f"http://{host}:{port}/sub/", tmp_path / "profile")
    assert expected in result


# The second frame runs no scripts; the third is as wide as a phone.
READER = """<!DOCTYPE html>
<iframe src="bare/" width="900"></iframe>
<iframe src="bare/" width="900" sandbox="allow-same-origin"></iframe>
<iframe src="bare/" width="390"></iframe>
<script>
onload = () => {
  const documents = Array.from(document.querySelectorAll("iframe"), each => each.contentDocument);
  const [wide, plain, narrow] = documents;
  const visible = (page, selector) =>
    Array.from(page.querySelectorAll(selector)).filter(each => each.offsetHeight);
  const texts = (page, selector) => visible(page, selector).map(each => each.textContent);
  const type = (page, text) => {
    const box = page.querySelector("input");
    box.value = text;
    box.dispatchEvent(new InputEvent("input"));
  };
  const press = (page, key, options) =>
    page.querySelector("input").dispatchEvent(new KeyboardEvent("keydown", { key, ...options }));
  const shown = page =>
    [texts(page, "tbody a").join(), page.querySelector("[aria-live]").textContent];
  const result = {
    times: documents.map(page => texts(page, "time")),
    headings: documents.map(page => texts(page, "th").join()),
    boxes: documents.map(page => visible(page, "input").length),
    reachable: visible(wide, "th a, input").map(each => each.tabIndex),
    filtered: {},
  };
  for (const text of ["", "A", "\u00c9", "e\u0301", "\u03a3\u0391\u03a3", ".txt", "no such"]) {
    for (const page of [wide, narrow]) type(page, text);
    result.filtered[text] = [wide, narrow].map(shown);
  }
  result.after = [["x", {}], ["Escape", { isComposing: true }], ["Escape", {}]].map(
    ([key, options]) => { press(wide, key, options); return shown(wide)[1]; });
  result.cleared = [...shown(wide), wide.querySelector("input").value];
  document.body.textContent = "result: " + JSON.stringify(result) + " :end";
};
</script>
"""
# Files, and when they were modified.
TIMES = {
    "a.txt": MODIFIED,
    "\u00c9.txt": 1_720_000_000,
    "e\u0301": 0,
    "\u03a3\u0391\u03a3\u0391": 0,
}


@pytest.fixture(name="reader", scope="module")
def read_listing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Give what a browser in Kathmandu shows of a listing, with and without scripts."""
    tool("chromium", "chromium")
    folder = tmp_path_factory.mktemp("reader")
    site = folder / "site"
    (site / "bare").mkdir(parents=True)
    for name, modified in TIMES.items():
        (site / "bare" / name).touch()
        os.utime(site / "bare" / name, (modified, modified))
    (site / "index.html").write_text(READER)
    with serving(site) as (_, (host, port)):
        page = browse(f"http://{host}:{port}/", folder / "profile", TZ="Asia/Kathmandu")
    match = re.search("result: (.*) :end", page)
    assert match, page
    result: dict[str, Any] = json.loads(match[1])
    return result


def test_times_and_their_heading_are_local_with_scripts_and_in_utc_without(
    reader: dict[str, Any],
) -> None:
    """Kathmandu is 5:45 hours ahead, and was 5:30 in 1970."""
    # In the order of the names.
    local = ["2023-11-15 03:58", "1970-01-01 05:30", "2024-07-03 15:31", "1970-01-01 05:30"]
    utc = ["2023-11-14 22:13", "1970-01-01 00:00", "2024-07-03 09:46", "1970-01-01 00:00"]
    assert reader["times"] == [local, utc, local]
    assert reader["headings"] == [
        "Name,Size,Modified",
        "Name,Size,Modified (UTC)",
        "Name,Size,Modified",
    ]


def test_filter_hides_names_without_the_text_whatever_its_case_and_normal_form(
    reader: dict[str, Any],
) -> None:
    every = "a.txt,e\u0301,\u00c9.txt,\u03a3\u0391\u03a3\u0391"
    expected = {
        "": [every, ""],
        "A": ["a.txt", "1 of 4 shown"],
        "\u00c9": ["e\u0301,\u00c9.txt", "2 of 4 shown"],
        "e\u0301": ["e\u0301,\u00c9.txt", "2 of 4 shown"],
        "\u03a3\u0391\u03a3": ["\u03a3\u0391\u03a3\u0391", "1 of 4 shown"],
        ".txt": ["a.txt,\u00c9.txt", "2 of 4 shown"],
        "no such": ["", "0 of 4 shown"],
    }
    assert reader["filtered"] == {text: [shown, shown] for text, shown in expected.items()}
    assert reader["boxes"] == [1, 0, 1], "without scripts there is no filter"


def test_keyboard_reaches_the_filter_and_the_headings_and_escape_clears_the_filter(
    reader: dict[str, Any],
) -> None:
    """An Escape that ends the composition of a character leaves the text."""
    assert reader["reachable"] == [0] * 4
    assert reader["after"] == ["0 of 4 shown", "0 of 4 shown", ""]
    assert reader["cleared"] == ["a.txt,e\u0301,\u00c9.txt,\u03a3\u0391\u03a3\u0391", "", ""]


SEEKER = """<!DOCTYPE html>
<audio src="sound.wav" preload="metadata"></audio>
<img src="{reports}/wait">
<script>
const audio = document.querySelector("audio");
audio.onloadedmetadata = () => {{ audio.currentTime = 500; }};
audio.onseeked = () => {{
  const starts = Array.from({{ length: audio.buffered.length }}, (_, i) => audio.buffered.start(i));
  new Image().src = "{reports}/sought-" + audio.currentTime + "-" + (Math.max(...starts) > 400);
}};
</script>
"""


def test_browser_that_seeks_in_a_sound_fetches_only_what_it_plays(
    site: Path, tmp_path: Path
) -> None:
    with wave.open(os.fspath(site / "sound.wav"), "wb") as sound:
        sound.setparams((2, 2, 44100, 0, "NONE", ""))
        sound.writeframes(bytes(4 * 44100 * 600))
    reported: list[bytes] = []

    def record_report(listener: socket.socket) -> None:
        # The page is loaded when its image is, so the browser waits for the script's report.
        with ExitStack() as stack:
            while not reported:
                sock = stack.enter_context(listener.accept()[0])
                sock.settimeout(PATIENCE)
                reported.extend(re.findall(rb"GET /sought-(\S+)", sock.recv(4096)))

    with serving(site) as (_, (host, port)), socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        thread = Thread(target=record_report, args=(listener,))
        thread.start()
        reports = f"http://127.0.0.1:{listener.getsockname()[1]}"
        (site / "index.html").write_text(SEEKER.format(reports=reports))
        browse(f"http://{host}:{port}/", tmp_path / "profile")
        thread.join(PATIENCE)
    assert reported == [b"500-true"]
