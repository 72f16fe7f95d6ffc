"""Arguments that a BatchWriter and its operations refuse."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest

from iobatch.aio import BatchWriter, WriteStatus
from tests.support.batches import batch_of
from tests.support.loops import (
    both_loops,
    full_writer,
    turns,
    writer_pair,
)
from tests.support.sockets import stream_pair


@both_loops
async def test_bad_arguments_raise_before_anything_changes() -> None:
    with writer_pair() as (writer, peer):
        batch = batch_of(b"abc")
        wrong: Any = "wrong"
        for error, arguments in [
            (ValueError, {"exactly": 4}),
            (ValueError, {"exactly": -1}),
            (TypeError, {"exactly": 1.0}),
            (ValueError, {"timeout": -1}),
            (ValueError, {"timeout": float("nan")}),
            (ValueError, {"stall_timeout": -1}),
            (TypeError, {"on_complete": wrong}),
            (TypeError, {"on_error": wrong}),
            (TypeError, {"on_complete": False}),
            (TypeError, {"on_error": ()}),
            (TypeError, {"on_complete": turns}),  # a coroutine function
            (TypeError, {"flags": wrong}),
            (TypeError, {"flags": None}),
            (TypeError, {"flags": 0.0}),
            (OverflowError, {"flags": 1 << 31}),
            (OverflowError, {"flags": -1 << 31}),
        ]:
            with pytest.raises(error):
                writer.write(batch, **arguments)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            writer.write(wrong)
        for call in (wrong, None), (print, wrong):
            with pytest.raises(TypeError):
                writer.write_buffer(b"abc", call[0], error_callback=call[1])
        assert batch.bytesleft == 3
        assert writer.pending == 0
        with pytest.raises(BlockingIOError):
            peer.recv(1)
        operation = writer.write(batch)
        for callback in wrong, turns:
            with pytest.raises(TypeError):
                operation.add_done_callback(callback)


@both_loops
async def test_wrong_types_raise_type_error_and_post_nothing() -> None:
    with writer_pair() as (writer, _):
        for post in (
            lambda: writer.write(b"abc", exactly=1),  # type: ignore[arg-type]
            lambda: writer.write_buffer(b"abc", None),  # type: ignore[arg-type]
            lambda: BatchWriter(writer.sock, timeout=...),  # type: ignore[arg-type]
        ):
            with pytest.raises(TypeError):
                post()
        assert writer.pending == 0


@both_loops
async def test_limit_may_be_any_number_from_one() -> None:
    with writer_pair(limit=2**70) as (writer, peer):
        assert await writer.write(batch_of(b"abc")) == 3
        assert peer.recv(10) == b"abc"


@both_loops
async def test_writer_refuses_blocking_and_tls_sockets_and_bad_limits() -> None:
    with stream_pair() as (sock, _):
        with pytest.raises(ValueError, match="non-blocking"):
            BatchWriter(sock)
        sock.setblocking(False)
        options: dict[str, Any]
        for options in (
            {"limit": 0},
            {"high_water": 0},
            {"timeout": -1.0},
            {"stall_timeout": -1.0},
        ):
            with pytest.raises(ValueError, match=r"at least 1|negative"):
                BatchWriter(sock, **options)
        for options in ({"limit": 1.5}, {"high_water": None}):
            with pytest.raises(TypeError, match="integer"):
                BatchWriter(sock, **options)
        context = ssl.create_default_context()
        with (
            context.wrap_socket(sock, server_hostname="x", do_handshake_on_connect=False) as conn,
            pytest.raises(TypeError, match="through"),
        ):
            BatchWriter(conn)


def test_writer_requires_a_running_loop() -> None:
    """WSASend's WSANOTINITIALISED is a RuntimeError."""
    with stream_pair() as (sock, _):
        sock.setblocking(False)
        with pytest.raises(RuntimeError, match="loop"):
            BatchWriter(sock)


@both_loops
async def test_cancel_with_an_unknown_kind_raises_and_changes_nothing() -> None:
    with full_writer() as (writer, _):
        operation = writer.write(batch_of(b"abc"))
        wrong: Any = "partly"
        for cancel in (operation.cancel, writer.cancel):
            with pytest.raises(ValueError, match="partly"):
                cancel(wrong)
        assert operation.status is WriteStatus.PENDING
        operation.cancel()
        with pytest.raises(ValueError, match="partly"):
            operation.cancel(wrong)


@both_loops
@pytest.mark.parametrize("sock", [7, None, "socket"])
async def test_writer_refuses_what_is_no_socket_object(sock: Any) -> None:
    with pytest.raises(TypeError, match="sock must be a socket object"):
        BatchWriter(sock)


@both_loops
async def test_writer_refuses_the_socket_of_a_transport() -> None:
    """Asyncio gives out a TransportSocket, which has no send."""
    with stream_pair("tcp4") as (ours, _):
        _, stream = await asyncio.open_connection(sock=ours.dup())
        with pytest.raises(TypeError, match="sock must be a socket object"):
            BatchWriter(stream.get_extra_info("socket"))
        stream.close()
        await stream.wait_closed()
