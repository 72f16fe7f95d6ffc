"""Other programs as clients: curl, wget, aria2c and wrk."""

from __future__ import annotations

import filecmp
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from iobatch.httpd.connection import Connection
from tests.support.batches import data
from tests.support.httpd import MODIFIED, Address, prose, serving
from tests.support.programs import tool
from tests.support.sockets import PATIENCE


@pytest.fixture
def wget() -> str:
    """Return the path of wget, or skip the test."""
    return tool("wget", "wget")


@pytest.fixture
def wrk() -> str:
    """Return the path of wrk, or skip the test."""
    return tool("wrk", "wrk")


def test_curl_fetches_files_of_all_sizes_over_one_connection(
    site: Path, curl: str, tmp_path: Path
) -> None:
    (site / "104857600").write_bytes(data(100 << 20))
    names = ("0", "1", "1024", "32768", "65536", "1048576", "104857600")
    with serving(site) as (_, (host, port)):
        result = subprocess.run(
            [curl, "-fsSv", "--remote-name-all", *(f"http://{host}:{port}/{n}" for n in names)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
    assert result.stderr.count("Re-using existing connection") == len(names) - 1
    for name in names:
        assert filecmp.cmp(tmp_path / name, site / name, shallow=False)


def test_curl_that_expects_100_continue_gets_the_refusal_without_it(
    curl: str, address: Address, tmp_path: Path
) -> None:
    """It waits for 100 (Continue) before it sends a large body."""
    (tmp_path / "body").write_bytes(bytes(4 << 20))
    result = subprocess.run(
        [curl, "-sS", "-T", tmp_path / "body", f"http://{address[0]}:{address[1]}/1"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert result.stdout == "405 Method Not Allowed\n"


def test_curl_decodes_a_hundred_responses_over_one_connection(
    site: Path, curl: str, address: Address, tmp_path: Path
) -> None:
    (site / "100000.txt").write_bytes(prose(100_000, seed=100_000))
    url = f"http://{address[0]}:{address[1]}/100000.txt"
    options = ["-fsS", "--compressed", "-w", "%{size_download} %{num_connects}\n"]
    result = subprocess.run(
        [curl, *options, *[url, f"-o{tmp_path}/text"] * 100],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    sizes, connects = zip(*map(str.split, result.stdout.splitlines()), strict=True)
    assert connects == ("1", *["0"] * 99)
    assert max(map(int, sizes)) < 60_000
    assert (tmp_path / "text").read_bytes() == prose(100_000, seed=100_000)


def test_curl_fetches_a_file_again_only_if_its_date_or_tag_has_changed(
    curl: str, address: Address, tmp_path: Path
) -> None:
    target = f"http://{address[0]}:{address[1]}/1024"

    def run(*options: str | Path) -> str:
        return subprocess.run(
            [curl, "-fsS", "-R", "-w", "%{http_code}", *options, "-o", tmp_path / "file", target],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        ).stdout

    tag = tmp_path / "tag"
    assert run("--etag-save", tag) == "200"
    assert (tmp_path / "file").read_bytes() == data(1024, seed=1024)
    assert run("--etag-compare", tag) == "304"
    assert run("-z", tmp_path / "file") == "304"
    os.utime(tmp_path / "file", (MODIFIED - 5, MODIFIED - 5))
    assert run("-z", tmp_path / "file") == "200"


def test_curl_resumes_a_download(curl: str, address: Address, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data(1 << 20, seed=1 << 20)[:12345])
    target = f"http://{address[0]}:{address[1]}/1048576"
    subprocess.run(
        [curl, "-fsS", "-C", "-", "-o", tmp_path / "file", target], timeout=PATIENCE, check=True
    )
    assert (tmp_path / "file").read_bytes() == data(1 << 20, seed=1 << 20)


def test_wget_resumes_a_download(wget: str, address: Address, tmp_path: Path) -> None:
    (tmp_path / "1048576").write_bytes(data(1 << 20, seed=1 << 20)[:12345])
    target = f"http://{address[0]}:{address[1]}/1048576"
    subprocess.run([wget, "-qc", target], cwd=tmp_path, timeout=PATIENCE, check=True)
    assert (tmp_path / "1048576").read_bytes() == data(1 << 20, seed=1 << 20)


def test_curl_resumes_a_download_of_text_that_it_lets_the_server_code(
    site: Path, curl: str, address: Address, tmp_path: Path
) -> None:
    """The file holds decoded text, and the rest comes from the uncoded form."""
    text = prose(100_000)
    (site / "large.txt").write_bytes(text)
    (tmp_path / "file").write_bytes(text[:12345])
    target = f"http://{address[0]}:{address[1]}/large.txt"
    result = subprocess.run(
        [
            *(curl, "-fsS", "--compressed", "-C", "-", "-o", tmp_path / "file"),
            *("-w", "%{http_code} %{size_download}", target),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert result.stdout == f"206 {len(text) - 12345}"
    assert (tmp_path / "file").read_bytes() == text


def test_wget_that_accepts_gzip_resumes_a_download_of_text(
    site: Path, wget: str, address: Address, tmp_path: Path
) -> None:
    text = prose(100_000)
    (site / "large.txt").write_bytes(text)
    (tmp_path / "large.txt").write_bytes(text[:12345])
    subprocess.run(
        [
            *(wget, "-qc", "--header", "Accept-Encoding: gzip"),
            f"http://{address[0]}:{address[1]}/large.txt",
        ],
        cwd=tmp_path,
        timeout=PATIENCE,
        check=True,
    )
    assert (tmp_path / "large.txt").read_bytes() == text


def test_aria2c_fetches_ranges_over_several_connections(site: Path, tmp_path: Path) -> None:
    aria2c = tool("aria2c", "aria2")
    content = data(16 << 20)
    (site / "large").write_bytes(content)
    with serving(site) as (_, (host, port)):
        subprocess.run(
            [
                *(aria2c, "-q", "-x4", "-s4", "-k1M", "--no-conf", "-d", tmp_path, "-o", "got"),
                f"http://{host}:{port}/large",
            ],
            timeout=PATIENCE,
            check=True,
        )
    assert (tmp_path / "got").read_bytes() == content


def is_caught(number: int, pid: int) -> bool:
    """Return whether a process has a handler of a signal."""
    match = re.search(r"SigCgt:\s+(\w+)", Path(f"/proc/{pid}/status").read_text())
    assert match
    return bool(int(match[1], 16) & 1 << number - 1)


def test_wrk_with_64_connections_sees_no_error(
    wrk: str, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGINT ends it when it has received many responses."""
    steps = []
    step = Connection.step

    def recorded(connection: Connection, now: float) -> int:
        steps.append(connection)
        return step(connection, now)

    monkeypatch.setattr(Connection, "step", recorded)
    url = f"http://{address[0]}:{address[1]}/1024"
    # It counts a response that takes longer than the timeout as an error.
    with subprocess.Popen(
        [wrk, "-t1", "-c64", "-d1000s", "--timeout", f"{PATIENCE:.0f}s", url],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        while not (len(steps) > 500 and is_caught(signal.SIGINT, process.pid)):
            assert process.poll() is None
            os.sched_yield()
        while process.poll() is None:  # it takes no notice of one before it begins to wait
            process.send_signal(signal.SIGINT)
            os.sched_yield()
        assert process.stdout is not None
        result = process.stdout.read()
    assert process.returncode == 0
    assert re.search(r"[1-9]\d* requests in", result)
    assert "errors" not in result
    assert "Non-2xx" not in result
