#!/usr/bin/env python3
"""Writes unicode_classes.inc, the character ranges of pretokenizer.cc, from a table of Unicode's classes.

    make_unicode_classes.py unicode-classes-17.0.tsv > unicode_classes.inc

The table has lines `first TAB last TAB class`, hexadecimal, both ends included; classes UP (general categories Lu, Lt),
LOW (Ll), COM (Lm, Lo), MARK (M), NUM (N), NL (CR, LF), WS (other White_Space). What it does not list is "other".
"""
import hashlib
import pathlib
import sys

NAMES = {"UP": "kUpper", "LOW": "kLower", "COM": "kCommon", "MARK": "kMark", "NUM": "kNumber", "NL": "kNewline",
         "WS": "kSpace"}


def main():
    source = pathlib.Path(sys.argv[1])
    raw = source.read_bytes()
    ranges = [line.split("\t") for line in raw.decode("ascii").splitlines() if not line.startswith("#")]
    print("// Made by make_unicode_classes.py; not edited by hand. Unicode License v3 (data of unicode.org).")
    print(f"// From {source.name}, sha256 {hashlib.sha256(raw).hexdigest()}.")
    line = ""
    for first, last, name in ranges:
        entry = f"{{0x{int(first, 16):X}, 0x{int(last, 16):X}, CharClass::{NAMES[name]}}},"
        if len(line) + 1 + len(entry) > 100:
            print(line)
            line = ""
        line += (" " if line else "") + entry
    print(line)


main()
