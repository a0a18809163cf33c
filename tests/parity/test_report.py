"""What a report says: what an error looks like, where a run first goes wrong, and a page that needs nothing
else."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mindblip2.parity.compare import Row, compare
from mindblip2.parity.report.curves import svg
from mindblip2.parity.report.diagnosis import case_of, diagnose, is_part, narrowest, said
from mindblip2.parity.report.error_pattern import error_pattern
from mindblip2.parity.report.page import page, write
from mindblip2.parity.report.summary import grouped, verdict

TRUTH = np.random.default_rng(0).normal(size=(3, 8, 64))


def row(name, ratio=1.0, *facts):
    return Row(name, ratio, 1e-7, 1e-6, 1.0, 1.0, tuple(facts))


# ------------------------------------------------------------------------------------------------ what an err
def only(axis, chosen):
    error = np.zeros(TRUTH.shape)
    np.moveaxis(error, axis, 0)[chosen] = 0.1 * np.moveaxis(TRUTH, axis, 0)[chosen] ** 2
    return TRUTH + error


@pytest.mark.parametrize(
    "ours, fact",
    [
        (TRUTH + 1e-2, "constant offset +1.00e-02"),
        (TRUTH * 1.01, "constant factor 1.01"),
        (TRUTH.astype(np.float16), "rounded to float16"),
        ((TRUTH.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32), "rounded to bfloat16"),
        (
            TRUTH * (1 + 3e-4 * np.random.default_rng(1).normal(size=TRUTH.shape)),
            "as large as half-precision rounding",
        ),
        (np.roll(TRUTH, 1, 1), "shifted by +1 along axis 1"),
        (TRUTH[..., ::-1], "the right numbers in another order along the last axis"),
        (only(1, [5, 6, 7]), "only at 5-7 of 8 along axis 1 (positions: pads, or one end of the text?)"),
        (only(2, list(range(16, 32))), "only at 16-31 of 64 along axis 2 (channels: one head?)"),
        (only(0, [2]), "only at 2 of 3 along axis 0 (batch)"),
        (np.zeros(TRUTH.shape), "all zeros"),
        (np.where(TRUTH > 2, np.inf, TRUTH), f"{int((TRUTH > 2).sum())} of 1536 values are not finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_error_is_named_by_its_looks(ours, fact):
    facts = error_pattern(ours, TRUTH)
    assert fact in facts and len(facts) <= 2


def test_noise_looks_like_nothing():
    noise = np.random.default_rng(2).normal(size=TRUTH.shape)
    assert (
        error_pattern(TRUTH + 1e-7 * noise, TRUTH) == () and error_pattern(TRUTH + 0.1 * noise, TRUTH) == ()
    )


def test_only_rows_that_do_not_pass_have_a_signature():
    torch32 = TRUTH.astype(np.float32)
    assert compare("good", torch32, torch32, TRUTH).signature == ()
    assert compare("bad", (TRUTH + 1e-2).astype(np.float32), torch32, TRUTH).signature == (
        "constant offset +1.00e-02",
    )


# ------------------------------------------------------------------------------------------------ where
def test_the_narrowest_case_is_the_place():
    rows = [
        row("vit", 50),
        row("vit.blocks.0", 50),
        row("vit.blocks.0.attn", 60),
        row("vit.blocks.0.mlp"),
        row("vit.blocks.1", 50),
        row("vit.blocks.1.attn", 50),
        row("chained vit.blocks.0", 99),
    ]
    found = diagnose(rows)
    assert found.place == "vit.blocks.0.attn" and found.others == ("vit.blocks.1.attn",)
    assert (
        "in 2 of 2 layers: code or a constant" in found.facts and "heads in another order" in found.causes[0]
    )
    # the control: the other block
    rows[2], rows[5] = row("vit.blocks.0.attn"), row("vit.blocks.1.attn", 60)
    found = diagnose(rows)
    assert found.place == "vit.blocks.0" and "vit.blocks.1.attn" in found.others


def test_rows_to_look_at_are_no_divergence():
    rows = [row("vit"), row("stage1.0 d text_proj.weight", 5), row("stage1.1 d text_proj.bias", 9)]
    found = diagnose(rows)
    assert (found.title, found.place, found.others) == ("Look first at", rows[2].name, (rows[1].name,))
    assert (
        "2 lie between 4 and 10 times" in found.facts[0]
        and "chance" in found.causes[0]
        and verdict(rows).startswith("LOOK: 1 of 3")
    )
    rows.append(row("see", 11))
    assert (diagnose(rows).title, diagnose(rows).place) == ("First divergence", "see") and verdict(
        rows
    ).startswith("FAIL: 1 of 4")
    assert verdict(rows[:1]).startswith("PASS: 1 of 1")


def test_one_layer_means_weights():
    rows = [row(f"read.layers.{i}", 80 if i == 1 else 1) for i in range(4)]
    assert "in 1 of 4 layers: weights rather than code" in diagnose(rows).facts


def test_half_precision_everywhere_is_no_place():
    """Five parts of different towers; with four, or where the errors look otherwise, the first place stands
    alone."""
    places = ("vit.patch_embed", "memory", "itm_head", "vision_proj", "lm_head")
    half = [row(name, 1e3, "as large as half-precision rounding") for name in places]
    found = diagnose(half)
    assert (
        found.facts[0]
        == "5 of 5 places that share no part are off by half-precision rounding: a dtype, not a place"
    )
    assert found.causes[0].startswith("everything computes in half precision")
    for rows in (half[:4], [row(one.name, 1e3) for one in half]):
        assert not any("a dtype" in fact for fact in diagnose(rows).facts)


def test_what_fails_only_backward_is_said():
    rows = [row("caption"), row("caption d qformer.query_tokens", 90, "all zeros"), row("see")]
    found = diagnose(rows)
    assert (
        found.facts[0] == "only in the backward pass: by qformer.query_tokens"
        and "a gradient that is cut" in found.causes[-1]
    )
    rows[0] = row("caption", 90)
    assert not any("backward" in fact for fact in diagnose(rows).facts)


def test_a_chain_is_the_place_only_if_all_parts_pass():
    chain = [row(f"chained vit.blocks.{i}", 5.0 ** (i + 1)) for i in range(4)]
    found = diagnose([row("vit.blocks.0"), *chain])
    assert (
        found.place == "chained vit.blocks.1"
        and "grows with depth: ratio 5 behind the first of 4, 625 behind the last" in found.facts
    )
    assert diagnose([row("vit.blocks.0", 20), *chain]).place == "vit.blocks.0"
    assert diagnose([row("vit.blocks.0")]) is None and said(None) == ""


@pytest.mark.parametrize(
    "part, whole, right",
    [
        ("vit.blocks.1.mlp", "vit.blocks.1", True),
        ("vit.blocks.1.mlp", "vit.blocks.11", False),
        ("qformer.encoder.layers.3.attention.key", "read.layers.3", True),
        ("qformer.encoder.layers.2.attention.key", "read.layers.3", False),
        ("read.layers.3", "read", True),
        ("embed.text", "read", True),
        ("embed.text", "see", False),
        ("lm", "stage1.losses", True),
        ("llama layers.0.ffn", "llama layers.0", True),
        ("llama layers.0", "llama hidden", True),
        ("opt layers.0", "llama hidden", False),
        ("vit", "vit", False),
    ],
)
def test_parts_and_wholes(part, whole, right):
    assert is_part(part, whole) == right


def test_names_of_cases():
    # tensors of few elements share a row
    assert case_of("itc  1 d image") == case_of("itc  d temp") == "itc"
    assert (
        case_of("see.layers.0 1 d qformer.x") == "see.layers.0"
        and case_of("memory 3") == "memory"
        and case_of("vit") == "vit"
    )
    assert narrowest(["read", "read.layers.0", "read"]) == ["read.layers.0"]


# ------------------------------------------------------------------------------------------------ the page
class Elements(HTMLParser):
    """All start tags with their attributes; unclosed elements at the end."""

    VOID = ("meta", "input", "line", "circle", "polyline")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


ROWS = [
    *(row(f"vit.blocks.{i}", 1.0 + i) for i in range(3)),
    row("chained vit.blocks.0", 1.2),
    row("chained vit.blocks.1", 12.0),
    row("lm <script>alert(1)</script>", float("inf")),
]
ABOUT = {
    "date": "2026-01-01",
    "command": "python -m parity run",
    "curves": {"Loss": {"lines": {"truth": [3.0, 2.0], "ours": [3.0, 2.1]}}},
}


def test_the_page_needs_nothing_else_and_is_well_formed():
    text = page(
        ROWS, ABOUT, [{"verdict": "caught", "defect": "tanh GELU", "weakest ratio": 12.0, "caught": "vit"}]
    )
    found = Elements(text)
    assert (
        found.open == []
        and ("meta", {"name": "viewport", "content": "width=device-width,initial-scale=1"}) in found.tags
    )
    assert not any({"src", "href"} & set(attributes) for _, attributes in found.tags) and not re.search(
        r"url\(|@import|https?:", text
    )
    assert "prefers-color-scheme:dark" in text and text.count("<figure>") == 2 and "First divergence" in text
    assert "1 of 1 deliberate defects were caught" in text
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert "First divergence" not in page(ROWS[:3], ABOUT, [])


def test_the_page_of_a_json(tmp_path):
    from mindblip2.parity.report import summary

    summary.write(tmp_path / "r.json", ROWS, ABOUT, diagnose(ROWS))
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["diagnosis"]["place"] == case_of(ROWS[-1].name) and document["pass"] is False
    assert (
        write(tmp_path / "r.json") == str(tmp_path / "r.html")
        and "lm &lt;script&gt;" in (tmp_path / "r.html").read_text()
    )


def test_other_files_are_no_results(tmp_path, capsys):
    from mindblip2.parity.__main__ import main

    for content in ("", "[1]", '{"rows": 1'):
        (tmp_path / "x.json").write_text(content)
        assert main(["report", str(tmp_path / "x.json")]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert main(["report", str(tmp_path / "absent.json")]) == 2
    assert "absent.json" in capsys.readouterr().err


def test_a_curve_shows_its_numbers():
    drawn = svg("t", {"a": [1.0, 10.0, 100.0], "b": [float("inf"), 0.0]}, {"pass": 4.0})
    points = re.findall(r'polyline class="s0" points="([^"]*)"', drawn)[0].split()
    heights = [float(point.split(",")[1]) for point in points]
    # a log axis
    assert (
        heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2) and heights[0] > heights[1]
    )
    assert svg("t", {"a": []}) == ""


def test_a_table_has_one_line_for_all_layers_under_either_side_s_names():
    """LAVIS's "layer.3.…" as well as our "layers.3.…"; other parameters keep a line each."""
    names = (
        "trajectory Qformer.bert.encoder.layer.0.output.dense.bias",
        "trajectory Qformer.bert.encoder.layer.11.output.dense.weight",
        "chained vit.blocks.3.norm1",
        "chained vit.blocks.4.norm2",
        "trajectory Qformer.cls.predictions.bias",
    )
    assert {name: len(members) for name, members in grouped(map(row, names)).items()} == {
        "trajectory Qformer.bert.encoder.layer.* parts": 2,
        "chained vit.blocks.* parts": 2,
        "trajectory Qformer.cls.predictions.bias": 1,
    }
