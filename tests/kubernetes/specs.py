"""The report of e2e.test, compared with the lists of specs that must pass and of those that are known to fail."""

import json
import os
import re

HEAD = """# The specs of Kubernetes' e2e tests that must pass.
# Written by tests/kubernetes/run --record. known.txt has those that fail, with the reason.
"""


class Outcome:
    """The names of the specs by their state; `failed` has the message of each."""

    def __init__(self):
        self.planned, self.passed, self.failed, self.skipped = set(), set(), {}, set()


def read(report):
    outcome = Outcome()
    with open(report, encoding="utf-8") as file:
        suites = json.load(file)
    for suite in suites:
        for spec in suite.get("SpecReports") or []:
            if spec["LeafNodeType"] != "It":
                continue
            name = " ".join([*(spec["ContainerHierarchyTexts"] or []), spec["LeafNodeText"]])
            state = spec["State"]
            # Specs that the focus leaves out are skipped without a message.
            if state == "skipped" and not (spec.get("Failure") or {}).get("Message"):
                continue
            outcome.planned.add(name)
            if state == "passed":
                outcome.passed.add(name)
            elif state in ("skipped", "pending"):
                outcome.skipped.add(name)
            else:
                outcome.failed[name] = state + ": " + (spec.get("Failure") or {}).get("Message", "")
    return outcome


def names(path):
    """The lines of a list without comments."""
    if not os.path.exists(path):
        return set()
    with open(path, encoding="utf-8") as file:
        return {line.rstrip("\n") for line in file if line.strip() and not line.startswith("#")}


def tail(path, lines=40):
    with open(path, encoding="utf-8", errors="replace") as file:
        return "".join(file.readlines()[-lines:])


def report(path, folder, *, record, focused, serial):
    """Prints the result and returns the exit code. If the run was not `focused`, all serial specs of the list ran, or all others."""
    outcome = read(path)
    must, known = names(f"{folder}/must-pass.txt"), names(f"{folder}/known.txt")
    for name, why in sorted(outcome.failed.items()):
        label = "MUST PASS" if name in must else "known" if name in known else "new"
        print(f"failed ({label}): {name}\n    " + re.sub(r"\s*\n\s*", "\n    ", why.strip()[:600]))
    for name in sorted(outcome.passed & known):
        print(f"passed, although it is in known.txt: {name}")
    if record:
        must |= outcome.passed
        with open(f"{folder}/must-pass.txt", "w", encoding="utf-8") as file:
            file.write(HEAD + "".join(name + "\n" for name in sorted(must)))
    must = {name for name in must if ("[Serial]" in name) == serial}
    missing = set() if focused else must - outcome.passed - set(outcome.failed)
    for name in sorted(missing):
        print(f"did not run (MUST PASS): {name}")
    bad = (set(outcome.failed) & must) | missing
    unknown = set(outcome.failed) - must - known
    print(f"Kubernetes' conformance: {len(outcome.passed)} passed, {len(outcome.failed)} failed ({len(unknown)} of them on no list), "
          f"{len(outcome.skipped)} skipped; {len(must)} must pass")
    return 1 if bad else 0
