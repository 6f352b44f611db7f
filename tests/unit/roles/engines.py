"""Programs that answer as vLLM does, to stand in for replicas on the loopback."""

import http.client
import json
import multiprocessing
import socket
import time

import fake_vllm

FORK = multiprocessing.get_context("fork")  # starts at once


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what, seconds: float = 60):
    """Its first true answer; the machine that tests run on may be slow."""
    deadline = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)


class Replica:
    """A program that answers as vLLM does, on an address of its own."""

    def __init__(self, name: str, address: str):
        self.name, self.address, self.port = name, address, a_free_port()
        self.start()

    def start(self) -> None:
        self.program = FORK.Process(target=fake_vllm.serve, args=(self.name, self.address, self.port), daemon=True)
        self.program.start()
        wait_for(self.listens)

    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self.address, self.port)) == 0

    def kill(self) -> None:
        self.program.kill()
        self.program.join()

    def get(self, path: str):
        connection = http.client.HTTPConnection(self.address, self.port, timeout=10)
        connection.request("GET", path)
        text = connection.getresponse().read()
        connection.close()
        return json.loads(text) if text else None
