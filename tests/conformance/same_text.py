#!/usr/bin/env python3
"""The same question with the same seed gets the same text through HTTP, whatever serves it and whoever else asks.

Served by 1, 2 and 4 workers; alone, and in the middle of 24 others whose prompts and lengths differ in every round.
"""
import sys
import threading

from http_rig import Http, served

QUESTIONS = ["Hello", "What is the weather in Oslo?", "fish " * 60]


def ask(http, question, seed, tokens=48):
    body = {"messages": [{"role": "user", "content": question}], "seed": seed, "max_completion_tokens": tokens}
    response = http.post("/v1/chat/completions", body=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    message = answer["choices"][0]["message"]
    return message["content"], message.get("reasoning"), answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]


def answers(http):
    return [ask(http, question, seed) for seed, question in enumerate(QUESTIONS)]


def answers_in_a_crowd(http, crowd):
    threads = [threading.Thread(target=ask, args=(http, f"neighbour {crowd} {i} " * (1 + i % 7), i, 8 + (i * crowd) % 60))
               for i in range(24)]
    for thread in threads:
        thread.start()
    try:
        return answers(http)
    finally:
        for thread in threads:
            thread.join()


def main():
    shoal, _ = sys.argv[1:]
    expected = None
    for workers in (1, 2, 4):
        with served(shoal, None, workers=workers, with_keys=False) as (address, _):
            http = Http(address)
            alone = answers(http)
            expected = expected or alone
            assert alone == expected, (workers, alone, expected)
            for crowd in (3, 11):
                crowded = answers_in_a_crowd(http, crowd)
                assert crowded == expected, (workers, crowd, crowded, expected)
        print(f"{workers} workers: {len(QUESTIONS)} questions, alone and in two crowds of 24: the same text", flush=True)
    assert len(set(expected)) == len(expected), "different questions, one text"


main()
