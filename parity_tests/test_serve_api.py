"""The API through its real clients: openai-python reads every answer, npm's openai and ai where Node has them."""

# ruff: noqa: E402 - the libraries are an extra
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

for library in ("starlette", "uvicorn", "pydantic", "prometheus_client", "openai"):
    pytest.importorskip(library, reason=f"no {library}; the extras serve and dev have it")

import httpx
import openai

from jaxgpt.data.conversations import render_for_completion
from parity_tests.helpers.scripted_server import TOKENIZER, Scripted, scripted_server

KEY = "right"
EMOJI = "a🙂é\u4e16界"


@pytest.fixture(scope="module")
def served():
    with scripted_server(api_key=KEY, origins=("https://chat.example",)) as found:
        yield found


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served[0]}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def ask(client, question, **options):
    return client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": question}], **options)


def post(served, path, content, **headers):
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"} | headers
    return httpx.post(served[0] + path, content=content, headers=headers)


def error_of(caught) -> dict:
    """The error object that the client read."""
    assert isinstance(caught.value.body, dict)
    return caught.value.body


def chat_json(**fields):
    return json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "hi"}], **fields})


# Chat


def test_a_chat_answer(client, served):
    answer = ask(client, "say hello")
    assert answer.choices[0].message.content == "hello"
    assert (answer.object, answer.model, answer.choices[0].finish_reason) == ("chat.completion", "scripted", "stop")
    prompt, settings = served[1].asked[-1]
    messages = [{"role": "user", "content": "say hello"}, {"role": "assistant", "content": ""}]
    assert list(prompt) == render_for_completion({"messages": messages}, TOKENIZER).tolist()
    assert answer.usage.model_dump()["prompt_tokens"] == len(prompt) == 9 + 4
    assert (answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 18)
    assert TOKENIZER.special_id("<|assistant_end|>") in settings.stop_ids
    assert settings.max_tokens == served[1].n_context - len(prompt)


def test_a_streamed_chat_answer_is_the_same_text_in_chunks(client):
    chunks = list(ask(client, f"say {EMOJI}", stream=True, stream_options={"include_usage": True}))
    *body, usage = chunks
    assert len({(chunk.id, chunk.created, chunk.object) for chunk in chunks}) == 1
    assert body[0].choices[0].delta.role == "assistant" and body[0].choices[0].delta.content == ""
    pieces = [chunk.choices[0].delta.content for chunk in body[1:-1]]
    assert pieces == list(EMOJI), "a character was split, or held back"
    assert [chunk.choices[0].finish_reason for chunk in body] == [None] * (len(body) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in body)
    assert usage.choices == [] and usage.usage.completion_tokens == len(EMOJI.encode())


@pytest.mark.parametrize("stop", ["lo w", ["zzz", "o", " w"], "\u4e16"], ids=["across", "list", "bytes"])
@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_stop_texts_never_come_out(client, stop, is_stream):
    text = f"hello world{EMOJI}"
    wanted = text[: min(text.find(one) for one in ([stop] if isinstance(stop, str) else stop) if one in text)]
    answer = ask(client, f"say {text}", stop=stop, stream=is_stream)
    if is_stream:
        chunks = list(answer)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (wanted, "stop")


def test_what_may_begin_a_stop_text_is_held_back_until_it_is_clear(client):
    chunks = list(ask(client, "say abcab", stop="abd", stream=True))
    assert [chunk.choices[0].delta.content for chunk in chunks[1:-1]] == ["abc", "ab"]


def test_the_length_is_a_reason(client):
    answer = ask(client, "say hello", max_completion_tokens=3)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("hel", "length")


def test_choices_and_seeds(client, served):
    answer = ask(client, "seeded", n=3, seed=7)
    assert [choice.message.content for choice in answer.choices] == ["7", "8", "9"]
    assert answer.usage.completion_tokens == 3
    again = {}
    for chunk in ask(client, "seeded", n=3, seed=7, stream=True):
        choice = chunk.choices[0]
        again[choice.index] = again.get(choice.index, "") + (choice.delta.content or "")
    assert again == {0: "7", 1: "8", 2: "9"}
    for _ in range(2):
        ask(client, "seeded")
    assert served[1].asked[-1][1].seed != served[1].asked[-2][1].seed


def test_logprobs_of_a_chat_answer(client):
    content = ask(client, "say hé", logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert bytes(byte for entry in content for byte in entry.bytes) == "hé".encode()
    assert [entry.logprob for entry in content] == [-byte / 100 for byte in "hé".encode()]
    assert [(top.token, top.logprob) for top in content[0].top_logprobs] == [("h", -1.04), ("i", -2.04)]
    streamed = [
        entry
        for chunk in ask(client, "say hé there", logprobs=True, stop=" th", stream=True)
        for entry in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert [entry.bytes for entry in streamed] == [[byte] for byte in "hé".encode()], "the stop text's tokens came out"


def test_an_earlier_call_of_the_tool_is_read_as_the_model_wrote_it(client, served):
    called = "<|python_start|>1+1<|python_end|><|output_start|>2<|output_end|>It is 2.<|assistant_end|>"
    messages = [
        {"role": "developer", "content": "S"},
        {"role": "user", "content": [{"type": "text", "text": "<|bos|>"}, {"type": "text", "text": "q"}]},
        {"role": "assistant", "content": called, "refusal": None, "tool_calls": None},
        {"role": "user", "content": "say x"},
    ]
    client.chat.completions.create(model="scripted", messages=messages)
    parts = [("python", "1+1"), ("python_output", "2"), ("text", "It is 2.<|assistant_end|>")]
    wanted = [
        {"role": "user", "content": "S\n\n<|bos|>q"},
        {"role": "assistant", "content": [{"type": kind, "text": text} for kind, text in parts]},
        {"role": "user", "content": "say x"},
        {"role": "assistant", "content": ""},
    ]
    assert list(served[1].asked[-1][0]) == render_for_completion({"messages": wanted}, TOKENIZER).tolist()


# Completions and models


def test_a_completion_echoes_and_scores_its_prompt(client):
    answer = client.completions.create(model="scripted", prompt="say ab", echo=True, logprobs=1, max_tokens=1)
    choice, scored = answer.choices[0], answer.choices[0].logprobs
    assert (choice.text, choice.finish_reason) == ("say aba", "length")
    assert scored.tokens == list("say aba") and scored.text_offset == list(range(7))
    assert scored.token_logprobs == [None, *(-ord(c) / 100 for c in "ay aba")]
    assert scored.top_logprobs[1] == {"a": -0.97}
    assert answer.usage.prompt_tokens == 7, "<|bos|> is in front once"


def test_ids_batches_and_bos(client, served):
    ids = TOKENIZER.encode("say x")
    answer = client.completions.create(model="scripted", prompt=[ids, [256, *ids]], echo=True, logprobs=0, max_tokens=0)
    assert [prompt for prompt, _ in served[1].asked[-2:]] == [(256, *ids)] * 2
    assert [choice.text for choice in answer.choices] == ["say x", "<|bos|>say x"]
    assert [len(choice.logprobs.tokens) for choice in answer.choices] == [5, 6]
    texts = client.completions.create(model="scripted", prompt=["say a", "say b"], n=2).choices
    assert [(choice.index, choice.text) for choice in texts] == [(0, "a"), (1, "a"), (2, "b"), (3, "b")]
    best = client.completions.create(model="scripted", prompt="seeded", best_of=3, n=1, seed=7, logprobs=0)
    assert [choice.text for choice in best.choices] == ["7"], "-.55 a token against -.56 and -.57"


def test_a_streamed_completion(client):
    chunks = list(client.completions.create(model="scripted", prompt="say abc", stream=True, logprobs=0, echo=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "say abcabc"
    assert chunks[-1].choices[0].finish_reason == "stop"
    offsets = [
        offset for chunk in chunks if chunk.choices[0].logprobs for offset in chunk.choices[0].logprobs.text_offset
    ]
    assert offsets == list(range(10))


def test_models(client):
    (model,) = client.models.list().data
    assert (model.id, model.owned_by, client.models.retrieve("scripted").id) == ("scripted", "jaxgpt", "scripted")
    assert model.model_extra == {"is_chat": True, "context_tokens": 1024}


# What goes wrong


ERRORS = {
    "role": ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", None),
    "order": ({"messages": [{"role": "user", "content": "x"}] * 2}, "messages", None),
    "last": ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role", None),
    "empty": ({"messages": []}, "messages", None),
    "content": ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", None),
    "tools": ({"tools": [{"type": "function"}]}, "tools", None),
    "format": ({"response_format": {"type": "json_schema"}}, "response_format", None),
    "n": ({"n": 17}, "n", None),
    "n-slots": ({"n": 13}, "n", None),
    "temperature": ({"temperature": 2.5}, "temperature", None),
    "top_p": ({"top_p": 0}, "top_p", None),
    "top_k": ({"top_k": 266}, "top_k", None),
    "bias": ({"logit_bias": {"265": 1}}, "logit_bias", None),
    "type": ({"max_tokens": "5"}, "max_tokens", None),
    "stops": ({"stop": ["a"] * 5}, "stop", None),
    "empty-stop": ({"stop": ""}, "stop", None),
    "unknown": ({"tempratur": 1}, "tempratur", None),
    "context": ({"max_tokens": 1024}, "messages", "context_length_exceeded"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_request_that_cannot_be_served_is_a_bad_request(client, case):
    """Faults: C99."""
    fields, param, code = ERRORS[case]
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=json.loads(chat_json(**fields)), cast_to=object)
    body = error_of(caught)
    assert (body["type"], body["code"]) == ("invalid_request_error", code)
    assert (body["param"] or "").startswith(param) and "\n" not in body["message"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"model": "\xff"}', b"[" * 100_000, b'{"a":' * 50_000, b'{"model": NaN}'],
    ids=["empty", "half", "list", "null", "not-utf8", "deep-list", "deep-object", "nan"],
)
def test_a_body_that_is_no_request(served, content):
    """Faults: C100."""
    for path in ("/v1/chat/completions", "/v1/completions"):
        answer = post(served, path, content)
        assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


def test_each_status_has_the_class_of_the_client(served, client):
    """Faults: C105."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="other", prompt="x")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("../../etc/passwd")
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key="wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model="scripted", prompt="x" * (1 << 20))
    assert caught.value.status_code == 413
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, "break")
    assert "script" not in str(caught.value.body), "what broke is for the log"
    with pytest.raises(openai.InternalServerError, match="not finite") as caught:
        ask(client, "overflow")
    assert caught.value.code == "broken_model"
    assert httpx.get(f"{served[0]}/v1/completions", headers={"Authorization": f"Bearer {KEY}"}).status_code == 405
    for path in ("/v1/nothing", "/page/../../pyproject.toml", "/..%2f..%2fpyproject.toml", "/index.html"):
        answer = httpx.get(served[0] + path, headers={"Authorization": f"Bearer {KEY}"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")


def test_a_fault_after_the_headers_is_an_event_that_raises(client, capfd):
    with pytest.raises(openai.APIError) as caught:
        list(ask(client, "break", stream=True))
    assert error_of(caught)["type"] == "server_error"
    assert "the script breaks" in capfd.readouterr().err
    with pytest.raises(openai.APIError, match="not finite") as caught:
        list(ask(client, "overflow", stream=True))
    assert error_of(caught)["code"] == "broken_model"


def test_other_sites_and_other_names_are_refused(served):
    """Faults: C106."""
    ask_from = lambda **headers: post(served, "/v1/chat/completions", chat_json(), **headers)  # noqa: E731
    assert ask_from(Origin="https://evil.example").status_code == 403
    assert ask_from(Host="evil.example").status_code == 403
    assert ask_from(Origin=served[0]).status_code == 200
    allowed = ask_from(Origin="https://chat.example")
    assert allowed.headers["access-control-allow-origin"] == "https://chat.example"
    assert "access-control-allow-credentials" not in allowed.headers
    headers = {"Origin": "https://chat.example", "Access-Control-Request-Headers": "authorization"}
    preflight = httpx.options(f"{served[0]}/v1/chat/completions", headers=headers)
    assert (preflight.status_code, preflight.headers["access-control-allow-headers"]) == (204, "authorization")


def test_a_base_model_completes_and_says_that_it_does_not_chat():
    backend = Scripted()
    backend.is_chat = False
    with scripted_server(backend) as (address, _, _), openai.OpenAI(base_url=f"{address}/v1", api_key="-") as client:
        with pytest.raises(openai.BadRequestError, match="/v1/completions"):
            ask(client, "hi")
        assert client.completions.create(model="scripted", prompt="say x").choices[0].text == "x"


# Other clients

NODE = """
import OpenAI from "openai";
import { streamText, generateText } from "ai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
const [url, key] = process.argv.slice(-2);
const said = {};
const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: "say a🙂é stop here" }];
said.stream = "";
const asked = { model: "scripted", messages };
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true, stop: " stop" }))
  said.stream += chunk.choices[0].delta.content ?? "";
said.whole = (await client.chat.completions.create(asked)).choices[0].message.content;
const wrong = client.chat.completions.create({ model: "none", messages });
said.error = await wrong.catch((error) => error.constructor.name);
const model = createOpenAICompatible({ name: "x", baseURL: url, apiKey: key, includeUsage: true })("scripted");
const { text, finishReason } = await generateText({ model, prompt: "say hello", maxRetries: 0 });
const streamed = streamText({ model, messages });
said.ai = [text, finishReason, await streamed.text, await streamed.finishReason, (await streamed.usage).outputTokens];
console.log(JSON.stringify(said));
"""


def test_the_clients_of_node(served, tmp_path):
    modules = Path(os.environ.get("JAXGPT_NODE_MODULES", "/nowhere"))
    if shutil.which("node") is None or not (modules / "ai").is_dir():
        pytest.skip("no Node, or JAXGPT_NODE_MODULES names no directory with openai, ai and @ai-sdk/openai-compatible")
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "talk.mjs").write_text(NODE, encoding="utf-8")
    done = subprocess.run(
        ["node", "talk.mjs", f"{served[0]}/v1", KEY], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {
        "stream": "a🙂é", "whole": "a🙂é stop here", "error": "NotFoundError",
        "ai": ["hello", "stop", "a🙂é stop here", "stop", 17],
    }  # fmt: skip
