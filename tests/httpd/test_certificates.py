"""Certificates: files that cannot be used, and self-signed ones."""

from __future__ import annotations

import http.client
import os
import re
import ssl
from typing import TYPE_CHECKING

import pytest

from tests.support.batches import data
from tests.support.httpd import Keys, address_of, program, run_httpd
from tests.support.programs import environment
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path


def test_unusable_certificate_or_key_is_reported_in_one_line(
    site: Path, keys: Keys, tmp_path: Path
) -> None:
    (tmp_path / "text").write_bytes(b"text")
    for pair in (
        (tmp_path / "nothing", keys.key),
        (keys.certificate, tmp_path / "text"),
        (keys.certificate, tmp_path),
    ):
        result = run_httpd(site, "--tls", *pair)
        assert result.returncode == 2
        assert re.fullmatch(r"iobatch\.httpd: --tls [^\n]+: [\w ,]+\n", result.stderr)


@pytest.mark.usefixtures("openssl")
def test_self_signed_certificate_names_the_loopback_address(site: Path) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with program(site, "--self-signed") as (_, url):
        client = http.client.HTTPSConnection(*address_of(url), timeout=PATIENCE, context=context)
        client.request("GET", "/1024")
        assert client.getresponse().read() == data(1024, seed=1024)
        client.close()
        pem = ssl.get_server_certificate(address_of(url), timeout=PATIENCE)
    trusting = ssl.create_default_context(cadata=pem)
    assert any(
        ("IP Address", "127.0.0.1") in each["subjectAltName"]  # type: ignore[operator]
        for each in trusting.get_ca_certs()
    )


def test_self_signed_without_openssl_is_reported_in_one_line(site: Path, tmp_path: Path) -> None:
    result = run_httpd(site, "--self-signed", env=environment(PATH=os.fspath(tmp_path)))
    assert result.returncode == 2
    assert result.stderr == "iobatch.httpd: --self-signed: openssl: No such file or directory\n"


@pytest.mark.usefixtures("openssl")
def test_failure_of_openssl_is_reported_in_one_line(site: Path) -> None:
    result = run_httpd(site, "--self-signed", "--bind", "localhost,IP:none")
    assert result.returncode == 2
    assert re.fullmatch(r"iobatch\.httpd: --self-signed: openssl failed: .+\n", result.stderr)
