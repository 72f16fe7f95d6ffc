"""Range requests to the file server, by hand and by clients that fetch files in parts."""

from __future__ import annotations

import email
import os
import random
import re
import socket
import subprocess
import wave
from contextlib import ExitStack
from email.utils import formatdate
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from tests.helpers import PATIENCE, data
from tests.httpd_helpers import (
    MODIFIED,
    TAG,
    browse,
    exchange,
    get,
    make_site,  # noqa: F401
    serve_site,  # noqa: F401
    serving,
    split,
    tag_of,
    tagged,
    tool,
)

# isort: split
from ranges import MAX_RANGES, spans

if TYPE_CHECKING:
    from pathlib import Path

    from tests.httpd_helpers import Address, Response

WHOLE = data(65536, seed=65536)
DATE = formatdate(MODIFIED, usegmt=True)


@pytest.mark.parametrize(
    ("value", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, 65536),
        ("bytes=65535-", 65535, 65536),
        ("bytes=-1", 65535, 65536),
        ("bytes=-100000", 0, 65536),
        ("bytes=1000-40000", 1000, 40001),
        ("bytes=60000-99999999999999999999999", 60000, 65536),
        ("BYTES=5-6", 5, 7),
        ("bytes= 5-6 ,", 5, 7),
        ("bytes=5-6,70000-", 5, 7),
        ("bytes=000000000000000000000000005-6", 5, 7),
    ],
)
def test_single(site: Path, address: Address, value: str, start: int, stop: int) -> None:
    """One range gives that part, and says which."""
    response = get(address, "/65536", Range=value)
    assert response.status == 206
    assert response.body == WHOLE[start:stop]
    assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/65536"
    assert response.headers["ETag"] == tag_of(site / "65536")
    assert response.headers["Content-Type"] == "application/octet-stream"


def parts(response: Response) -> list[tuple[str, bytes]]:
    """Take a multipart response apart."""
    header = f"Content-Type: {response.headers['Content-Type']}\r\n\r\n".encode()
    message = email.message_from_bytes(header + response.body)
    assert message.get_content_type() == "multipart/byteranges"
    boundary = message.get_boundary()
    assert boundary
    assert response.body.endswith(f"\r\n--{boundary}--\r\n".encode())
    found = []
    for piece in response.body.split(f"--{boundary}".encode())[1:-1]:
        head, _, body = piece.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
        assert fields["Content-Type"] == "application/octet-stream"
        found.append((fields["Content-Range"], body.removesuffix(b"\r\n")))
    return found


def test_multiple(address: Address) -> None:
    """Several ranges come as one body of as many parts, in the order that was asked for."""
    response = get(address, "/65536", Range="bytes=-10, 0-0,100-50000,70000-,7-7")
    assert response.status == 206
    assert "Content-Range" not in response.headers
    assert parts(response) == [
        ("bytes 65526-65535/65536", WHOLE[-10:]),
        ("bytes 0-0/65536", WHOLE[:1]),
        ("bytes 100-50000/65536", WHOLE[100:50001]),
        ("bytes 7-7/65536", WHOLE[7:8]),
    ]


def test_boundaries_differ(address: Address) -> None:
    """Nobody can know the boundary, so no file can have it."""
    first, second = (get(address, "/65536", Range="bytes=0-0,2-2").body for _ in range(2))
    assert first != second


@pytest.mark.parametrize("value", ["bytes=65536-", "bytes=-0", "bytes=70000-80000,-0"])
def test_unsatisfiable(address: Address, value: str) -> None:
    """Where nothing is, nothing can be had; the answer says how long the file is."""
    response = get(address, "/65536", Range=value)
    assert response.status == 416
    assert response.headers["Content-Range"] == "bytes */65536"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=a-b",
        "bytes=5-4",
        "bytes=1-2-3",
        "bytes=+1-2",
        "bytes=1 - 2",
        "bytes=0-1,x",
        "lines=0-1",
        "bytes=0-1, bytes=2-3",
        "bytes=0-,0-",
        "bytes=0-,5-5",
        "bytes=" + ",".join(["0-0"] * (MAX_RANGES + 1)),
        "bytes=" + ",".join(f"5-{i}" for i in range(6, 1300)),
    ],
)
def test_ignored(address: Address, value: str) -> None:
    """What makes no sense, or is more than the whole (CVE-2011-3192), gets the whole."""
    response = get(address, "/65536", Range=value)
    assert response.status == 200
    assert response.body == WHOLE


def test_empty_file(address: Address) -> None:
    """A file without bytes is sent as a whole."""
    for value in ("bytes=0-", "bytes=-5", "bytes=0-0"):
        assert get(address, "/0", Range=value).status == 200


def test_head(address: Address) -> None:
    """Ranges are for GET."""
    response = get(address, "/65536", "HEAD", Range="bytes=0-0")
    assert (response.status, response.headers["Content-Length"]) == (200, "65536")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If_Range": TAG}, 206),
        ({"If_Range": f"W/{TAG}"}, 200),
        ({"If_Range": '"other"'}, 200),
        ({"If_Range": "*"}, 200),
        ({"If_Range": DATE}, 206),
        ({"If_Range": formatdate(MODIFIED + 1, usegmt=True)}, 200),
        ({"If_Range": formatdate(MODIFIED - 1, usegmt=True)}, 200),
        ({"If_Range": "yesterday"}, 200),
        ({"If_None_Match": TAG}, 304),
        ({"If_Match": TAG}, 206),
        ({"If_Match": '"other"', "If_Range": TAG}, 412),
        ({"If_Unmodified_Since": DATE, "If_Range": '"other"'}, 200),
    ],
)
def test_conditions(site: Path, address: Address, headers: dict[str, str], status: int) -> None:
    """Conditions come before the range, and If-Range gives the whole when the file is another."""
    headers = tagged(headers, site / "65536")
    response = get(address, "/65536", Range="bytes=1-5", **headers)
    assert response.status == status
    if status == 200:
        assert response.body == WHOLE
    if status == 206:
        assert response.body == WHOLE[1:6]


def test_pipelined(address: Address) -> None:
    """Parts of all kinds keep their order on one connection."""
    values = ["bytes=0-9", "bytes=1-1,3-3", "bytes=99999-", "bytes=60000-", "x=1"] * 10
    raw = b"".join(
        f"GET /65536 HTTP/1.1\r\nHost: x\r\nRange: {value}\r\n\r\n".encode() for value in values
    )
    answers = split(exchange(address, raw))
    assert [answer.status for answer in answers] == [206, 206, 416, 206, 200] * 10
    assert answers[-2].body == WHOLE[60000:]


def test_against_a_model() -> None:
    """Whatever is asked for, what comes is inside the file, and no more than it has."""
    rng = random.Random(1)
    seen = set()
    for _ in range(20000):
        size = rng.randrange(20)
        specs = []
        for _ in range(rng.randrange(1, 4)):
            first = rng.choice(["", str(rng.randrange(25))])
            specs.append(f"{first}-{rng.choice(['', str(rng.randrange(25))])}")
        found = spans(f"bytes={','.join(specs)}".encode(), size)
        seen.add(type(found) if found is None else min(len(found), 2))
        model = [expected(spec, size) for spec in specs]
        if size == 0 or "bad" in model:
            assert found is None
        else:
            wanted = [(each.start, len(each)) for each in model if each]  # type: ignore[union-attr]
            assert found == (wanted if sum(count for _, count in wanted) <= size else None)
    assert len(seen) == 4


def expected(spec: str, size: int) -> range | str:
    """Return what a spec asks for, by way of Python's own ranges."""
    first, last = spec.split("-")
    if (first and last and int(last) < int(first)) or not (first or last):
        return "bad"
    if not first:
        return range(size)[-int(last) :] if int(last) else range(0)
    return range(size)[int(first) : int(last) + 1 if last else None]


# Clients that are not ours


def test_curl(address: Address, tmp_path: Path) -> None:
    """Curl goes on where a download was cut off."""
    curl = tool("curl", "curl")
    (tmp_path / "file").write_bytes(data(1 << 20, seed=1 << 20)[:12345])
    target = f"http://{address[0]}:{address[1]}/1048576"
    subprocess.run(
        [curl, "-fsS", "-C", "-", "-o", tmp_path / "file", target], timeout=PATIENCE, check=True
    )
    assert (tmp_path / "file").read_bytes() == data(1 << 20, seed=1 << 20)


def test_wget(address: Address, tmp_path: Path) -> None:
    """And so does wget."""
    wget = tool("wget", "wget")
    (tmp_path / "1048576").write_bytes(data(1 << 20, seed=1 << 20)[:12345])
    target = f"http://{address[0]}:{address[1]}/1048576"
    subprocess.run([wget, "-qc", target], cwd=tmp_path, timeout=PATIENCE, check=True)
    assert (tmp_path / "1048576").read_bytes() == data(1 << 20, seed=1 << 20)


def test_aria2c(site: Path, tmp_path: Path) -> None:
    """aria2c fetches parts over several connections at once."""
    aria2c = tool("aria2c", "aria2")
    content = data(16 << 20)
    (site / "large").write_bytes(content)
    with serving(site) as (_, (host, port)):
        subprocess.run(
            [
                aria2c,
                "-q",
                "-x4",
                "-s4",
                "-k1M",
                "--no-conf",
                "-d",
                tmp_path,
                "-o",
                "got",
                f"http://{host}:{port}/large",
            ],
            timeout=PATIENCE,
            check=True,
        )
    assert (tmp_path / "got").read_bytes() == content


SEEKER = """<!DOCTYPE html>
<audio src="sound.wav" preload="metadata"></audio>
<img src="{judge}/wait">
<script>
const audio = document.querySelector("audio");
audio.onloadedmetadata = () => {{ audio.currentTime = 500; }};
audio.onseeked = () => {{
  const starts = Array.from({{ length: audio.buffered.length }}, (_, i) => audio.buffered.start(i));
  new Image().src = "{judge}/seen-" + audio.currentTime + "-" + (Math.max(...starts) > 400);
}};
</script>
"""


def test_seeking(site: Path, tmp_path: Path) -> None:
    """A browser that jumps far ahead in a sound fetches what is there, not what is before it."""
    with wave.open(os.fspath(site / "sound.wav"), "wb") as sound:
        sound.setparams((2, 2, 44100, 0, "NONE", ""))
        sound.writeframes(bytes(4 * 44100 * 600))
    seen: list[bytes] = []

    def judge(listener: socket.socket) -> None:
        # A page is not loaded before its image is: that waits for what the script has to say.
        with ExitStack() as stack:
            while not seen:
                sock = stack.enter_context(listener.accept()[0])
                sock.settimeout(PATIENCE)
                seen.extend(re.findall(rb"GET /seen-(\S+)", sock.recv(4096)))

    with serving(site) as (_, (host, port)), socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        thread = Thread(target=judge, args=(listener,))
        thread.start()
        judged = f"http://127.0.0.1:{listener.getsockname()[1]}"
        (site / "index.html").write_text(SEEKER.format(judge=judged))
        browse(f"http://{host}:{port}/", tmp_path / "profile")
        thread.join(PATIENCE)
    assert seen == [b"500-true"]
