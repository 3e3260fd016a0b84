"""What was promised, how often was it tried, and what failed?

    DUALPROX_PROMISES=benchmarks/results/reliability/promises.json ./dev test
    python benchmarks/reliability.py

Makes the tables of docs/reliability.md, one for each area, between its marks, from the records
that the tests have left (tests/promises.py).
"""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from dualprox.files import write_text

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
RECORDS = ROOT / "benchmarks" / "results" / "reliability" / "promises.json"
MARK = re.compile(r"(<!-- tried: (?P<area>[a-z ]+) -->\n).*?(<!-- /tried -->)", re.DOTALL)


def table(records: dict[str, dict[str, Any]], area: str) -> str:
    """The promises of an area, a row each, with the tests that try them."""
    rows: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for test, record in records.items():
        if record["area"] == area:
            name = test.partition("[")[0].replace("::", " · ").removeprefix("tests/")
            rows[record["promise"], record["unit"]].append((name, record))
    lines = ["", "| promised | tried | failed | on | by |", "|---|--:|--:|---|---|"]
    for (promise, unit), found in rows.items():
        tried, failed = (sum(record[key] for _, record in found) for key in ("tried", "failed"))
        where = ", ".join(sorted({f"{r['machine']}, torch {r['torch']}" for _, r in found}))
        tests = ", ".join(f"`{name}`" for name in dict.fromkeys(name for name, _ in found))
        lines.append(f"| {promise} | {tried:,} {unit} | {failed:,} | {where} | {tests} |")
    return "\n".join([*lines, "", ""])


def main() -> None:
    """Write the page's tables anew.

    Raises:
        SystemExit: records of an area that the page has no place for.
    """
    records = json.loads(RECORDS.read_text())
    page = PAGE.read_text()
    lacking = {r["area"] for r in records.values()} - {m["area"] for m in MARK.finditer(page)}
    if lacking:
        raise SystemExit(f"{PAGE} has no place for {', '.join(sorted(lacking))}")
    write_text(PAGE, MARK.sub(lambda m: m[1] + table(records, m["area"]) + m[3], page))


if __name__ == "__main__":
    main()
