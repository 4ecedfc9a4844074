#!/usr/bin/env python3
"""summary.py LOG...: counts the tests in the logs of `ctest --verbose`, says why any were skipped or failed.

A GoogleTest program counts its cases, any other program counts as one. Exit status 1 if one failed or none ran.
The last line reads "N passed, N failed, N skipped".
"""
import collections
import re
import sys

PREFIX = re.compile(r"^(\d+): ?(.*)$")
START = re.compile(r"^test (\d+)$")
CASE = re.compile(r"^\[\s+(OK|FAILED|SKIPPED)\s+\] (\S+?)(?:, where .*)? \(\d+ ms\)$")
END = re.compile(r"^\s*\d+/\d+ Test\s+#(\d+): (\S+) \.*\s*(.*?)\s+([\d.]+) sec")


def read(path):
    cases = collections.defaultdict(list)  # Number of the ctest test -> [(outcome, name)]
    lines = collections.defaultdict(list)
    programs = []
    for line in open(path, errors="replace"):
        line = line.rstrip("\n")
        if match := PREFIX.match(line):
            number, text = match.groups()
            lines[number].append(text)
            if case := CASE.match(text):
                cases[number].append(case.groups())
        elif match := END.match(line):
            programs.append(match.groups())
    return cases, lines, programs


def main():
    passed, failed, skipped = 0, [], []
    for path in sys.argv[1:]:
        cases, lines, programs = read(path)
        for number, name, outcome, _ in programs:
            is_bad = "Passed" not in outcome and "Skipped" not in outcome
            for result, case in cases[number]:
                if result == "OK":
                    passed += 1
                elif result == "FAILED":
                    failed.append(f"{path}: {name}: {case}")
                else:
                    text = lines[number]
                    at = next(i for i, l in enumerate(text) if "SKIPPED" in l and case in l)
                    why = [l for l in text[max(0, at - 4):at] if l and not l.startswith("[") and "Skipped" not in l]
                    skipped.append(f"{name}: {case}: {' '.join(why) or 'no reason given'}")
            if not cases[number]:
                if "Skipped" in outcome:
                    why = [l for l in lines[number] if "SKIPPED" in l]
                    skipped.append(f"{name}: {' '.join(why) or 'no reason given'}")
                elif not is_bad:
                    passed += 1
            if is_bad and not any(result == "FAILED" for result, _ in cases[number]):
                failed.append(f"{path}: {name}: {outcome or 'failed'}")
            if is_bad:
                print(f"---- {name}: {outcome}\n" + "\n".join(lines[number][-60:]))
    for line in skipped:
        print(f"SKIPPED {line}")
    for line in failed:
        print(f"FAILED  {line}")
    print(f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped")
    return 1 if failed or passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
