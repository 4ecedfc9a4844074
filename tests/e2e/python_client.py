#!/usr/bin/env python3
"""A client in another language, generated from proto/*.proto by grpcio-tools.

    python_client.py ADDRESS [--prompt TEXT | --tokens 1,2,3] [--max-tokens N] [--seed S]

Streams an answer and checks what docs/api.md promises: indexes without gap or repeat, the hash of the
prefix (computed here, from its definition), usage that counts right, and a stream that is broken off in
the middle and continued by Attach with the same tokens and the same text. Prints one JSON object.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import uuid

import grpc
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]


def load_stubs(folder):
    """Generates and imports the messages and stubs of both services."""
    arguments = ["protoc", f"-I{ROOT}", f"-I{protoc.__file__.rsplit('/', 1)[0]}/_proto",
                 f"--python_out={folder}", f"--grpc_python_out={folder}",
                 "proto/inference.proto", "proto/admin.proto"]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")
    sys.path.insert(0, folder)
    from proto import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc
    return inference_pb2, inference_pb2_grpc, admin_pb2, admin_pb2_grpc


def fnv1a(tokens):
    """FNV-1a, 64 bits, over the ids as four bytes each, least significant first."""
    digest = 0xCBF29CE484222325
    for token in tokens:
        for byte in token.to_bytes(4, "little"):
            digest = (digest ^ byte) * 0x100000001B3 % 2**64
    return digest


class Answer:
    """One choice as a client puts it together."""

    def __init__(self):
        self.tokens = []
        self.text = ""
        self.hash = fnv1a([])
        self.finished = None

    def read(self, stream, most=None):
        """Reads until the end, or until `most` tokens are there."""
        for event in stream:
            kind = event.WhichOneof("event")
            if kind == "chunk":
                assert event.chunk.first_index == len(self.tokens), "a gap or a repeat"
                self.tokens += event.chunk.token_ids
                self.text += event.chunk.text
                self.hash = event.chunk.prefix_hash
                assert self.hash == fnv1a(self.tokens), "another prefix hash"
            elif kind == "finished":
                self.text += event.finished.text
                self.finished = event.finished
            if most is not None and len(self.tokens) >= most:
                stream.cancel()
                return self
        return self


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--prompt")
    parser.add_argument("--tokens", default="1,2,3")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        pb, rpc, admin_pb, admin_rpc = load_stubs(folder)
    channel = grpc.insecure_channel(options.address)
    grpc.channel_ready_future(channel).result(timeout=20)
    service = rpc.InferenceStub(channel)

    request = pb.GenerateRequest(
        sampling=pb.SamplingParams(seed=options.seed, temperature=1.0),
        limits=pb.Limits(max_tokens=options.max_tokens, ignore_eos=True),
        request_id=f"python-{uuid.uuid4()}")
    if options.prompt is not None:
        request.text = options.prompt
    else:
        request.tokens.ids.extend(int(token) for token in options.tokens.split(","))

    whole = Answer().read(service.Generate(request, timeout=60))
    assert len(whole.tokens) == whole.finished.usage.completion_tokens == options.max_tokens
    assert whole.finished.reason == pb.Finished.LENGTH

    # The same once more under a name of its own, broken off after the first third.
    request.request_id = f"python-{uuid.uuid4()}"
    parts = Answer().read(service.Generate(request), most=max(1, options.max_tokens // 3))
    attach = pb.AttachRequest(request_id=request.request_id, choice=0,
                              next_index=len(parts.tokens), prefix_hash=parts.hash)
    parts.read(service.Attach(attach, timeout=60))
    assert parts.tokens == whole.tokens, "the continued stream has other tokens"
    assert parts.text == whole.text, "the continued stream has another text"

    # Errors are statuses with the field's name in them.
    try:
        list(service.Generate(pb.GenerateRequest(
            tokens=pb.TokenIds(ids=[1]), sampling=pb.SamplingParams(temperature=float("nan")))))
        raise AssertionError("a temperature of NaN was accepted")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        assert "temperature" in error.details(), error

    status = admin_rpc.AdminStub(channel).Status(admin_pb.StatusRequest(), timeout=10)
    assert status.is_ready and status.accepted >= 2, status
    models = service.ListModels(pb.ListModelsRequest(), timeout=10).models
    json.dump({"model": models[0].id, "token_ids": whole.tokens, "text": whole.text,
               "finish_reason": pb.Finished.Reason.Name(whole.finished.reason)}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
