# SPDX-License-Identifier: Apache-2.0
import re
import struct
import subprocess
import sys

import numpy as np
import pytest

from headkv_vllm.errors import HeadKVError
from headkv_vllm.output.pictures import heat_map

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def values(num_layers, num_heads, seed=0):
    return np.random.default_rng(seed).pareto(2, (num_layers, num_heads))


def chunks(data):
    """Type and contents of each chunk of a PNG."""
    assert data[:8] == SIGNATURE
    found, start = [], 8
    while start < len(data):
        (length,) = struct.unpack(">I", data[start : start + 4])
        found.append((data[start + 4 : start + 8], data[start + 8 : start + 8 + length]))
        start += 12 + length
    return found


def size(data):
    return struct.unpack(">II", dict(chunks(data))[b"IHDR"][:8])


def drawn(path, *arguments):
    heat_map(*arguments, path)
    return path.read_bytes()


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (32, 8), (32, 32), (80, 64), (2, 128)])
def test_a_picture_has_a_size_to_look_at(shape, tmp_path):
    width, height = size(drawn(tmp_path / "a.png", values(*shape), "title", "label"))
    assert 600 <= width <= 1800 and 400 <= height <= 1700


def test_more_layers_make_it_higher_and_more_heads_wider(tmp_path):
    low, high, wide = (
        size(drawn(tmp_path / "a.png", values(*shape), "title", "label"))
        for shape in [(20, 20), (40, 20), (20, 40)]
    )
    assert high[0] == low[0] < wide[0]
    assert wide[1] == low[1] < high[1]


@pytest.mark.filterwarnings("error")
def test_letters_that_the_font_lacks_are_no_noise(tmp_path):
    assert drawn(tmp_path / "a.png", values(2, 2), "\u6a21\u578b", "label")


def test_the_same_input_gives_the_same_bytes_and_other_input_others(tmp_path):
    first = drawn(tmp_path / "a.png", values(4, 8), "title", "label")
    assert drawn(tmp_path / "b.png", values(4, 8), "title", "label") == first
    others = [
        drawn(tmp_path / "c.png", values(4, 8, seed=1), "title", "label"),
        drawn(tmp_path / "c.png", values(4, 8), "another", "label"),
        drawn(tmp_path / "c.png", values(4, 8), "title", "another"),
    ]
    assert len({first, *others}) == 4


def test_it_says_neither_when_nor_by_what_it_was_made(tmp_path):
    kinds = {kind for kind, _ in chunks(drawn(tmp_path / "a.png", values(4, 4), "title", "label"))}
    assert kinds <= {b"IHDR", b"pHYs", b"IDAT", b"IEND"}


def test_layers_go_down_and_heads_across(tmp_path):
    from matplotlib.image import imread

    peak = np.zeros((20, 40))
    peak[0, 30] = 1
    heat_map(peak, "title", "label", tmp_path / "a.png")
    red, green, blue = np.moveaxis(imread(tmp_path / "a.png")[..., :3], 2, 0)
    yellow = (red > 0.9) & (green > 0.85) & (blue < 0.3)
    down, across = np.nonzero(yellow[:, : int(yellow.shape[1] * 0.85)])  # without the colour bar
    assert down.size > 0
    assert down.max() < 0.2 * yellow.shape[0] and across.min() > 0.6 * yellow.shape[1]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4)),
        np.full((4, 4), 7, dtype=np.int32),
        np.full((20, 4), 1e-12),
        np.full((3, 3), 1e300),
        np.array([[-1.0, 2.0]]),
    ],
    ids=["zeros", "equal", "tiny", "huge", "below zero"],
)
def test_any_range_of_values_is_drawn(array, tmp_path):
    assert drawn(tmp_path / "a.png", array, "title", "label")[:8] == SIGNATURE


@pytest.mark.parametrize("title", ["", "costs $5, not $6", "\\frac{", "a long title " * 30])
def test_any_title_is_drawn(title, tmp_path):
    assert drawn(tmp_path / "a.png", values(4, 4), title, title)[:8] == SIGNATURE


@pytest.mark.parametrize(
    ("name", "start"), [("a.svg", b"<?xml"), ("a.pdf", b"%PDF"), ("a.PNG", SIGNATURE)]
)
def test_the_suffix_chooses_the_format(name, start, tmp_path):
    assert drawn(tmp_path / name, values(2, 2), "title", "label").startswith(start)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a", "must have one of the suffixes .png, .svg, .pdf"),
        ("a.jpeg2", "must have one of the suffixes .png, .svg, .pdf"),
        ("missing/a.png", "cannot be written: No such file or directory"),
        ("folder.png", "cannot be written: Is a directory"),
        ("a\0.png", "cannot be written: embedded null byte"),
        ("a" * 300 + ".png", "cannot be written: File name too long"),
    ],
)
def test_a_path_that_does_not_do_is_refused_in_one_line(name, reason, tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(HeadKVError, match=re.escape(reason)) as raised:
        heat_map(values(2, 2), "title", "label", tmp_path / name)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_pyplot_is_not_needed(tmp_path):
    """It would keep every picture in memory, and ask for a display."""
    program = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "sys.modules['matplotlib.pyplot'] = None\n"
        "from headkv_vllm.output.pictures import heat_map\n"
        "heat_map(np.eye(2), 'title', 'label', Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.png")], check=True, timeout=60)
    assert (tmp_path / "a.png").read_bytes().startswith(SIGNATURE)
