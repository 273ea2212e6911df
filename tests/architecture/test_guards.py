"""The test session itself: what conftest promises holds, in this process and in its children."""

import os
import socket
import subprocess
import sys
import threading

import pytest

OUTSIDE = "192.0.2.1"  # reserved for documentation: nobody answers there


def test_connections_leave_only_to_this_machine():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        accepted = threading.Thread(target=lambda: server.accept()[0].close())
        accepted.start()
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=5).close()
        accepted.join(5)
    for attempt in (
        lambda: socket.create_connection((OUTSIDE, 80), timeout=0.1),
        lambda: socket.socket().connect_ex((OUTSIDE, 80)),
        lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", (OUTSIDE, 53)),
        lambda: socket.getaddrinfo("example.org", 443),
    ):
        with pytest.raises(ConnectionError, match="loopback only"):
            attempt()


def test_children_are_blocked_too():
    code = f"import socket; socket.create_connection(({OUTSIDE!r}, 80), timeout=0.1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "loopback only" in done.stderr


def test_torch_takes_the_threads_it_is_given():
    import torch

    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
