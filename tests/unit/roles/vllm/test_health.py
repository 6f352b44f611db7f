"""Progress, not a status code: what the program on each head tells the gateway of its engine."""

import http.client
import socket
import subprocess
import sys

import pytest
from programs import ROLES, imported, templar, trusted

PROGRAM = ROLES / "vllm/files/health.py"
IDLE = {"num_requests_running": 0.0, "num_requests_waiting": 0.0}
BUSY = {"num_requests_running": 3.0, "num_requests_waiting": 9.0}


@pytest.fixture
def health_program():
    return imported(PROGRAM)


@pytest.fixture
def judge(health_program):
    return health_program.Judge(60)


def tokens(state, count):
    return {"0": {**state, "generation_tokens_total": float(count), "prompt_tokens_total": 5.0}}


def test_nothing_is_taken_on_trust(judge):
    assert judge.verdict(0) == (False, "vLLM takes no connection: it was not asked yet")
    judge.saw(1, tokens(IDLE, 0))
    assert judge.verdict(1) == (False, "vLLM has generated no token yet")
    assert judge.wants_canary(1)
    judge.answered(2)
    assert judge.verdict(5) == (True, "a token 3.0 s ago")
    assert not judge.wants_canary(5)
    assert judge.wants_canary(32)


def test_a_busy_engine_is_not_asked_for_more_and_lives_as_long_as_its_counters_move(judge):
    for second in range(0, 600, 50):
        judge.saw(second, tokens(BUSY, second))
        assert not judge.wants_canary(second)
    assert judge.verdict(601)[0]
    judge.saw(611, tokens(BUSY, 550))
    assert judge.verdict(611) == (False, "vLLM has generated no token for 61 s")
    judge.saw(612, tokens(BUSY, 551))
    assert judge.verdict(612)[0]


def test_an_engine_that_answers_with_an_error_is_out_until_a_token_comes(judge):
    judge.saw(0, tokens(IDLE, 7))
    judge.answered(1)
    judge.refused("it answered 500")
    assert judge.verdict(1) == (False, "vLLM does not generate: it answered 500")
    assert judge.wants_canary(4)
    judge.answered(5)
    assert judge.verdict(5)[0]


def test_a_new_process_has_proved_nothing(judge):
    judge.saw(0, tokens(IDLE, 7))
    judge.answered(1)
    judge.lost("Connection refused")
    assert judge.verdict(2) == (False, "vLLM takes no connection: Connection refused")
    judge.saw(3, tokens(IDLE, 0))  # its counters begin anew
    assert judge.verdict(3) == (False, "vLLM has generated no token yet")


def test_one_of_several_engines_that_stands_still_is_told_by_none_of_the_others(judge):
    stuck = tokens(BUSY, 7)["0"]
    found = []
    for second in range(0, 400, 2):
        judge.saw(second, {"0": tokens(BUSY, second)["0"], "1": stuck})
        found += [second] if judge.hangs(second, 300) else []
    assert judge.verdict(398) == (False, "vLLM has generated no token for 398 s")
    assert found[0] == 300
    judge.saw(400, {"0": tokens(BUSY, 500)["0"], "1": tokens(IDLE, 7)["0"]})  # it has nothing more to do
    assert judge.verdict(400)[0]
    assert not judge.hangs(401, 300)


def test_counters_of_each_engine(health_program):
    text = """# HELP vllm:num_requests_running Number of requests
vllm:num_requests_running{engine="0",model_name="tiny"} 1.0
vllm:num_requests_running{engine="1",model_name="tiny"} 2.0
vllm:generation_tokens_total{engine="0",model_name="tiny"} 1.5e+03
vllm:generation_tokens_created{engine="0",model_name="tiny"} 1.7e+09
"""
    assert health_program.counters(text) == {
        "0": {"num_requests_running": 1.0, "generation_tokens_total": 1500.0},
        "1": {"num_requests_running": 2.0},
    }


def looked(judge, begin, end, limit=300):
    """What it finds when it looks each second."""
    return [second for second in range(begin, end) if judge.hangs(second, limit)]


def test_only_what_was_seen_to_do_nothing_for_long_hangs(judge):
    judge.saw(0, tokens(BUSY, 1))
    assert looked(judge, 0, 300) == []
    judge.saw(300, tokens(BUSY, 2))  # as a very long prompt, read at last
    assert looked(judge, 300, 650)[0] == 599
    judge.saw(650, tokens(BUSY, 3))
    assert looked(judge, 650, 660) == []
    assert not judge.hangs(2000, 300)  # whoever slept meanwhile has seen nothing
    assert looked(judge, 2000, 2400, limit=0) == []


def test_an_engine_that_starts_does_not_hang(judge):
    judge.lost("Connection refused")
    assert looked(judge, 0, 2000) == []
    judge.saw(2000, tokens(IDLE, 0))
    assert looked(judge, 2000, 2400)[0] == 2299


def test_an_engine_that_fails_hangs_and_one_that_was_asked_wrongly_does_not(judge):
    judge.saw(0, tokens(IDLE, 7))
    for second in range(0, 900, 2):
        judge.refused("it answered 404", 404)
        assert not judge.hangs(second, 300)
    found = []
    for second in range(900, 1500, 2):
        judge.refused("it answered 500", 500)
        found += [second] if judge.hangs(second, 300) else []
    assert found[0] == 1196


def test_an_engine_without_counters_may_be_busy(judge):
    judge.saw(0, {})
    assert looked(judge, 0, 2000) == []


@pytest.fixture
def group(health_program, tmp_path):
    made = health_program.Group(str(tmp_path / "epoch"), ["10.0.0.2", "10.0.0.3"])
    made.begin = (tmp_path / "epoch").write_text
    return made


def test_hosts_join_each_epoch_once(group):
    assert group.join(0, "10.0.0.2", "a") == ""  # nothing runs
    group.begin("e1\n")
    assert group.join(1, "10.0.0.2", "a") == "e1"
    assert group.join(2, "10.0.0.2", "a") == "e1"  # it only asks again
    assert group.trouble(2) == ""
    assert group.join(3, "10.0.0.2", "b") == ""
    assert group.trouble(3) == "10.0.0.2 began anew"
    assert group.join(3, "10.0.0.3", "c") == ""  # nobody joins what is about to end
    group.begin("e2\n")
    assert group.join(4, "10.0.0.2", "b") == "e2"
    assert group.trouble(4) == ""


def test_a_host_that_falls_silent_is_gone_and_one_that_has_not_come_yet_is_not(group):
    group.begin("e1\n")
    assert group.trouble(1000) == ""
    group.join(1000, "10.0.0.2", "a")
    assert group.trouble(1014) == ""
    assert group.trouble(1016) == "10.0.0.2 is gone"


def test_who_asks_after_an_epoch_that_is_over_joins_no_other_by_it(group):
    group.begin("e1\n")
    assert group.join(1, "10.0.0.2", "a") == "e1"
    group.begin("e2\n")
    assert group.join(2, "10.0.0.2", "a", "e1") == "e2"  # it learns that it must begin anew
    assert group.join(3, "10.0.0.2", "b") == "e2"  # and does
    assert group.join(4, "10.0.0.2", "b", "e2") == "e2"
    assert group.trouble(4) == ""


def test_nobody_is_sent_to_an_engine_whose_host_says_nothing(group):
    group.begin("e1\n")
    assert group.missing(1000) == ""  # it has not joined yet
    group.join(1000, "10.0.0.2", "a")
    assert group.missing(1003) == ""
    assert group.missing(1004) == "10.0.0.2 was not heard of for 4 s"
    assert group.trouble(1004) == ""
    group.meet(1004, "10.0.0.3:6380")
    group.join(1006, "10.0.0.2", "a", "e1")
    assert group.missing(1006) == ""
    assert group.missing(1009) == "10.0.0.3:6380 was not heard of for 5 s"


def test_the_program_tells_of_a_host_that_ray_joins_and_that_is_gone(replicas, until, free_port):
    first, port, member = replicas[0], free_port(), socket.create_server(("127.0.0.1", 0))
    argv = [
        PROGRAM,
        "--listen",
        f"127.0.0.1:{port}",
        "--url",
        f"http://{first.address}:{first.port}",
        "--model",
        "tiny",
    ]
    argv += ["--members", f"127.0.0.1:{member.getsockname()[1]}"]
    program = subprocess.Popen([sys.executable, "-I", "-S", *argv])
    try:
        until(lambda: told(port)[0] == 200)
        member.close()
        until(lambda: told(port)[0] == 503)
        assert "was not heard of for" in told(port)[1]
    finally:
        program.kill()
        program.wait()


def told(port: int) -> tuple[int, str]:
    """What the program answers the gateway."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError:
        return 0, ""
    finally:
        connection.close()


def test_the_program_tells_of_an_engine_that_hangs_behind_an_api_that_answers(replicas, until, free_port):
    first, port = replicas[0], free_port()
    url = f"http://{first.address}:{first.port}"
    argv = [PROGRAM, "--listen", f"127.0.0.1:{port}", "--url", url, "--model", "tiny", "--stall", "12"]
    program = subprocess.Popen([sys.executable, "-I", "-S", *argv])
    try:
        until(lambda: told(port)[0] == 200)
        first.get("/hang")
        until(lambda: told(port)[0] == 503)
        assert "no token for" in told(port)[1]
        assert first.get("/v1/models")  # as dead engines do
        first.get("/wake")
        until(lambda: told(port)[0] == 200)
        first.kill()
        until(lambda: "takes no connection" in told(port)[1])
    finally:
        program.kill()
        program.wait()


def test_the_program_ends_for_systemd_when_the_engine_hangs_for_good(replicas, free_port):
    first = replicas[0]
    url = f"http://{first.address}:{first.port}"
    words = f"--listen 127.0.0.1:{free_port()} --url {url} --model tiny --stall 2 --hang 6"
    first.get("/hang")
    argv = [sys.executable, "-I", "-S", PROGRAM, *words.split()]
    program = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert program.returncode == 70
    assert program.stdout.startswith("The engine hangs: ")


@pytest.mark.parametrize("key", ["", "s3cr3t"])
def test_another_key_of_vllm_starts_it_anew(key):
    """It would be refused, and take its replica out."""
    secret = "/etc/provision/secrets/vllm.env"
    told = {"vllm_api_key": key, "__vllm_health_text": "program", "__vllm_files": {"consumes": {secret: "its sha"}}}
    consumed = templar(told, "vllm").template(trusted("{{ __vllm_health_consumed }}"))
    assert consumed.get(secret) == ("its sha" if key else None)
    assert "/opt/provision/bin/provision-health" in consumed
