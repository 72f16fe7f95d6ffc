"""A browser: pages with their resources, sorted listings, and seeking."""

from __future__ import annotations

import os
import re
import socket
import wave
from contextlib import ExitStack
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from tests.support.httpd import MODIFIED, serving
from tests.support.programs import browse
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
    for name, size, age in (("a b", 30, 1), ("a  b", 30, 1), ("c1", 4, 4), ("d", 20, 3)):
        (site / "bare" / name).write_bytes(bytes(size))
        os.utime(site / "bare" / name, (MODIFIED - age, MODIFIED - age))
    (site / "bare" / "D").mkdir()
    (site / "sub" / "index.html").write_text(SORTER)
    with serving(site) as (_, (host, port)):
        result = browse(f"http://{host}:{port}/sub/", tmp_path / "profile")
    assert (
        'orders: Da  ba bc1d" \u2191"?sort=-name Ddc1a ba  b" \u2193"./ '
        'Dc1da  ba b" \u2191"?sort=-size Da ba  bdc1" \u2193"?sort=size '
        'Dc1da  ba b" \u2191"?sort=-date Da ba  bdc1" \u2193"?sort=date; wider: true'
    ) in result


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
