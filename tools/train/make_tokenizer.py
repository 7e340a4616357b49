"""A CLIP tokenizer (byte-level BPE, 2,014 tokens) of the captions; writes the folder tokenizer/.

The library breaks ties between merges at random, so a second run orders a few tokens otherwise:
models belong to the tokenizer they were trained with.
"""

import argparse
import json

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from emoji import all_rows, caption
from networks import MAX_LENGTH, TOKENIZER

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
START = "<|startoftext|>"
END = "<|endoftext|>"
SPECIAL = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}


def learn_merges(texts, alphabet):
    """The BPE merges of the texts, each as "left right"."""
    tok = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tok.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2046 - 256,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tok.train_from_iterator(texts, trainer)
    merges = json.loads(tok.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def vocabulary(alphabet, merges):
    """Token to id in CLIP's order: bytes, bytes that end a word, merges, special tokens."""
    tokens = alphabet + [byte + "</w>" for byte in alphabet]
    tokens += [merge.replace(" ", "", 1) for merge in merges]
    tokens += [START, END]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def write_json(name, value, **options):
    """Writes a file of the tokenizer's folder."""
    (TOKENIZER / name).write_text(json.dumps(value, **options), encoding="utf-8")


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learn_merges([caption(row) for row in all_rows()], alphabet)
    vocab = vocabulary(alphabet, merges)
    config = {
        **SPECIAL,
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_LENGTH,
        "do_lower_case": True,
        "errors": "replace",
        "add_prefix_space": False,
    }
    TOKENIZER.mkdir(exist_ok=True)
    write_json("vocab.json", vocab, ensure_ascii=False)
    write_json("special_tokens_map.json", SPECIAL, indent=1)
    write_json("tokenizer_config.json", config, indent=1)
    lines = ["#version: 0.2", *merges]
    text = "".join(f"{line}\n" for line in lines)
    (TOKENIZER / "merges.txt").write_text(text, encoding="utf-8")
    print(f"{len(vocab)} tokens, {len(merges)} merges")


if __name__ == "__main__":
    main()
