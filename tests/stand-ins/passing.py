"""Compares the passed tests of a suite with the list of tests that must pass. The reports of the suites use it."""


def compare(suite, list_path, head, passed, failed, skipped, *, record=False, part=False):
    """Prints the differences and returns the exit code. `failed` has an explanation, possibly empty, by name. `record` rewrites the list;
    with `part`, tests of the list that did not run are not reported."""
    with open(list_path) as file:
        must = {line.strip() for line in file if line.strip() and not line.startswith("#")}
    for name, why in sorted(failed.items()):
        print(f"failed ({'MUST PASS' if name in must else 'not on the list'}): {name}")
        if why:
            print(f"    {why}")
    if record:
        with open(list_path, "w") as file:
            file.write(head + "".join(name + "\n" for name in sorted(passed)))
        must = passed
    missing = set() if part else must - passed - set(failed)
    for name in sorted(missing):
        print(f"did not pass (MUST PASS): {name}")
    print(f"{suite}: {len(passed)} passed, {len(failed)} failed, {skipped} skipped; {len(must)} must pass")
    return 1 if (set(failed) & must) or missing else 0
