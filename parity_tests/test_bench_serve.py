"""`bench serve`: what clients time is what a server sends; refusals count; a server that cannot start says why."""

# ruff: noqa: E402 - the libraries are an extra
import json
import subprocess
import sys

import pytest

for library in ("starlette", "uvicorn", "pydantic", "prometheus_client"):
    pytest.importorskip(library, reason=f"no {library}; the extras serve and dev have it")

from jaxgpt.bench import __main__ as bench
from jaxgpt.bench.clients import Answer, ask, make_prompt, require_room, summarise_answers, time_clients
from jaxgpt.bench.served import connect, find_model, resident_bytes, started_server
from jaxgpt.errors import Failure, InputError
from jaxgpt.serve.backend import QueueFull
from parity_tests.helpers.environment import REPO, environment
from parity_tests.helpers.scripted_server import STEP_S, TOKENIZER, Scripted, scripted_server
from parity_tests.helpers.train_runs import TEXT, write_text


@pytest.fixture(scope="module")
def address():
    with scripted_server() as (found, _, _):
        yield found


def test_a_stream_is_timed_piece_by_piece(address):
    """30 numbers, STEP_S before each token but the first: the time per token is no less."""
    with connect(address) as client:
        answer = ask(client, "scripted", list(b"slow 30"), 40)
    assert isinstance(answer, Answer) and answer.n_tokens == 40
    assert answer.first_s is not None and 0 < answer.first_s < answer.last_s
    assert answer.token_s is not None and answer.token_s > 0.8 * STEP_S
    assert answer.last_s - answer.first_s == pytest.approx(39 * answer.token_s)


def test_all_requests_of_all_clients_are_counted(address):
    """The script answers a prompt with its text, so each answer has as many tokens as its prompt."""
    said = []
    found = time_clients(
        address, "scripted", n_clients=3, n_requests=4, n_prompt=10, n_tokens=20, say=said.append
    )  # fmt: skip
    assert (found["clients"], found["requests"], found["tokens"], found["refused"]) == (3, 12, 120, 0)
    assert sorted(said) == list(range(1, 13))
    assert found["tokens_per_s"] == pytest.approx(120 / found["wall_s"])
    assert 0 < found["ttft_s"] <= found["ttft_s_p95"] < found["wall_s"]
    if sys.platform == "linux":
        assert 1e7 < found["memory_bytes"] < 1e11


def test_prompts_differ_and_come_again():
    prompts = {tuple(make_prompt(20, f"{client} {i}")) for client in range(8) for i in range(8)}
    assert len(prompts) == 64 and {len(prompt) for prompt in prompts} == {20}
    assert make_prompt(20, "a") == make_prompt(20, "a") and max(make_prompt(1000, "a")) == 15
    TOKENIZER.decode(make_prompt(20, "a"))


class Full(Scripted):
    def submit(self, prompt_ids, settings):
        raise QueueFull


def test_a_refusal_is_no_answer():
    with scripted_server(Full()) as (address, _, _):
        with connect(address) as client:
            wait_s = ask(client, "scripted", [1, 2], 4)
        assert isinstance(wait_s, float) and wait_s > 0
        with pytest.raises(Failure, match="refused all 2 requests with 429; let fewer clients ask at once"):
            time_clients(address, "scripted", n_clients=2, n_requests=1, n_prompt=2, n_tokens=4)


def test_other_answers_end_the_bench(address):
    with connect(address) as client, pytest.raises(Failure, match=r"the server answers 400: .*context_length"):
        ask(client, "scripted", [1] * 1000, 1000)
    with connect(address) as client, pytest.raises(Failure, match=r"the server broke off an answer: .+"):
        ask(client, "scripted", list(b"break"), 9)


def test_figures_of_answers():
    answers = [Answer(1.0, 3.0, 5), Answer(2.0, 2.0, 1), Answer(4.0, 10.0, 4), Answer(None, 0.0, 0)]
    found = summarise_answers(answers, 5.0)
    assert (found["tokens"], found["tokens_per_s"]) == (10, 2.0)
    assert (found["ttft_s"], found["ttft_s_p95"]) == (2.0, 4.0)
    assert (found["tpot_s"], found["tpot_s_p95"]) == (1.25, 2.0)
    assert summarise_answers([Answer(None, 0.0, 0)], 1.0)["tpot_s"] is None


@pytest.mark.parametrize(("n", "wanted"), [(1, 1), (19, 19), (20, 19), (21, 20), (100, 95)])
def test_percentile(n, wanted):
    answers = [Answer(float(seconds), 0.0, 1) for seconds in range(n, 0, -1)]
    assert summarise_answers(answers, 1.0)["ttft_s_p95"] == wanted


def test_the_model_is_found(address):
    assert find_model(address) == ("scripted", 1024)
    assert sys.platform != "linux" or (resident_bytes(address) or 0) > 1e7
    with pytest.raises(InputError, match=r"--url=http://127.0.0.1:9 does not list its models at /v1/models: .+"):
        find_model("http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"--prompts=900 \+ --tokens=200 is above the model's context of 1024"):
        require_room([16, 900], 200, 1024)


def test_a_key_is_sent(monkeypatch):
    with scripted_server(api_key="secret") as (address, _, _):
        with pytest.raises(InputError, match="wants an API key; set the variable JAXGPT_API_KEY"):
            find_model(address)
        monkeypatch.setenv("JAXGPT_API_KEY", "secret")
        assert find_model(address)[0] == "scripted" and (sys.platform != "linux" or resident_bytes(address))


def test_a_bench_of_a_server_that_is_there(address, tmp_path, capsys):
    path = tmp_path / "out" / "s.json"
    command = ["serve", f"--url={address}", "--clients=1,2", "--prompts=3,6", "--tokens=9", "--requests=2"]
    assert bench.main([*command, f"--json={path}"]) == 0
    found = json.loads(path.read_text())
    sizes = [(load["prompt_tokens"], load["clients"], load["requests"]) for load in found["loads"]]
    assert sizes == [(3, 1, 2), (3, 2, 4), (6, 1, 2), (6, 2, 4)]
    assert all(load["tokens_per_s"] > 0 for load in found["loads"])
    assert found["model"] == "scripted" and "--clients=1,2" in found["command"]
    assert "scripted, 9 tokens each; MB of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run=r", "--clients=0"], "--clients=0 is no number of clients; give some, such as 1,4,8"),
        (["--run=r", "--prompts=x"], "--prompts=x is no number of tokens; give some, such as 16,128"),
        (["--run=r", "--clients="], "--clients is empty; leave it out, or give some, such as --clients 1,8"),
        (["--run=r", "--tokens=0"], "--tokens=0 is below 1; choose a positive number"),
        (["--url=localhost:8000"], "--url=localhost:8000 is no address of a server; give one such as http://127"),
        (["--url=http://x", "--slots=3"], "--slots is of a server that is started here, not of --url; leave it out"),
        (["--run=r", "--url=http://x"], "argument --url: not allowed with argument --run"),
        (["--clients=1"], "one of the arguments --run --model --url is required"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(InputError) as caught:
        bench.main(["serve", *arguments])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_that_is_missing_is_refused_before_a_server_starts(monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **settings: pytest.fail("a process was started"))
    with pytest.raises(InputError, match=r"--run=\S+/none does not exist; runs that can be opened: "):
        bench.main(["serve", f"--run={tmp_path / 'none'}"])


def test_a_server_that_does_not_start_says_why():
    with (
        pytest.raises(InputError, match="--slots=0 is below 1; generate at least one text"),
        started_server(["--run=r", "--slots=0"]),
    ):
        pytest.fail("it has started")


@pytest.mark.slow
def test_a_run_is_served_and_its_server_ended(tmp_path):
    """The whole command: a run trained here, a server of its own, and no process left."""
    data = write_text(tmp_path, TEXT)
    model = ["--model.n_layer=1", "--model.n_embd=16", "--model.n_head=2", "--model.seq_len=64"]
    sizes = ["--train.steps=2", "--train.batch_tokens=128", "--train.micro_batch_size=2", "--eval.every=0"]
    train = ["jaxgpt.train", "--config=quickstart", f"--data.dir={data}", f"--run.dir={tmp_path / 'run'}"]
    serve = ["jaxgpt.bench", "serve", "--run", str(tmp_path / "run"), "--clients=2", "--prompts=4", "--tokens=8"]
    for command in ([*train, *model, *sizes], [*serve, f"--json={tmp_path / 's.json'}"]):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=REPO, env=environment(), capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
    (load,) = json.loads((tmp_path / "s.json").read_text())["loads"]
    assert load["tokens"] == 64 and load["refused"] == 0
    left = subprocess.run(["pgrep", "-f", f"--run={tmp_path / 'run'}"], capture_output=True, text=True, check=False)
    assert left.stdout == ""
