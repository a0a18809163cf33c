"""The report for people: one HTML file that needs nothing else, for a phone and a desk, light and dark."""

import math
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from mindblip2.file_io import FileError, read_json, write_text
from mindblip2.parity.compare import LOOK, PASS, Row, row_of
from mindblip2.parity.report.curves import svg
from mindblip2.parity.report.diagnosis import Diagnosis, diagnose
from mindblip2.parity.report.summary import summary, verdict

STYLE = """
:root{color-scheme:light dark;--text:#1b1f24;--back:#fff;--soft:#f3f5f7;--line:#d5dae0;--pass:#1a7f37;--look:#9a6700;--fail:#cf222e;
--a:#0969da;--b:#bc4c00;--c:#1a7f37;--d:#8250df;--e:#bf3989;--f:#57606a}
@media(prefers-color-scheme:dark){:root{--text:#e6edf3;--back:#0d1117;--soft:#161b22;--line:#30363d;--pass:#3fb950;--look:#d29922;
--fail:#f85149;--a:#58a6ff;--b:#f0883e;--c:#3fb950;--d:#bc8cff;--e:#f778ba;--f:#8b949e}}
*{box-sizing:border-box}body{font:16px/1.5 system-ui,sans-serif;color:var(--text);background:var(--back);margin:0 auto;padding:1rem;
max-width:70rem}
h1{font-size:1.4rem}h2{font-size:1.15rem;margin-top:2rem}code,td{font-family:ui-monospace,monospace;font-size:.85rem}
.box{background:var(--soft);border:1px solid var(--line);border-radius:8px;padding:.75rem 1rem}.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.25rem .5rem;border-bottom:1px solid var(--line);white-space:nowrap}
th button{font:inherit;font-weight:600;background:none;border:0;color:inherit;cursor:pointer;padding:0}
.pass,.caught{color:var(--pass)}.look{color:var(--look)}.fail,.MISSED{color:var(--fail);font-weight:600}
figure{margin:1rem 0}svg{width:100%;height:auto;background:var(--soft);border-radius:8px}svg text{font-size:11px;fill:var(--text)}
circle{fill:var(--back)}polyline{fill:none;stroke-width:1.8}.grid{stroke:var(--line)}.limit{stroke:var(--fail);stroke-dasharray:5 4}
.s0{stroke:var(--a)}.s1{stroke:var(--b)}.s2{stroke:var(--c)}.s3{stroke:var(--d)}.s4{stroke:var(--e)}.s5{stroke:var(--f)}
.key::before{content:"";display:inline-block;width:1rem;height:.25rem;margin:0 .3rem .2rem .8rem;background:currentColor}
.key.s0{color:var(--a)}.key.s1{color:var(--b)}.key.s2{color:var(--c)}.key.s3{color:var(--d)}.key.s4{color:var(--e)}.key.s5{color:var(--f)}
input{font:inherit;padding:.3rem .5rem;width:100%;max-width:24rem;background:var(--back);color:inherit;
border:1px solid var(--line);border-radius:6px}
"""
SCRIPT = """
for(const table of document.querySelectorAll("table.sort")){const body=table.tBodies[0];
[...table.tHead.rows[0].cells].forEach((cell,i)=>{let up=false;cell.querySelector("button").onclick=()=>{up=!up;
const key=row=>{const text=row.cells[i].textContent,n=parseFloat(text);return isNaN(n)?text:n};
[...body.rows].sort((a,b)=>{const x=key(a),y=key(b);return(x<y?-1:x>y?1:0)*(up?1:-1)}).forEach(row=>body.append(row))}})}
const find=document.getElementById("find");if(find)find.oninput=()=>{for(const row of document.getElementById("rows").tBodies[0].rows)
row.hidden=!row.textContent.includes(find.value)}
"""
VERBS = ("see", "read", "match", "caption")
HEAD = ("verdict", "ratio", "rel. frobenius", "max abs", "cosine", "in 1/1000", "name")
CHAINS = {  # title -> name of a line -> pattern of rows whose number is the layer
    "ViT, block by block": {"alone": r"vit\.blocks\.(\d+)", "in the chain": r"chained vit\.blocks\.(\d+)"},
    "Q-Former, each verb's layers alone": {verb: verb + r"\.layers\.(\d+)( 0)?" for verb in VERBS},
    "Q-Former, in the chain": {verb: r"chained qformer\.encoder\.layers\.(\d+) " + verb for verb in VERBS},
    "Language model, layer by layer": {
        "alone": r"(?:llama|opt)\S* layers\.(\d+)",
        "in the chain": r"chained (?:llama|opt)\S* layers\.(\d+)",
    },
}


def write(result: str | Path, output: str | Path | None = None, mutations: str | Path | None = None) -> str:
    """The page of a JSON of results; returns its path."""
    document = load(result)
    try:
        rows = [row_of(record) for record in document["rows"]]
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise FileError(
            f"{result} is not a result of parity: a row is damaged ({str(error)[:100]}); give what --report "
            "wrote"
        ) from None
    caught = load(mutations, list) if mutations else []
    path = Path(output or Path(result).with_suffix(".html"))
    write_text(path, page(rows, document["about"], caught))
    return str(path)


def load(path: str | Path, kind: type = dict):
    """JSON of a run, or of the mutation table. Raises :class:`FileError`."""
    document = read_json(path, kind, "a result of parity", "give what --report wrote")
    if kind is dict and not (
        isinstance(document.get("rows"), list) and isinstance(document.get("about"), dict)
    ):
        raise FileError(
            f"{path} is not a result of parity: it has no rows, or no about; give what --report wrote"
        )
    if kind is list and not all(isinstance(one, dict) for one in document):
        raise FileError(f"{path} is not a mutation table of parity; give what mutations --report wrote")
    return document


def page(rows: list[Row], about: Mapping, mutations: list[Mapping]) -> str:
    """The whole file."""
    state = verdict(rows).partition(":")[0].lower()
    sections = [
        f"<h1>Parity with PyTorch, {escape(str(about.get('date', '')))}</h1>",
        f'<p class="box {state}">{escape(verdict(rows))}</p>',
        divergence(diagnose(rows)),
        figures(rows, about.get("curves", {})),
        "<h2>In short</h2>",
        table(summary(rows)[0], summary(rows)[1:]),
        "<h2>Every row</h2>",
        '<p><input id="find" placeholder="part of a name" aria-label="part of a name"></p>',
        table(HEAD, map(cells, rows), "rows"),
        noticed(mutations),
        "<h2>Where and how</h2>",
        environment(about),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        "<title>Parity with "
        f"PyTorch</title><style>{STYLE}</style></head><body>{''.join(sections)}<script>{SCRIPT}</script></body>"
        "</html>\n"
    )


def divergence(found: Diagnosis | None) -> str:
    """Where the two part first, and what it may be."""
    if found is None:
        return ""
    facts = "".join(f"<li>seen: {escape(fact)}</li>" for fact in found.facts)
    causes = "".join(f"<li>likely: {escape(cause)}</li>" for cause in found.causes)
    others = (
        f"<p>Also without a failing part: {escape(', '.join(found.others[:12]))}</p>" if found.others else ""
    )
    return f'<h2>{found.title}</h2><div class="box"><p class="fail">{escape(found.place)}</p><ul>{facts}{causes}</ul>{others}</div>'


def figures(rows: list[Row], curves: Mapping[str, Mapping]) -> str:
    """Ratios over layers, and what a run over steps left."""
    limits = {"pass": PASS, "look": LOOK}
    drawn = []
    for title, lines in CHAINS.items():
        series = {
            name: found for name, pattern in lines.items() if len(found := over_layers(rows, pattern)) > 1
        }
        drawn.append(svg(title + ": ratio", series, limits) if series else "")
    drawn += [
        svg(title, curve["lines"], log=curve.get("log", False), x_label=curve.get("x", "step"))
        for title, curve in curves.items()
    ]
    return "<h2>Over the depth</h2>" + "".join(drawn) if any(drawn) else ""


def over_layers(rows: Iterable[Row], pattern: str) -> list[float]:
    """Ratios in the order of the layers."""
    found = {int(match[1]): row.ratio for row in rows if (match := re.fullmatch(pattern, row.name))}
    return [found[i] for i in sorted(found)]


def cells(row: Row) -> tuple[str, ...]:
    return (
        row.verdict,
        f"{row.ratio:.3g}",
        f"{row.rel_frobenius:.2e}",
        f"{row.max_abs:.2e}",
        f"{row.cosine:.9f}",
        f"{row.within_1000th:.2%}",
        row.name,
    )


def table(head: Iterable[str], lines: Iterable[Iterable[str]], name: str = "") -> str:
    """A table whose columns sort at a touch; the first column is a verdict."""
    top = "".join(f"<th><button>{escape(title)}</button></th>" for title in head)
    body = "".join(
        f'<tr><td class="{escape(first)}">{escape(first)}</td>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in lines
    )
    return f'<div class="wide"><table class="sort" id="{name}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def noticed(mutations: list[Mapping]) -> str:
    """What a run of all deliberate defects gave."""
    if not mutations:
        return ""
    lines = [
        (
            str(one["verdict"]),
            str(one["defect"]),
            f"{one['weakest ratio'] or math.inf:.3g}",
            str(one["caught"]),
        )
        for one in mutations
    ]
    count = sum(one["verdict"] == "caught" for one in mutations)
    return (
        f"<h2>What would be noticed</h2><p>{count} of {len(mutations)} deliberate defects were caught where "
        "they should be.</p>" + table(("verdict", "defect", "weakest ratio", "by"), lines)
    )


def environment(about: Mapping) -> str:
    """Date, hardware, versions, command."""
    lines = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in about.items()
        if name != "curves"
    )
    return f'<div class="wide"><table>{lines}</table></div>' + (
        f"<p>Ratio: rms(ours − truth in float64) / rms(torch − truth); up to {PASS:g} passes.</p>"
    )
