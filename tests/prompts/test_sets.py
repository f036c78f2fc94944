"""Prompt files, good and bad, and the order in which updates see the prompts."""

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nablaflow.errors import UserError
from nablaflow.prompts.sets import load_prompts, prompt_batch

PROMPTS = [f"prompt {i}" for i in range(7)]


def test_a_list_is_itself(tmp_path):
    assert load_prompts(["a cat", "", "#1 dog"], tmp_path) == ["a cat", "", "#1 dog"]


def test_a_file_has_one_prompt_per_line(tmp_path):
    text = "# animals\n\n a cat \r\nun château\n  # not this\na #1 dog\n\n"
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = load_prompts("prompts.txt", tmp_path)
    assert found == ["a cat", "un château", "a #1 dog"]
    assert load_prompts(str(tmp_path / "prompts.txt"), tmp_path / "elsewhere") == found


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no prompt"),
        (b"# only\n   \n# comments\n", "holds no prompt"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "not UTF-8"),
        (b"plausible\x00text", "binary"),
        ("a cat\n".encode("utf-16-le"), "binary"),
        ("a cat\n".encode("utf-16"), "not UTF-8"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, content, words):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        load_prompts("prompts.txt", tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [[], "missing.txt", ".", "nul\x00byte.txt", "x" * 5000])
def test_no_prompts_are_one_line(tmp_path, value):
    with pytest.raises(UserError, match=r"^prompts: ") as caught:
        load_prompts(value, tmp_path)
    assert "\n" not in str(caught.value)


@given(count=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_every_epoch_shows_every_prompt_once(count, seed):
    row = [p for update in range(30) for p in prompt_batch(PROMPTS, update, count, seed)]
    epochs = [row[i : i + len(PROMPTS)] for i in range(0, len(row), len(PROMPTS))]
    assert len(row) == 30 * count
    assert all(Counter(epoch) == Counter(PROMPTS) for epoch in epochs[:-1])
    assert set(Counter(epochs[-1]).values()) == {1}


def test_batch_size_does_not_change_the_order():
    threes = [p for update in range(20) for p in prompt_batch(PROMPTS, update, 3, 5)]
    fours = [p for update in range(15) for p in prompt_batch(PROMPTS, update, 4, 5)]
    assert threes == fours


def test_epochs_and_seeds_differ_in_order():
    epochs = {tuple(prompt_batch(PROMPTS, epoch, 7, seed=0)) for epoch in range(20)}
    seeds = {tuple(prompt_batch(PROMPTS, 0, 7, seed=seed)) for seed in range(20)}
    assert len(epochs) > 15
    assert len(seeds) > 15


def test_first_place_is_spread_evenly():
    first = Counter(prompt_batch(PROMPTS, epoch, 7, seed=3)[0] for epoch in range(1400))
    # Binomial with mean 200 and standard deviation 13; five of them.
    assert all(abs(count - 200) < 65 for count in first.values())


def test_another_process_sees_the_same_order():
    code = (
        "from nablaflow.prompts.sets import prompt_batch;"
        "print(prompt_batch([f'prompt {i}' for i in range(7)], 12, 5, 42))"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str(prompt_batch(PROMPTS, 12, 5, 42))
