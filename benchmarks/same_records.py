"""Compare records with those of a commit, to the last digit: `python -m benchmarks.same_records
COMMIT [ROOT]`.

`git` is left out, as it names the commit. Records that one side lacks are listed. Exit code 1 where
a figure differs.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

RECORDS = "data/results/records"
RENAMED = {  # words of older records, and what they are called now
    '"split": "tuned"': '"subset": "seen"',
    '"split": "held_out"': '"subset": "unseen"',
    '"pictures"': '"images"',
    '"stay-': '"within_superclass-',
    '"every-': '"all_levels-',
    '"contradictions"': '"path_inconsistency"',
    "/tuned.json": "/seen.json",
    "/held_out.json": "/unseen.json",
}


def committed(commit: str) -> dict[str, dict]:
    """Return a commit's records of the default, by METHOD-SEED/SUBSET."""
    listing = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", commit, RECORDS],
        capture_output=True,
        encoding="utf8",
        check=True,
    )
    records = {}
    for path in listing.stdout.splitlines():
        text = subprocess.run(
            ["git", "show", f"{commit}:{path}"], capture_output=True, encoding="utf8", check=True
        ).stdout
        name = renamed(path).removeprefix(f"{RECORDS}/").removesuffix(".json")
        records[name] = json.loads(renamed(text))
    return records


def renamed(text: str) -> str:
    """Write a record's text or path in the words of today."""
    for old, new in RENAMED.items():
        text = text.replace(old, new)
    return text


def present(root: Path) -> dict[str, dict]:
    """Return the records under a project's folder, by METHOD-SEED/SUBSET."""
    folder = root / RECORDS
    paths = sorted(folder.glob("*/*.json"))
    return {
        str(path.relative_to(folder).with_suffix("")): json.loads(path.read_text("utf8"))
        for path in paths
    }


def flat(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Yield every leaf of nested dicts and lists with its place."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from flat(part, f"{key}.{name}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from flat(part, f"{key}[{index}]")
    else:
        yield key, value


def main(commit: str, root: str = ".") -> int:
    """Print what differs; return 1 where a figure does."""
    old, new = committed(commit), present(Path(root))
    differing = compared = 0
    for name in sorted(set(old) ^ set(new)):
        print(f"{name}: only {'in ' + commit if name in old else 'here'}")
    for name in sorted(set(old) & set(new)):
        before, after = dict(flat(old[name])), dict(flat(new[name]))
        for key in sorted((before.keys() | after.keys()) - {".git"}):
            compared += 1
            if before.get(key) != after.get(key):
                differing += 1
                print(f"{name}{key}: {before.get(key)} in {commit}, {after.get(key)} here")
    print(f"{compared} figures of {len(set(old) & set(new))} records compared, {differing} differ")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
