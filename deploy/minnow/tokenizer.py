"""Minnow's tokenizer: byte-level BPE in the form of gpt-oss's tokenizer.json, trained on its own world.

Digits are never merged: every digit of a number is a token of its own, which is what makes sums learnable.
"""
import json

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import harmony

LETTERS = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"])
REST = "|".join([r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])


def byte_map():
    """GPT-2's spelling of bytes as visible characters, in the order of their ids."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    for number, byte in enumerate(byte for byte in range(256) if byte not in table):
        table[byte] = chr(0x100 + number)
    return table


def byte_level(add_prefix_space, trim_offsets, use_regex):
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": trim_offsets, "use_regex": use_regex}


def train(texts, vocab_size):
    """-> the tokenizer.json as a dict. vocab_size counts the 21 markers."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(f"{LETTERS}|\\p{{N}}|{REST}"), "isolated"),  # One digit a piece: no merge can join two.
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    spelled = list(byte_map().values())
    trained.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size - len(harmony.MARKERS), initial_alphabet=spelled, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in learned["merges"]]
    # Ids are ranks: the bytes in GPT-2's order, then each merge in the order in which it was learned.
    vocab = {spelling: number for number, spelling in enumerate(spelled)}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    first = len(vocab)
    assert first + len(harmony.MARKERS) == vocab_size, (first, vocab_size)
    added = [{"id": first + number, "content": marker, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for number, marker in enumerate(harmony.MARKERS)]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": f"{LETTERS}|\\p{{N}}{{1,3}}|{REST}"}, "behavior": "Isolated",
             "invert": False}, byte_level(False, True, False)]},
        "post_processor": byte_level(True, False, True), "decoder": byte_level(True, True, True),
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
                  "vocab": vocab, "merges": merges}}


class Codec:
    """Parts of harmony.py to ids and back. Text never becomes a marker."""

    def __init__(self, path):
        self.tokenizer = Tokenizer.from_file(str(path))
        self.markers = {marker: self.tokenizer.token_to_id(marker) for marker in harmony.MARKERS}
        self.names = {number: marker for marker, number in self.markers.items()}
        self.plain = Tokenizer(self.tokenizer.model)  # The same without added tokens.
        self.plain.pre_tokenizer = self.tokenizer.pre_tokenizer
        self.plain.decoder = decoders.ByteLevel()
        self.cache = {}

    def text(self, text):
        ids = self.cache.get(text)
        if ids is None:
            ids = self.plain.encode(text, add_special_tokens=False).ids
            if len(self.cache) < 20_000:
                self.cache[text] = ids
        return ids

    def encode(self, parts):
        ids = []
        for part in parts:
            number = self.markers.get(part)
            if number is None:
                ids += self.text(part)
            else:
                ids.append(number)
        return ids

    def learned(self, parts):
        """-> [(index of its first token, ids)] of the parts that are harmony.Learned."""
        found, at = [], 0
        for part in parts:
            ids = self.encode([part])
            if isinstance(part, harmony.Learned):
                found.append((at, ids))
            at += len(ids)
        return found

    def decode(self, ids):
        """Text with markers spelled out."""
        text, run = "", []
        for number in [*ids, None]:
            if number is not None and number not in self.names:
                run.append(number)
                continue
            text += self.plain.decode(run) if run else ""
            run = []
            text += self.names.get(number, "")
        return text
