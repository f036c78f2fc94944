"""The code of docs/migrate_from_trl.md runs: rewards and prompt functions as TRL took them."""

import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("lean_runs")

PAGE = Path(__file__).parents[2] / "docs" / "migrate_from_trl.md"
SMALLER = {
    r'model="[^"]*"': "model=MODEL",
    r'"steps": 50, "guidance_scale": 5.0': '"steps": 3',
    r'"count": 256': '"count": 6',
    r'"updates": \d+': '"updates": 2',
    r'"prompts_per_update": 32': '"prompts_per_update": 2, "trackers": [], "device": "cpu"',
    r'"images_per_prompt": 1': '"images_per_prompt": 2',
    r'"precision": "bf16"': '"precision": "float32"',
    r'output_dir="[^"]*"': 'output_dir="run", guard=None, evaluation={"n": 8}',
}
"""What a model of a few thousand weights on a CPU needs otherwise; each must be on the page."""


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def example(method: str) -> str:
    (code,) = [block for block in blocks() if "nf.align" in block and f'"{method}"' in block]
    for pattern, smaller in SMALLER.items():
        code, count = re.subn(pattern, smaller, code)
        assert count == 1, pattern
    return code


@pytest.mark.parametrize("method", ["ddpo", "alignprop"])
def test_the_new_code_trains(method, tiny_model, tmp_path, monkeypatch):
    (mine,) = [block for block in blocks() if block.startswith("# mine.py")]
    (tmp_path / "mine.py").write_text(mine)
    monkeypatch.chdir(tmp_path)
    exec(compile(example(method), str(PAGE), "exec"), {"MODEL": str(tiny_model)})
    lines = Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["update"] for record in records] == [1, 2]
    assert all(record["policy_gradient_norm"] > 0 for record in records)
    saved = Path("run/config.yaml").read_text(encoding="utf-8")
    assert f"trl:{tmp_path}/mine.py:prompt_fn" in saved


def test_the_metadata_reaches_the_reward(tiny_model, tmp_path, monkeypatch):
    """The page's reward is its redness times the weight that the prompt function gives."""
    (mine,) = [block for block in blocks() if block.startswith("# mine.py")]
    monkeypatch.chdir(tmp_path)
    means = []
    for weight in ("2.0", "4.0"):
        (tmp_path / "mine.py").write_text(mine.replace('"weight": 2.0', f'"weight": {weight}'))
        code = example("ddpo").replace('"updates": 2', '"updates": 1')
        code = code.replace('output_dir="run"', f'output_dir="run-{weight}"')
        exec(compile(code, str(PAGE), "exec"), {"MODEL": str(tiny_model)})
        (line,) = Path(f"run-{weight}/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        means.append(json.loads(line)["reward_mean"])
    assert means[0] != 0
    assert means[1] == pytest.approx(2 * means[0], rel=1e-5)


def test_the_table_names_settings_that_exist():
    """Against the reference of settings, which is held to the code."""
    known = set(
        re.findall(r"^\| `([\w.]+)` \|", (PAGE.parent / "settings.md").read_text(), re.MULTILINE)
    )
    table = PAGE.read_text(encoding="utf-8").split("## Argument by argument")[1].split("\n- ")[0]
    named = set(re.findall(r"`((?:training|sampler|method|adapter|optimizer)\.\w+)", table))
    assert len(named) > 15
    assert named <= known
