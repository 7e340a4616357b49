"""Writes tests/goldens/t5_spiece with the sentencepiece library (0.2): a `spiece.model` as T5's, of 300 pieces and a small
table of what characters become, and texts with their ids. From the root of the repository:
python3 tools/make_sentencepiece_fixture.py"""

import json
import tempfile
from pathlib import Path

import sentencepiece

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests/goldens/t5_spiece"
RULES = {
    "\t": " ", "\n": " ", "\r": " ", "\u3000": " ", "\u00a0": " ",
    "\ufb01": "fi", "\uff41": "a", "\uff21": "A", "\u2460": "1", "\u2026": "...", "e\u0301": "\u00e9",
}  # fmt: skip
TEXTS = [
    "",
    "a photo of a red apple",
    "The model's latents, (noise) & step: 12.5%!",
    "a caf\u00e9 na\u00efve \u00e9lan in the fa\u00e7ade",
    "a cafe\u0301 \u00a0\ufb01ne  \t\uff41pple\u2026\n\u2460 ",
    "unknown: \u6f22\u5b57 \U0001f600 \u221e z",
    "  leading and trailing  ",
    "A Blue CAT, glossy",
]

with tempfile.TemporaryDirectory() as folder:
    corpus, rules, model = (Path(folder) / name for name in ("corpus.txt", "rules.tsv", "spiece"))
    prompts = (ROOT / "models/emoji-unet/prompts/calibration.txt").read_text().splitlines()[:3000]
    corpus.write_text("\n".join(prompts + TEXTS[2:4] * 20) + "\n")
    code = lambda text: " ".join(f"{ord(character):X}" for character in text)
    rules.write_text("".join(f"{code(old)}\t{code(new)}\n" for old, new in RULES.items()))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(model), vocab_size=300, model_type="unigram", character_coverage=1.0,
        normalization_rule_tsv=str(rules), pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False,
    )  # fmt: skip
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "spiece.model").write_bytes(model.with_suffix(".model").read_bytes())

pieces = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "spiece.model"))
cases = [{"text": text, "ids": pieces.encode(text)} for text in TEXTS]
(FOLDER / "cases.json").write_text(json.dumps(cases) + "\n")
config = {"extra_ids": 2, "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
(FOLDER / "tokenizer_config.json").write_text(json.dumps(config) + "\n")
