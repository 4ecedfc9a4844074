#!/usr/bin/env python3
"""The official `openai` client in conversation with Minnow, the small model that really answers (deploy/minnow), on 4 workers.

What has to be right, not only well formed: sums, tool calls and what is made of their results, a filled-in form, effort.
Minnow is right in 95 of 100 cases or more, so of several like cases one may fail.
"""
import json
import pathlib
import sys

try:
    import openai
except ImportError as error:
    print(f"skipped: {error}", file=sys.stderr)
    sys.exit(77)

from http_rig import KEY, served

CITIES = ["Oslo", "Paris", "Rome", "Tokyo"]


def tool(name, description, parameter):
    return {"type": "function", "function": {
        "name": name, "description": description,
        "parameters": {"type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter],
                       "additionalProperties": False}}}


WEATHER = tool("get_weather", "Get the weather for a city.", "city")
FORM = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"], "additionalProperties": False}


def mostly(what, results):
    print(f"{what}: {sum(results)} of {len(results)} right", flush=True)
    assert sum(results) >= len(results) - 1, (what, results)


def sums(ask):
    right = []
    for a, b in ((12, 30), (482, 57), (7, 8), (310, 299), (95, 5)):
        message = ask(messages=[{"role": "user", "content": f"What is {a} plus {b}?"}]).choices[0].message
        assert message.reasoning, "medium effort thinks before it answers"
        right.append(f"{a + b}" in (message.content or ""))
    mostly("sums", right)


def tools_in_a_row(ask):
    """Two calls, each with its result, in one conversation; whole and streamed."""
    right = []
    for first, second in zip(CITIES, CITIES[1:] + CITIES[:1]):
        messages, good = [], True
        for city, degrees in ((first, 17), (second, 4)):
            messages.append({"role": "user", "content": f"What is the weather in {city}?"})
            answer = ask(messages=messages, tools=[WEATHER]).choices[0]
            calls = answer.message.tool_calls or []
            if answer.finish_reason != "tool_calls" or len(calls) != 1 or calls[0].function.name != "get_weather":
                good = False
                break
            good = good and json.loads(calls[0].function.arguments) == {"city": city}
            messages.append(answer.message.model_dump(exclude_none=True))
            messages.append({"role": "tool", "tool_call_id": calls[0].id,
                             "content": json.dumps({"temperature": degrees, "sky": "sunny"}, separators=(",", ":"))})
            chunks = list(ask(messages=messages, tools=[WEATHER], stream=True))
            text = "".join(c.choices[0].delta.content or "" for c in chunks)
            assert any(getattr(c.choices[0].delta, "reasoning", None) for c in chunks)
            good = good and f"{degrees} degrees" in text and city in text
            messages.append({"role": "assistant", "content": text})
        right.append(good)
    mostly("two calls in a row", right)


def responses_with_a_tool(client, model):
    flat = {"type": "function", **WEATHER["function"], "strict": True}
    right = []
    for city in CITIES:
        items = [{"role": "user", "content": f"How is the weather in {city} today?"}]
        first = client.responses.create(model=model, input=items, tools=[flat], temperature=0)
        calls = [i for i in first.output if i.type == "function_call"]
        reasoning = [i for i in first.output if i.type == "reasoning"]
        assert reasoning and reasoning[0].content[0].text
        if not calls:
            right.append(False)
            continue
        items += first.output  # As they are
        items.append({"type": "function_call_output", "call_id": calls[0].call_id, "output": "cloudy, 4 degrees"})
        second = client.responses.create(model=model, input=items, tools=[flat], temperature=0)
        right.append(json.loads(calls[0].arguments) == {"city": city} and "4 degrees" in second.output_text)
    mostly("responses with a tool", right)


def forms(ask):
    right = []
    for name, age in (("Anna", 31), ("Ben", 64), ("Clara", 19), ("David", 77)):
        answer = ask(messages=[{"role": "user", "content": f"The age of {name} is {age}. Fill in the form."}],
                     response_format={"type": "json_schema",
                                      "json_schema": {"name": "form", "schema": FORM, "strict": True}})
        value = json.loads(answer.choices[0].message.content)
        assert set(value) == {"name", "age"} and isinstance(value["age"], int), value
        right.append(value == {"name": name, "age": age})
    mostly("forms by a schema", right)


def efforts(ask):
    def thought(effort):
        answer = ask(messages=[{"role": "user", "content": "What is 482 plus 57?"}], reasoning_effort=effort)
        return answer.usage.completion_tokens_details.reasoning_tokens

    low, medium, high = map(thought, ("low", "medium", "high"))
    print(f"reasoning tokens: low {low}, medium {medium}, high {high}")
    assert low < medium < high


def main():
    shoal, source = sys.argv[1:]
    model = pathlib.Path(source) / "deploy" / "minnow"
    if not (model / "config.json").exists():
        print("skipped: deploy/minnow has no checkpoint yet", file=sys.stderr)
        sys.exit(77)
    with served(shoal, model, workers=4) as (address, _):
        client = openai.OpenAI(base_url=f"http://{address}/v1", api_key=KEY, max_retries=0, timeout=60)

        def ask(**options):
            return client.chat.completions.create(model="minnow", temperature=0, **options)

        sums(ask)
        tools_in_a_row(ask)
        responses_with_a_tool(client, "minnow")
        forms(ask)
        efforts(ask)


main()
