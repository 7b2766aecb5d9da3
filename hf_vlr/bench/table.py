"""Results as a table: Markdown for a document, lines for a terminal."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hf_vlr.bench.contest import Contest, Study

Record = dict[str, Any]

COLUMNS = ("#", "measured", "against", "ours / theirs", "faster", "across dtypes", "less memory", "apart by", "goal")


# a median this many times the best run says that something else was running
QUIET = 2.0

# what the goals speak of beside a processor
ACCELERATOR = "H200"


def document(results: Record) -> str:
    """A machine's results in Markdown: the table, under it how they were measured, and the notes of lines."""
    lines = list(results["lines"].values())
    names: dict[str, list[str]] = {}
    for line in lines:
        if line.get("note"):
            names.setdefault(line["note"], []).append(line["name"])
    notes = "".join(f"\n- {', '.join(of)}: {note}" for note, of in names.items())
    return f"{markdown(lines, results['hardware']['device'])}\n\n{conditions(results)}" + (notes and f"\n{notes}")


def markdown(lines: Sequence[Record], device: str = "cpu") -> str:
    """A table of records, one line for each of our contestants and each peer.

    Beside what a processor did stands a column for the accelerator that has not run.
    """
    header, rest = (COLUMNS, ()) if device == "cuda" else ((*COLUMNS, ACCELERATOR), ("not run",))
    rows = [(*row, *rest) for record in lines for row in table_rows(record)]
    table = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in table)


def table_rows(record: Record) -> list[tuple[str, ...]]:
    """The cells of one record, by `COLUMNS`; ratios across dtypes only where a goal asks for them."""
    number = f"{record['row']}" if record["row"] else ""
    if "not_run" in record:
        return [(number, record["title"], "", f"not run: {record['not_run']}", "", "", "", "", "")]
    if "pairs" not in record:
        missed = [_goal(goal) for goal in record["goals"] if not goal["met"]]
        met = ("", "met", f"all {len(record['goals'])} met")[min(len(record["goals"]), 2)]
        goals = "; ".join(missed) or met
        first, *others = record["lines"]
        return [
            (number, record["title"], "", first, "", "", "", "", goals),
            *(("", "", "", line, "", "", "", "", "") for line in others),
        ]
    return [
        (number, record["title"], *_pair_cells(record, pair)) if place == 0 else ("", "", *_pair_cells(record, pair))
        for place, pair in enumerate(_shown(record))
    ]


def _shown(record: Record) -> list[Record]:
    return [pair for pair in record["pairs"] if pair["same_dtype"] or _goals_of(record, pair)]


def _pair_cells(record: Record, pair: Record) -> tuple[str, ...]:
    ours, peer = (next(one for one in record["contestants"] if one["name"] == pair[key]) for key in ("ours", "peer"))
    times = f"{duration(_per_item(ours))} / {duration(_per_item(peer))}"
    if record.get("item"):
        times += f" per {record['item']}"
    speed = f"{pair['speed']:.3g}×"
    return (
        f"{peer['name']}" + ("" if ours is record["contestants"][0] else f" ({ours['name']})"),
        times,
        speed if pair["same_dtype"] else "",
        "" if pair["same_dtype"] else f"{speed} ({_short(pair['dtypes'][0])} : {_short(pair['dtypes'][1])})",
        "" if pair["memory"] is None else f"{pair['memory']:.3g}×",
        parity_words(pair["parity"]),
        "; ".join([*_goals_of(record, pair), *_roof_share(record, pair)]),
    )


def _roof_share(record: Record, pair: Record) -> list[str]:
    """The share of the machine's limit with the first pair, unless a goal says it."""
    known = "roof" in record and all(goal.get("kind") != "roof" for goal in record["goals"])
    return [f"{record['roof']['share']:.0%} of the roof"] if known and pair is record["pairs"][0] else []


def _goals_of(record: Record, pair: Record) -> list[str]:
    """The goals of a pair; those of no peer stand with the first pair of our contestant."""
    first = next(other for other in record["pairs"] if other["ours"] == pair["ours"]) is pair
    return [
        _goal(goal)
        for goal in record["goals"]
        if goal["ours"] == pair["ours"] and (goal["peer"] == pair["peer"] or (not goal["peer"] and first))
    ]


def _goal(goal: Record) -> str:
    """A goal and whether it is met; the number itself where no other column has it."""
    measured = goal.get("measured")
    said = {"roof": "{:.0%}", "seconds": "{:.3g} s"}.get(goal.get("kind", ""))
    number = "" if said is None or measured is None else said.format(measured) + ", "
    # the peer stands in a column of its own
    text = goal["text"].removesuffix(f" {goal['peer']}") if goal.get("peer") else goal["text"]
    return f"{text.removesuffix(' of')}: {number}{ {True: 'met', False: 'missed', None: 'not measured'}[goal['met']] }"


def parity_words(parity: dict[str, float]) -> str:
    """The greatest relative distance of all answers, and which it is of."""
    if not parity:
        return ""
    name, worst = max(parity.items(), key=lambda item: item[1])
    return "equal" if worst == 0 else f"{worst:.0e} ({name})"


def duration(seconds: float) -> str:
    """Three digits in the unit that suits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def told(record: Record) -> list[str]:
    """A record for a terminal, line by line."""
    lines = [f"{record['row'] or '-'}  {record['name']}: {record['title']}"]
    if "not_run" in record:
        return [*lines, f"   not run: {record['not_run']}"]
    if "pairs" not in record:
        lines += [f"   {line}" for line in record["lines"]]
    else:
        lines += [f"   {_contestant_words(one, record.get('item', ''))}" for one in record["contestants"]]
        lines += [f"   {_pair_words(pair)}" for pair in record["pairs"]]
    if "roof" in record:
        roof = record["roof"]
        lines.append(
            f"   {roof['share']:.0%} of what this machine can do ({roof['limit']}; {roof['gflops']:.0f} GFLOP/s "
            f"{roof['dtype']}, {roof['gbytes']:.0f} GB/s)"
        )
    lines += [f"   goal {_goal(goal)}" + (f" ({goal['peer']})" if goal.get("peer") else "") for goal in record["goals"]]
    return lines + [
        f"   {words}" for words in (*record.get("trouble", ()), *_disturbed(record), record["note"]) if words
    ]


def _disturbed(record: Record) -> list[str]:
    """Which contestants were slower in the median than machines are by themselves."""
    slowed = [
        f"{one['name']} ({one['seconds']['median'] / one['seconds']['best']:.1f} times)"
        for one in record.get("contestants", ())
        if one["seconds"]["median"] > QUIET * one["seconds"]["best"]
    ]
    return (
        [f"! the median is far above the best: {', '.join(slowed)}; let nothing else run, and again"] if slowed else []
    )


def listed(board: Sequence[Contest | Study]) -> list[tuple[str, ...]]:
    """What can be measured: row, name and title at full size."""
    return [(str(entry.row or "-"), entry.name, entry.title.format(**entry.size_for("full", "cpu"))) for entry in board]


def _contestant_words(one: Record, item: str) -> str:
    seconds, memory = one["seconds"], one["peak_mib"]
    each = f" for {one['items']:,} {item}{'' if one['items'] == 1 else 's'}" if item else ""
    needs = "" if memory is None else f", {memory:,.0f} MiB"
    return (
        f"{one['name']} ({_short(one['dtype'])}): median {duration(seconds['median'])}, "
        f"best {duration(seconds['best'])}{each}{needs}"
    )


def _pair_words(pair: Record) -> str:
    dtypes = "" if pair["same_dtype"] else f", {_short(pair['dtypes'][0])} against {_short(pair['dtypes'][1])}"
    memory = "" if pair["memory"] is None else f", {pair['memory']:.3g} times less memory"
    apart = parity_words(pair["parity"])
    return (
        f"{pair['ours']} against {pair['peer']}: {pair['speed']:.3g} times as fast (best: {pair['speed_of_best']:.3g})"
        f"{dtypes}{memory}" + (f"; {'answers ' if apart == 'equal' else 'apart by '}{apart}" if apart else "")
    )


def _per_item(one: Record) -> float:
    return one["seconds"]["median"] / one["items"]


def _short(dtype: str) -> str:
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(dtype, dtype)


def conditions(results: Record) -> str:
    """How results were measured, in a sentence; lines of other threads, seed or scale than the most are named."""
    hardware = results["hardware"]
    chip = ", ".join(filter(None, (hardware["chip"], hardware.get("generation", ""), f"{hardware['cores']} cores")))
    lines = [record for record in results["lines"].values() if "not_run" not in record]
    if not lines:
        return f"{chip}."
    ways = Counter(_way(record) for record in lines)
    (usual, _), *_ = ways.most_common(1)
    used: dict[str, set[str]] = {}
    for record in lines:
        for name, number in record["versions"].items():
            used.setdefault(name, set()).add(number)
    versions = ", ".join(f"{name} {' or '.join(sorted(numbers))}" for name, numbers in used.items())
    others = [f" {record['name']}: {_way(record)}." for record in lines if _way(record) != usual]
    return f"{chip}, {usual}; {versions}.{''.join(others)}"


def _way(record: Record) -> str:
    threads, scale = record["threads"], record.get("scale", "full")
    small = "" if scale == "full" else f", {scale} sizes, which say whether a line runs and not how fast"
    return f"{threads} thread{'s' if threads > 1 else ''}, seed {record['seed']}{small}"
