"""The gateway under load: what clients see while replicas are drained, restarted, killed, and while it is reloaded."""

import datetime
import http.client
import ipaddress
import socket
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def in_background(function, *arguments, **keywords):
    """Call it in a thread; `result()` waits for what it returned."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function(*arguments, **keywords)))
    thread.start()

    def result():
        thread.join()
        return found[0]

    return result


def test_no_request_fails_while_one_of_three_is_drained_and_restarted(gateway, replicas, load, until):
    first = replicas[0]
    clients = load(gateway)
    clients.more(8)
    gateway.tools.put("r1", "drain", "somebody")
    until(lambda: gateway.state()["r1"]["in_flight"] == 0)
    assert gateway.rotation("r1") == "draining"
    asked = len(first.get("/seen"))
    clients.more(8)
    assert len(first.get("/seen")) == asked
    first.kill()
    until(lambda: "L4" in gateway.state()["r1"]["check"])
    assert gateway.state()["r1"]["by"] == "somebody"  # drained still, although it is down as well
    clients.more(8)
    first.start()
    gateway.admit("r1")
    until(lambda: gateway.rotation("r1") == "in")
    until(lambda: first.get("/seen"))
    replies = clients.stop()
    assert [reply for reply in replies if not reply.good] == []
    assert {reply.replica for reply in replies} == {"r1", "r2", "r3"}


def test_of_a_killed_replica_only_what_ran_on_it_fails_and_it_leaves_rotation(gateway, replicas, load, until):
    streams = [in_background(gateway.ask, stream=True, tokens=40, pause=0.1) for _ in range(9)]
    until(lambda: sum(row["in_flight"] for row in gateway.state().values()) == 9)
    in_flight = gateway.state()["r1"]["in_flight"]
    assert in_flight == 3  # least connections
    replicas[0].kill()
    clients = load(gateway, 3)
    until(lambda: gateway.rotation("r1") == "down")
    failed = [reply for reply in (stream() for stream in streams) if not reply.good]
    assert len(failed) == in_flight
    assert {reply.replica for reply in failed} == {"r1"}
    assert [reply for reply in clients.stop() if not reply.good] == []


def test_a_request_that_a_replica_died_over_is_not_sent_to_the_next(gateway, replicas, until):
    asked = in_background(gateway.ask, tokens=100, pause=1)
    until(lambda: any(row["in_flight"] for row in gateway.state().values()))
    (name,) = [name for name, row in gateway.state().items() if row["in_flight"]]
    next(replica for replica in replicas if replica.name == name).kill()
    reply = asked()
    assert (reply.status, "ended before it answered" in reply.text) == (502, True)
    assert [replica.get("/seen") for replica in replicas if replica.name != name] == [[], []]


def test_without_any_replica_the_gateway_says_so(gateway, replicas, until):
    assert gateway.ask("GET", "/health").status == 200
    for replica in replicas:
        replica.kill()
    until(lambda: all(row["rotation"] == "down" for row in gateway.state().values()))
    assert gateway.ask("GET", "/health").status == 503
    reply = gateway.ask()
    assert (reply.status, "No replica can take the request" in reply.text) == (503, True)


def test_long_pauses_between_tokens_survive_up_to_the_timeout(make_gateway):
    gateway = make_gateway(gateway_request_timeout=6)
    slow = in_background(gateway.ask, stream=True, tokens=2, pause=4)
    plain = in_background(gateway.ask, tokens=1, pause=4)
    too_slow = in_background(gateway.ask, stream=True, tokens=2, pause=9)
    assert slow().good
    assert plain().good
    assert not too_slow().good


def test_a_client_that_hangs_up_costs_the_engine_nothing_more(gateway, replicas, until):
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        body = b'{"tokens": 1, "pause": 30}'
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        until(lambda: any(row["in_flight"] for row in gateway.state().values()))
    until(lambda: not any(row["in_flight"] for row in gateway.state().values()))


def test_a_reload_keeps_streams_and_what_is_drained(gateway, replicas, until):
    gateway.drain("r2")
    stream = in_background(gateway.ask, stream=True, tokens=40, pause=0.1)
    until(lambda: any(row["in_flight"] for row in gateway.state().values()))
    gateway.put(replicas, gateway_request_timeout=1800)
    gateway.reload()
    until(lambda: gateway.answers() and len(gateway.tools.workers()) == 2)
    # What an old process still serves counts, else a drain would end too early.
    assert sum(row["in_flight"] for row in gateway.state().values()) == 1
    assert gateway.rotation("r2") == "draining"
    assert {gateway.ask().replica for _ in range(6)} == {"r1", "r3"}
    assert stream().good
    until(lambda: len(gateway.tools.workers()) == 1)


def test_a_replica_that_moved_is_found_at_its_new_place_although_its_state_was_kept(gateway, replicas, until):
    moved = type(replicas[0])("r1", "127.0.0.9")
    try:
        gateway.drain("r2")
        gateway.drain("r3")
        gateway.put([moved, *replicas[1:]])
        gateway.reload()
        until(lambda: gateway.ask().replica == "r1" and moved.get("/seen"))
        assert gateway.rotation("r2") == "draining"
    finally:
        moved.kill()


def test_a_replica_that_is_not_there_cannot_be_drained(gateway):
    done = gateway.tool("drain", "r9")
    assert (done.returncode, done.stderr) == (1, "This gateway has no replica r9. It has r1, r2, r3.\n")


def test_without_a_gateway_its_tool_says_where_to_look(gateway):
    gateway.program.terminate()
    gateway.program.wait()
    done = gateway.tool("state")
    assert done.returncode == 1
    assert "See: systemctl status provision-gateway" in done.stderr


def test_prefix_balance_keeps_what_begins_alike_together(make_gateway, until):
    gateway = make_gateway(gateway_balance="prefix")

    def asked(prompt: str) -> str:
        """Who answers when nobody is busy: a replica with more than its share, even of one request, passes the next one on."""
        until(lambda: not any(one["in_flight"] for one in gateway.state().values()))
        return gateway.ask(prompt=prompt, tokens=1).replica

    for text in ("a", "b", "c", "d"):
        assert len({asked(text * 4000) for _ in range(4)}) == 1
    assert len({asked(f"{number}" * 4000) for number in range(20)}) > 1


@pytest.fixture
def locked(make_gateway, keys):
    return make_gateway(gateway_keys=keys, hostvars={"gpu": {"vllm_api_key": "key-of-the-engine-itself"}})


def test_keys_open_what_their_role_says_and_the_engine_gets_its_own(locked, replicas, keys):
    user, admin = (key["key"] for key in keys)
    assert locked.ask().status == 401
    assert locked.ask(key="not-a-key").status == 401
    assert locked.ask("GET", "/v1/models", key=user).status == 200
    for path in (
        "/metrics",
        "/version",
        "/v1/load_lora_adapter",
        "/v1/models/",
        "//metrics",
        "/reset_prefix_cache?x=/v1/models",
    ):
        assert locked.ask("GET", path, key=admin).status == 200, path
    assert locked.ask("GET", "/metrics", key=user).status == 403
    assert locked.ask(key=admin, tokens=1).good
    seen = [request["authorization"] for replica in replicas for request in replica.get("/seen")]
    assert seen == ["Bearer key-of-the-engine-itself"]


def test_a_key_has_its_limit_and_others_have_theirs(locked, keys):
    user, admin = (key["key"] for key in keys)
    assert [locked.ask("GET", "/v1/models", key=user).status for _ in range(5)] == [200, 200, 200, 429, 429]
    assert {locked.ask("GET", "/v1/models", key=admin).status for _ in range(8)} == {200}


def test_paths_that_are_not_on_the_list_are_closed_however_they_are_written(gateway):
    for path in ("/metrics", "/v1/models/../metrics", "/%6detrics", "//metrics", "/v1/load_lora_adapter", "/sleep"):
        assert gateway.ask("GET", path).status == 403, path
    assert gateway.ask("GET", "/v1/models?limit=1").status == 200


def certificate(name):
    """A self-signed one for an address, and its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=9))
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(name))])
    signed = made.add_extension(names, critical=False).sign(key, hashes.SHA256())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return signed.public_bytes(serialization.Encoding.PEM).decode(), key.private_bytes(*form).decode()


def test_with_a_certificate_clients_are_served_by_tls_alone(make_gateway):
    public, private = certificate("127.0.0.1")
    gateway = make_gateway(gateway_tls_certificate=public, gateway_tls_key=private)
    trusting = ssl.create_default_context(cadata=public)
    connection = http.client.HTTPSConnection("127.0.0.1", gateway.port, timeout=30, context=trusting)
    connection.request("GET", "/v1/models")
    assert connection.getresponse().status == 200
    connection.close()
    assert gateway.ask("GET", "/v1/models").error


def test_the_log_names_who_asked_and_never_the_key(locked, keys, until):
    for key in keys:
        locked.ask("GET", "/v1/models?secret=1", key=key["key"])
    locked.ask(key="a-wrong-key-that-somebody-typed")
    log = until(lambda: locked.log.read_text() if locked.log.read_text().count("status=") >= 3 else "")
    assert " team-a GET /v1/models status=200 " in log
    assert " ops GET /v1/models " in log
    for word in (*(key["key"] for key in keys), "key-of-the-engine-itself", "a-wrong-key", "secret=1"):
        assert word not in log
    files = "".join(path.read_text() for path in locked.folder.iterdir() if path.name != "upstream.map")
    for word in (*(key["key"] for key in keys), "key-of-the-engine-itself"):
        assert word not in files


def test_metrics_are_for_prometheus_on_a_port_of_their_own(make_gateway, free_port):
    port = free_port()
    make_gateway(gateway_metrics_port=port)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    # What docs/gateway.md tells to alert on.
    assert 'haproxy_backend_active_servers{proxy="replicas"} 3' in text
    assert 'haproxy_server_status{proxy="replicas",server="r1",state="DOWN"} 0' in text
    assert 'haproxy_backend_http_responses_total{proxy="replicas",code="5xx"} 0' in text
    assert 'haproxy_backend_current_queue{proxy="replicas"} 0' in text
    connection.request("GET", "/v1/models")
    assert connection.getresponse().status == 404
    connection.close()
