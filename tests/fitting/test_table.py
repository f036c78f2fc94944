"""What is wrong with a table of judgements is said in one line."""

import pytest
from PIL import Image

from nablaflow.errors import UserError
from nablaflow.fitting.images import read_image
from nablaflow.fitting.table import read_judgements


@pytest.fixture
def folder(tmp_path):
    for number in range(20):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


def ratings(folder, lines, header="image,score"):
    (folder / "ratings.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


def pairs(folder, lines, header="preferred,rejected"):
    (folder / "pairs.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


GOOD = [f"{n}.png,{n / 2}" for n in range(20)]
RING = [f"{n}.png,{(n + 1) % 20}.png" for n in range(20)]


def test_ratings_are_read_and_standardised(folder):
    ratings(folder, GOOD)
    found = read_judgements(folder)
    assert found.kind == "ratings"
    assert [path.name for path in found.images] == [f"{n}.png" for n in range(20)]
    assert found.shift == pytest.approx(4.75)
    assert found.rows.target.mean().abs() < 1e-6
    assert found.rows.target.std() == pytest.approx(1.0)
    assert found.prompts is None


def test_pairs_are_read_with_their_prompts(folder):
    pairs(folder, [f'{line},"a, b"' for line in RING], "preferred,rejected,prompt")
    found = read_judgements(folder)
    assert found.kind == "pairs"
    assert found.rows.first.tolist() == list(range(20))
    assert [found.images[i].name for i in found.rows.second] == [
        f"{(n + 1) % 20}.png" for n in range(20)
    ]
    assert found.prompts == ["a, b"] * 20


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        (GOOD[:19], "image,score", "19 rows are too few"),
        (["30.png,1", *GOOD], "image,score", "line 2: there is no image '30.png'"),
        (["1.png,good", *GOOD], "image,score", "line 2: the score 'good' is not a finite number"),
        (["1.png,nan", *GOOD], "image,score", "the score 'nan' is not a finite number"),
        (["1.png", *GOOD], "image,score", "line 2: 1 cells under 2 columns"),
        ([f"{n}.png,3" for n in range(20)], "image,score", "every score is 3"),
        ([f"0.png,{n}" for n in range(20)], "image,score", "all ratings are of one image"),
        ([f"{n}.png,{n}e200" for n in range(20)], "image,score", "a standard deviation of inf"),
        (GOOD, "image,image", "the column 'image' comes twice"),
        (GOOD, "image,scores", "unknown column 'scores'; did you mean score"),
        (["0.png"] * 20, "image", "no column 'score'"),
    ],
)
def test_bad_ratings(folder, lines, header, message):
    ratings(folder, lines, header)
    with pytest.raises(UserError, match=message) as error:
        read_judgements(folder)
    assert "\n" not in str(error.value)


def test_a_pair_of_an_image_with_itself(folder):
    pairs(folder, [*RING, "3.png,./3.png"])
    with pytest.raises(UserError, match=r"line 22: '3.png' is compared with itself"):
        read_judgements(folder)


def test_folders_without_one_table(folder, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_judgements(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds neither ratings\.csv nor pairs\.csv"):
        read_judgements(folder)
    ratings(folder, GOOD)
    pairs(folder, RING)
    with pytest.raises(UserError, match="choose with --judgements"):
        read_judgements(folder)


def test_an_empty_table_and_one_that_is_no_text(folder):
    (folder / "ratings.csv").write_text("")
    with pytest.raises(UserError, match="its first line is image,score"):
        read_judgements(folder)
    (folder / "ratings.csv").write_bytes(b"\xff\xfe\x00image")
    with pytest.raises(UserError, match="it must be CSV in UTF-8"):
        read_judgements(folder)


def test_an_image_that_cannot_be_decoded(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"x\.png: not an image that can be decoded"):
        read_image(tmp_path / "x.png")
