# SPDX-License-Identifier: Apache-2.0
"""`headkv scores ...`: shows and compares score files, imports scores of other programs."""

import json
import os.path
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.console import Console
from rich.table import Table

from headkv_vllm.errors import ScoreFileError, SettingsError, shown
from headkv_vllm.head_scores.library import find_score_file
from headkv_vllm.output.command_line import check_out, model_name, readable_errors
from headkv_vllm.output.tables import layer_table, printable

if TYPE_CHECKING:
    from headkv_vllm.arrays import FloatArray
    from headkv_vllm.head_scores.file import Provenance, ScoreFile
    from headkv_vllm.head_scores.imported_file import ImportedScores
    from headkv_vllm.head_scores.statistics import ScoreComparison, ScoreSummary

NO_FOLD = "none"

scores_app = typer.Typer(
    name="scores",
    help="Head scores: show a file, compare two, or import one from another program.",
    no_args_is_help=True,
)

ScoreFileArgument = Annotated[
    str, typer.Argument(help="Score file, or the name of a bundled one, such as needle.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
PngOption = Annotated[Path | None, typer.Option(help="Also write a heat map to this PNG file.")]


@scores_app.command()
def show(
    file: ScoreFileArgument,
    top: Annotated[int, typer.Option(min=0, help="How many of the highest scores to list.")] = 10,
    fold: Annotated[
        str,
        typer.Option(help="mean, max or sum of the query heads' scores: show KV heads."),
    ] = NO_FOLD,
    png: PngOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the origin of a score file and the distribution of its scores, with a heat map."""
    from headkv_vllm.head_scores.file import read_score_file
    from headkv_vllm.head_scores.statistics import summarise

    with readable_errors():
        scores = read_score_file(find_score_file(file))
        values = _folded(scores, fold)
        summary = summarise(values, top)
        head = "query head" if fold == NO_FOLD else f"KV head ({fold} of its query heads)"
        if png is not None:
            from headkv_vllm.output.pictures import heat_map

            title = printable(f"{scores.model.name} ({scores.method})")
            heat_map(values, title, "score", png, head)
    if as_json:
        provenance = scores.model_dump(mode="json", exclude={"scores"}, exclude_none=True)
        typer.echo(json.dumps({**provenance, "fold": fold, "summary": asdict(summary)}, indent=2))
        return
    console = Console(highlight=False)
    console.print(_two_columns({**_provenance(scores), **_spread(summary, head)}), "", sep="\n")
    if top:
        console.print(_top(summary), "", sep="\n")
    shares = [f"{share:.1%}" for share in summary.layer_shares]
    console.print(layer_table(values, {"share": shares}, console.width))


@scores_app.command()
def diff(a: ScoreFileArgument, b: ScoreFileArgument, as_json: JsonOption = False) -> None:
    """Show how much two score files agree: correlation, and the highest heads in common."""
    from headkv_vllm.head_scores.file import read_score_file
    from headkv_vllm.head_scores.statistics import compare

    with readable_errors():
        first, second = (read_score_file(find_score_file(name)) for name in (a, b))
        comparison = compare(first.values, second.values)
    same_model = first.model.identity == second.model.identity
    if as_json:
        typer.echo(json.dumps({**asdict(comparison), "same_model": same_model}, indent=2))
        return
    console = Console(highlight=False)
    console.print(_agreement(comparison, same_model))


@scores_app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="File to import; for DuoAttention also its folder.")],
    model: Annotated[str, typer.Option(help="The model: a checkpoint's folder or a hub id.")],
    out: Annotated[Path, typer.Option(help="Score file to write.")],
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format", help="reference, duo-attention or kvzip. Without it: by the file's suffix."
        ),
    ] = None,
    tensor: Annotated[
        str | None, typer.Option(help="The tensor of a safetensors file that has the scores.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name. Without it: the last part of --model.")
    ] = None,
    notes: Annotated[str | None, typer.Option(help="Added to the file's notes.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite --out if it exists.")] = False,
) -> None:
    """Write a score file from the scores of another program.

    Formats: reference, the JSON line of the retrieval-head and HeadKV code;
    duo-attention, full_attention_heads.tsv; kvzip, one tensor in .safetensors
    or .npy. Only the config and the weights' headers of the model are read.
    """
    from headkv_vllm.head_scores.checkpoint_folder import find_checkpoint_folder
    from headkv_vllm.head_scores.file import ScoredModel, ScoreFile, write_score_file
    from headkv_vllm.head_scores.identity import identify_checkpoint
    from headkv_vllm.head_scores.importers import find_importer, guess_format

    with readable_errors():
        _check_paths(file, out, force)
        format_name = format_name or guess_format(file)
        read = find_importer(format_name, tensor)
        identity = identify_checkpoint(find_checkpoint_folder(model))
        imported = read(file, identity)
        score_file = ScoreFile(
            schema_version=1,
            model=ScoredModel(name=name or model_name(model), identity=identity),
            method=f"imported: {format_name}",
            provenance=_imported_from(imported, notes),
            scores=tuple(map(tuple, imported.scores.tolist())),
        )
        write_score_file(out, score_file)
    typer.echo(f"{out}: scores of {identity.num_layers} layers x {identity.num_heads} query heads")


def _folded(scores: "ScoreFile", fold: str) -> "FloatArray":
    from headkv_vllm.head_scores.scores import Fold, fold_query_heads

    if fold == NO_FOLD:
        return scores.values
    for how in get_args(Fold):
        if fold == how:
            return fold_query_heads(scores.values, scores.model.identity.num_kv_heads, how)
    allowed = ", ".join((NO_FOLD, *get_args(Fold)))
    raise SettingsError(f"--fold is {shown(fold)}, allowed are {allowed}")


def _provenance(scores: "ScoreFile") -> dict[str, object]:
    identity = scores.model.identity
    sizes = (
        f"{identity.num_layers} layers, {identity.num_heads} query heads, "
        f"{identity.num_kv_heads} KV heads of size {identity.head_size}"
    )
    rows: dict[str, object] = {
        "model": scores.model.name,
        "architecture": identity.architecture,
        "sizes": sizes,
        "fingerprint": identity.fingerprint,
        "method": scores.method,
        **scores.provenance.model_dump(exclude_none=True),
    }
    rows["lengths"] = ", ".join(map(str, scores.provenance.lengths)) or "not known"
    return rows


def _spread(summary: "ScoreSummary", head: str) -> dict[str, object]:
    total = summary.num_layers * summary.num_heads
    return {
        "shown per": head,
        "top 5 %": f"{summary.num_top_5_percent} of {total} heads have "
        f"{summary.share_top_5_percent:.1%} of the sum of all scores",
        "half": f"{summary.num_heads_for_half} of {total} heads have half of the sum",
    }


def _top(summary: "ScoreSummary") -> Table:
    table = Table("rank", "layer", "head", "score", "share", box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    for rank, head in enumerate(summary.top, 1):
        row = (rank, head.layer, head.head, f"{head.score:.6g}", f"{head.share:.1%}")
        table.add_row(*map(str, row))
    return table


def _agreement(comparison: "ScoreComparison", same_model: bool) -> Table:
    def shown_or_not(value: float | None) -> str:
        return "none: one side is constant" if value is None else f"{value:.4f}"

    return _two_columns(
        {
            "Pearson": shown_or_not(comparison.pearson),
            "Spearman": shown_or_not(comparison.spearman),
            f"top {comparison.num_top} heads in common": f"{comparison.top_overlap:.1%}",
            "made for the same model": "yes" if same_model else "no",
        }
    )


def _two_columns(rows: dict[str, object]) -> Table:
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # an incomplete fingerprint is useless
    for name, value in rows.items():
        table.add_row(name.replace("_", " "), Text(printable(str(value))))
    return table


def _check_paths(file: Path, out: Path, force: bool) -> None:
    """Check the paths before the model is loaded, which may take a download."""
    if not os.path.exists(file):
        raise ScoreFileError(f"{str(file)!r} cannot be imported: there is no such file")
    check_out(out, force=force)


def _imported_from(imported: "ImportedScores", notes: str | None) -> "Provenance":
    from headkv_vllm.head_scores.file import Provenance
    from headkv_vllm.version import tool_version

    source = imported.source
    origin = f"{source.path.name}, SHA-256 {source.sha256}"
    return Provenance(
        tool_version=tool_version(),
        num_samples=imported.num_samples,
        notes=f"{origin}; {notes}" if notes else origin,
    )
