# SPDX-License-Identifier: Apache-2.0
"""`report.md`: a table of the results, with notes on how they were measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from headkv_vllm.errors import EvaluationError
from headkv_vllm.evaluation.cells import FULL, GIVEN
from headkv_vllm.evaluation.run_record import RunRecord
from headkv_vllm.evaluation.summary import UNIFORM, Interval, SummaryRow

HEADER: Final = (
    *("task", "length", "policy", "budget", "score %", "against full", "against uniform", "n"),
    *("kept tokens", "kept %", "kept KiB", "output tokens"),
)
NUM_TEXT_COLUMNS: Final = 1
UNKNOWN: Final = "-"


def write_report(rows: Sequence[SummaryRow], record: RunRecord, folder: Path) -> Path:
    """Write `report.md` in `folder`; returns its path. Raises EvaluationError."""
    path = folder / "report.md"
    try:
        path.write_text(report(rows, record))
    except OSError as error:
        raise EvaluationError(f"{str(path)!r} cannot be written: {error.strerror}") from None
    return path


def report(rows: Sequence[SummaryRow], record: RunRecord, *notes: str) -> str:
    """The report as Markdown. notes: sentences to add to its own."""
    parts = [
        f"# {_title(record)}",
        "\n".join(table(rows)),
        "\n".join(f"- {note}" for note in [*_notes(rows, record), *notes]),
        f"Made by\n\n```sh\n{record.command}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[SummaryRow]) -> list[str]:
    """The lines of a Markdown table, a row for each cell."""
    rule = ["---" if i < NUM_TEXT_COLUMNS else "---:" for i in range(len(HEADER))]
    lines = [HEADER, rule, *(_cells(row) for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cells(row: SummaryRow) -> list[str]:
    cell = row.cell
    return [
        cell.task,
        f"{cell.length:,}" if cell.length else "whole",
        cell.policy,
        UNKNOWN if cell.budget is None else str(cell.budget),
        f"{_per_cent(row.score.mean)} ({_bounds(row.score)})",
        _difference(row.against_full),
        _difference(row.against_uniform),
        str(row.n),
        _number(row.kept_tokens),
        UNKNOWN if row.kept_share is None else _per_cent(row.kept_share),
        UNKNOWN if row.kept_bytes is None else _number(row.kept_bytes / 1024),
        f"{row.output_tokens:.1f}",
    ]


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.1f}"


def _per_cent(value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f}"


def _bounds(interval: Interval, sign: str = "") -> str:
    return f"{_per_cent(interval.low, sign)} to {_per_cent(interval.high, sign)}"


def _difference(interval: Interval | None) -> str:
    if interval is None:
        return UNKNOWN
    star = "" if interval.low <= 0 <= interval.high else " *"
    return f"{_per_cent(interval.mean, '+')} ({_bounds(interval, '+')}){star}"


def _title(record: RunRecord) -> str:
    name = str(record.answers_depend_on["model"])
    agnostic = record.answers_depend_on["question_agnostic"]
    return f"{name}, compressed before the question was known" if agnostic else name


def _notes(rows: Sequence[SummaryRow], record: RunRecord) -> list[str]:
    depends_on = record.answers_depend_on
    notes = [
        "Score: mean over the samples, by the task's own metric. Interval: percentile bootstrap of "
        "the mean, 2,000 resamples. If all samples have the same score it has no width, which says "
        "nothing about other samples."
    ]
    if any(row.against_full or row.against_uniform for row in rows):
        notes.append(
            f"Against: points more or less than policy {FULL}, or than {UNIFORM} with the same "
            "budget, with the interval of the mean difference on the same samples. A star marks an "
            "interval without 0."
        )
    if depends_on["chat"]:
        notes.append("Asked in the tokenizer's chat format; its tokens are part of the prompt.")
    notes += _memory_notes(rows, record)
    if depends_on["question_agnostic"]:
        notes.append(
            "The prompt was the context alone. The question followed as forced output, so nothing "
            "that chose what to keep had seen it. Its tokens come on top of the kept KiB; output "
            "tokens do not count them."
        )
    notes.append(
        f"Greedy. Seed {depends_on['seed']}, block size {depends_on['block_size']}, dtype "
        f"{depends_on['dtype']}, settings {depends_on['settings'] or 'as by default'}."
    )
    notes.append(_installation(record))
    return notes


def _memory_notes(rows: Sequence[SummaryRow], record: RunRecord) -> list[str]:
    if any(row.cell.policy == GIVEN for row in rows):
        return [f"Policy {GIVEN}: what the server at {record.answers_depend_on['url']} does."]
    notes = [
        "Kept tokens: of a prompt, per KV head on average. Kept KiB: KV memory that a prompt holds "
        "once it is computed. Means over the prompts, by plan, from each prompt's tokens as the "
        "server counted them (headkv plan), in whole blocks of "
        f"{record.answers_depend_on['block_size']} tokens; the sum over all prompts was compared "
        "with the server's own count. "
        + (
            f"Policy {FULL} is stock vLLM at its own block size, counted in the same blocks."
            if record.answers_depend_on["stock"]
            else f"Policy {FULL} is the same server with budget 0."
        )
    ]
    notes += [f"Head scores of {policy}: {source}." for policy, source in record.scores.items()]
    return notes


def _installation(record: RunRecord) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    machine = record.machine
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    return (
        f"{versions}; {machine['processor'] or 'processor unknown'}, "
        f"{machine['processors']} processors, {gpus}; {record.started}."
    )
