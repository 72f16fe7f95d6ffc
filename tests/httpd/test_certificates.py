"""Certificates: files that cannot be used, and self-signed ones."""

from __future__ import annotations

import errno
import http.client
import os
import re
import signal
import ssl
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from iobatch.httpd.tls import self_signed_context, tls_context
from tests.support.batches import data
from tests.support.httpd import Keys, address_of, program, run_httpd
from tests.support.programs import environment
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path


def test_unusable_certificate_or_key_is_reported_in_one_line(
    site: Path, keys: Keys, tmp_path: Path
) -> None:
    """Where a file can't be read, it is named."""
    text, missing = tmp_path / "text", tmp_path / "missing"
    text.write_bytes(b"text")
    unusable = "not a certificate and its private key without a passphrase"
    for pair, reason in (
        ((missing, keys.key), f"{missing}: No such file or directory"),
        ((keys.certificate, missing), f"{missing}: No such file or directory"),
        ((keys.certificate, tmp_path), f"{tmp_path}: Is a directory"),
        ((keys.certificate, text), unusable),
    ):
        result = run_httpd(site, "--tls", *pair)
        assert result.returncode == 2
        assert result.stderr == f"iobatch.httpd: --tls {pair[0]} {pair[1]}: {reason}\n"


def test_error_of_files_that_can_be_opened_is_raised_as_it_is(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", failing)
    with pytest.raises(OSError, match="Input/output error"):
        tls_context(str(keys.certificate), str(keys.key))


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
def test_self_signed_certificate_names_an_ipv6_address_without_its_zone() -> None:
    context = self_signed_context({"fe80::1%eth0", "localhost"})
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    client = trusting.wrap_bio(outgoing, incoming)
    for side in (client, server, client):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    der = client.getpeercert(binary_form=True)
    assert der
    names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.IPAddress) == [ip_address("fe80::1")]
    assert names.value.get_values_for_type(x509.DNSName) == ["localhost"]


@pytest.mark.usefixtures("openssl")
@pytest.mark.parametrize("child_handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_failure_of_openssl_is_reported_in_one_line(
    site: Path, child_handler: signal.Handlers
) -> None:
    """Where SIGCHLD is ignored, the exit status of a child is lost."""
    result = run_httpd(
        site,
        "--self-signed",
        "--bind",
        "localhost,IP:none",
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, child_handler),
    )
    assert result.returncode == 2
    assert re.fullmatch(r"iobatch\.httpd: --self-signed: openssl failed: .+\n", result.stderr)
