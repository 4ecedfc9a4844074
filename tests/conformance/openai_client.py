#!/usr/bin/env python3
"""The official `openai` client, unmodified, against a real `shoal serve` of a model whose words mean nothing.

What can be asserted without meaning: shapes, that streams and whole answers are the same answer, how errors arrive, that a
seed repeats.
"""
import json
import sys

try:
    import openai
except ImportError as error:
    print(f"skipped: {error}", file=sys.stderr)
    sys.exit(77)

from http_rig import KEY, OTHER_KEY, Http, served

WEATHER = {"type": "function",
           "function": {"name": "get_weather", "description": "Weather of a city",
                        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
ASK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the weather?"}]


def expect(error_class, call, status, code=None, param=None, says=""):
    try:
        call()
    except error_class as error:
        assert type(error) is error_class, (type(error), error)
        assert error.status_code == status, error
        assert error.request_id, error
        assert code is None or error.code == code, (error.code, code)
        assert param is None or error.param == param, (error.param, param)
        assert says in str(error), (says, str(error))
        return error
    raise AssertionError(f"no {error_class.__name__} ({status})")


def joined_stream(stream):
    """What a client puts together of a chat stream: {index: {content, reasoning, calls, finish_reason}}, usage."""
    choices, usage, chunks = {}, None, list(stream)
    assert len({c.id for c in chunks}) == 1 and chunks[0].id.startswith("chatcmpl-")
    for chunk in chunks:
        assert chunk.object == "chat.completion.chunk"
        if chunk.usage:
            assert usage is None and chunk.choices == []
            usage = chunk.usage
        for choice in chunk.choices:
            delta = choice.delta
            mine = choices.get(choice.index)
            if mine is None:
                assert delta.role == "assistant", "the first delta of a choice names the role"
                mine = choices[choice.index] = {"content": None, "reasoning": "", "calls": [], "finish_reason": None,
                                                "logprobs": []}
            assert mine["finish_reason"] is None, "nothing follows the finish_reason"
            if delta.content:
                mine["content"] = (mine["content"] or "") + delta.content
            mine["reasoning"] += getattr(delta, "reasoning", None) or ""
            for call in delta.tool_calls or []:
                if call.id:
                    assert call.index == len(mine["calls"]) and call.function.name
                    mine["calls"].append([call.id, call.function.name, ""])
                mine["calls"][call.index][2] += call.function.arguments or ""
            if choice.logprobs:
                mine["logprobs"] += choice.logprobs.content or []
            mine["finish_reason"] = choice.finish_reason
    return choices, usage


def check_chat(client, model):
    options = dict(model=model, messages=ASK, max_completion_tokens=120, seed=11, temperature=1.0)
    whole = client.chat.completions.create(**options)
    message = whole.choices[0].message
    assert whole.object == "chat.completion" and message.role == "assistant"
    assert whole.choices[0].finish_reason in ("stop", "length", "tool_calls")
    usage = whole.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens <= 120 and usage.completion_tokens_details.reasoning_tokens >= 0

    again = client.chat.completions.create(**options)
    assert again.choices[0].message.content == message.content, "the same seed, another text"
    assert again.usage.prompt_tokens_details.cached_tokens > 0, "the second time the prompt is in the cache"

    choices, streamed = joined_stream(
        client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert choices[0]["content"] == (message.content or None), (choices[0], message)
    assert choices[0]["reasoning"] == (getattr(message, "reasoning", None) or "")
    assert choices[0]["finish_reason"] == whole.choices[0].finish_reason
    assert streamed.completion_tokens == usage.completion_tokens
    _, none = joined_stream(client.chat.completions.create(**options, stream=True))
    assert none is None, "usage came although nobody asked"


def check_choices(client, model):
    options = dict(model=model, messages=ASK, max_completion_tokens=60, seed=5, n=3)
    whole = client.chat.completions.create(**options)
    assert [c.index for c in whole.choices] == [0, 1, 2]
    texts = [(c.message.content, getattr(c.message, "reasoning", None)) for c in whole.choices]
    assert len(set(texts)) > 1, "three choices, one text"
    choices, _ = joined_stream(client.chat.completions.create(**options, stream=True))
    assert sorted(choices) == [0, 1, 2]
    for choice in whole.choices:
        assert choices[choice.index]["content"] == (choice.message.content or None)


def check_logprobs_and_stop(client, model):
    """A bias towards nothing in particular: words are random, so look for a stop string that certainly comes."""
    options = dict(model=model, messages=ASK, max_completion_tokens=100, seed=2, logprobs=True, top_logprobs=3)
    whole = client.chat.completions.create(**options)
    entries = whole.choices[0].logprobs.content
    text = whole.choices[0].message.content or ""
    assert bytes(b for e in entries for b in e.bytes).decode("utf-8", "replace").strip("�") in text.replace("\n", "") or text
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob >= entry.top_logprobs[-1].logprob
    choices, _ = joined_stream(client.chat.completions.create(**options, stream=True))
    assert [e.token for e in choices[0]["logprobs"]] == [e.token for e in entries]
    if len(text) > 8:
        stop = text[4:6]
        stopped = client.chat.completions.create(model=model, messages=ASK, max_completion_tokens=100, seed=2, stop=[stop])
        assert stop not in stopped.choices[0].message.content
        assert text.startswith(stopped.choices[0].message.content)
        assert stopped.choices[0].finish_reason == "stop"


def check_tool_history(client, model):
    """Two calls in a row with their results: the history is taken, whatever the model makes of it."""
    messages = ASK + [
        {"role": "assistant", "content": None, "reasoning": "I should look.",
         "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"A"}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "assistant", "tool_calls": [{"id": "call_2", "type": "function",
                                              "function": {"name": "get_weather", "arguments": '{"city":"B"}'}}]},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "sun"}]}]
    answer = client.chat.completions.create(model=model, messages=messages, tools=[WEATHER], max_completion_tokens=20)
    count = Http(client.base_url.netloc.decode(), KEY).post(
        "/tokenize", body={"model": model, "messages": messages, "tools": [WEATHER]})
    assert count.json()["count"] == answer.usage.prompt_tokens, (count.json()["count"], answer.usage)
    items = [{"role": "user", "content": "weather?"},
             {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "look"}]},
             {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": "{}"},
             {"type": "function_call_output", "call_id": "call_1", "output": "rain"}]
    tool = {"type": "function", "name": "get_weather", "parameters": WEATHER["function"]["parameters"], "strict": False}
    response = client.responses.create(model=model, input=items, tools=[tool], max_output_tokens=20)
    assert response.status in ("completed", "incomplete")


def check_responses(client, model):
    options = dict(model=model, input="Tell me about fish.", instructions="Be brief.", max_output_tokens=100)
    whole = client.responses.create(**options, extra_body={"seed": 4})
    assert whole.object == "response" and whole.id.startswith("resp_") and whole.status in ("completed", "incomplete")
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    events = list(client.responses.create(**options, stream=True, extra_body={"seed": 4}))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[1].type == "response.in_progress"
    assert events[-1].type in ("response.completed", "response.incomplete"), events[-1].type
    final = events[-1].response
    assert [i.type for i in final.output] == [i.type for i in whole.output]
    assert final.output_text == whole.output_text
    # Every item: added, (part added, deltas, text done, part done | deltas, done), done; and the deltas are the text.
    for index, item in enumerate(final.output):
        mine = [e for e in events if getattr(e, "output_index", None) == index]
        kinds = [e.type.removeprefix("response.") for e in mine]
        assert kinds[0] == "output_item.added" and kinds[-1] == "output_item.done", kinds
        deltas = "".join(e.delta for e in mine if e.type.endswith(".delta"))
        if item.type == "function_call":
            assert deltas == item.arguments and "content_part.added" not in kinds
        else:
            assert kinds[1] == "content_part.added" and kinds[-2] == "content_part.done"
            assert deltas == item.content[0].text
    # What we gave out is taken back as it is.
    replay = [{"role": "user", "content": "Tell me about fish."}] + [i.model_dump(exclude_none=True) for i in whole.output]
    calls = [i for i in whole.output if i.type == "function_call"]
    replay += [{"type": "function_call_output", "call_id": c.call_id, "output": "ok"} for c in calls]
    client.responses.create(model=model, input=replay + [{"role": "user", "content": "More."}], max_output_tokens=16)


def check_completions_and_models(client, model):
    whole = client.completions.create(model=model, prompt="Hello", max_tokens=20, seed=3, logprobs=2)
    assert whole.choices[0].finish_reason in ("stop", "length") and len(whole.choices[0].logprobs.tokens) == \
        whole.usage.completion_tokens
    parts = list(client.completions.create(model=model, prompt="Hello", max_tokens=20, seed=3, stream=True))
    assert "".join(c.text for p in parts for c in p.choices) == whole.choices[0].text
    echo = client.completions.create(model=model, prompt="Hello", max_tokens=1, echo=True)
    assert echo.choices[0].text.startswith("Hello")
    listed = client.models.list().data
    assert [m.id for m in listed] == [model] and listed[0].max_model_len > 0
    assert client.models.retrieve(model).id == model
    assert client.models.retrieve("openai/" + model).id == model


def check_errors(client, model, base_url):
    chat = client.chat.completions.create
    expect(openai.NotFoundError, lambda: chat(model="gpt-9", messages=ASK), 404, code="model_not_found", says="gpt-9")
    expect(openai.BadRequestError, lambda: chat(model=model, messages=ASK, temperature=3), 400, param="temperature")
    expect(openai.BadRequestError, lambda: chat(model=model, messages=[{"role": "wizard", "content": "x"}]), 400,
           param="messages[0].role", says="wizard")
    expect(openai.BadRequestError,
           lambda: chat(model=model, messages=ASK + [{"role": "tool", "tool_call_id": "call_9", "content": "x"}]), 400,
           says="call_9")
    expect(openai.BadRequestError, lambda: chat(model=model, messages=[{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]), 400, code="unsupported_content")
    expect(openai.BadRequestError, lambda: chat(model=model, messages=[{"role": "user", "content": "fish " * 50000}]), 400,
           code="context_length_exceeded")
    expect(openai.BadRequestError, lambda: client.completions.create(model=model, prompt="fish", max_tokens=10**6), 400,
           code="context_length_exceeded", says="would fit")
    expect(openai.BadRequestError, lambda: client.responses.create(model=model, input="x", previous_response_id="resp_1"), 400,
           param="previous_response_id")
    expect(openai.BadRequestError, lambda: chat(model=model, messages=ASK, logit_bias={"1020": 5}), 400)
    expect(openai.AuthenticationError, lambda: openai.OpenAI(base_url=base_url, api_key="wrong", max_retries=0).models.list(),
           401, code="invalid_api_key")
    expect(openai.NotFoundError, lambda: client.models.retrieve("nobody"), 404)
    other = openai.OpenAI(base_url=base_url, api_key=OTHER_KEY, max_retries=0)
    first = other.chat.completions.create(model=model, messages=ASK, max_completion_tokens=1)
    assert first.usage.prompt_tokens_details.cached_tokens == 0, "another tenant's prefix was reused"


def check_raw(address, model):
    """What no client library sends."""
    http = Http(address, KEY)

    def post(text):
        return http.post("/v1/chat/completions", content=text, headers={"content-type": "application/json"})

    broken = post('{"model": "x",\n "messages": [}')
    assert broken.status_code == 400 and "line 2" in broken.json()["error"]["message"], broken.text
    twice = post('{"model": "x", "model": "y", "messages": []}')
    assert twice.status_code == 400 and "model" in twice.json()["error"]["message"], twice.text
    assert post(b'{"messages": "\xff"}').status_code == 400
    deep = post("[" * 100000 + "]" * 100000)
    assert deep.status_code == 400, deep.text
    assert http.post("/v1/chat/completions", content="{}", headers={"content-type": "text/html"}).status_code == 415
    wrong_method = http.get("/v1/chat/completions")
    assert wrong_method.status_code == 405 and wrong_method.headers["allow"] == "POST"
    assert http.get("/v1/nothing").status_code == 404
    large = post(b" " * (100 << 20))
    assert large.status_code == 413, large.status_code
    named = http.get("/v1/models", headers={"x-request-id": "my-id-7"})
    assert named.headers["x-request-id"] == "my-id-7"
    ids = http.post("/tokenize", body={"model": model, "prompt": "Hello fish"}).json()
    assert http.post("/detokenize", body={"tokens": ids["tokens"]}).json() == {"prompt": "Hello fish"}
    metrics = http.get("/metrics").text
    for name in ("shoal_sequences_running", "shoal_kv_used_ratio", "shoal_ttft_seconds_bucket", "shoal_itl_seconds_bucket",
                 'shoal_choices_finished_total{finish_reason="length"}', "shoal_harmony_repairs_total",
                 "shoal_tokens_accepted_total", "shoal_preemptions_total"):
        assert name in metrics, name
    assert http.get("/version").json()["version"]
    stranger = Http(address)
    assert stranger.get("/health").status_code == stranger.get("/ready").status_code == 200
    assert stranger.get("/livez").status_code == stranger.get("/readyz").status_code == 200
    assert stranger.get("/v1/models").status_code == stranger.get("/metrics").status_code == 401
    assert stranger.get("/v1/nothing").status_code == 401, "who has no key is not told what there is"


def check_sse(address, model):
    """The bytes of a stream: no event names, one blank line after each event, [DONE] at the end."""
    body = {"model": model, "messages": ASK, "max_completion_tokens": 10, "stream": True}
    response = Http(address, KEY).post("/v1/chat/completions", body=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-1] == "" and events[-2] == "data: [DONE]"
    for event in events[:-2]:
        assert event.startswith("data: ") and "\n" not in event, event
        json.loads(event[6:])


def main():
    shoal, _ = sys.argv[1:]
    with served(shoal, None) as (address, _):
        base_url = f"http://{address}/v1"
        client = openai.OpenAI(base_url=base_url, api_key=KEY, max_retries=0, timeout=60)
        model = client.models.list().data[0].id
        for check in (check_chat, check_choices, check_logprobs_and_stop, check_tool_history, check_responses,
                      check_completions_and_models):
            check(client, model)
            print(f"{check.__name__}: ok", flush=True)
        check_errors(client, model, base_url)
        check_raw(address, model)
        check_sse(address, model)
        print("errors, raw requests, bytes of a stream: ok")


main()
