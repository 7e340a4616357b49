"""One caption for each class of emoji-dit: training captions of the classes by which emoji-clip tells their pictures apart
best.

`python captions.py MODELS DATA` writes MODELS/emoji-dit/prompts/captions.txt, in the order of the classes. It starts from
the captions that fit their classes best on average, and changes one at a time while more training pictures have the caption
of their class as the best of all; it prints the share of them.
"""
import io
import json
import pathlib
import sys

import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizerFast

models, data = map(pathlib.Path, sys.argv[1:])
entries = json.loads((data / "emoji64.json").read_text())
blob = (data / "emoji64.bin").read_bytes()
clip = CLIPModel.from_pretrained(models / "emoji-clip").float().eval()
tokenizer = CLIPTokenizerFast.from_pretrained(models / "emoji-clip")
processor = json.loads((models / "emoji-clip" / "preprocessor_config.json").read_text())
mean, std = (torch.tensor(processor[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))


def pictures(chosen):
    def read(entry):
        image = Image.open(io.BytesIO(blob[entry["offset"]:entry["offset"] + entry["size"]])).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        return torch.frombuffer(bytearray(white.convert("RGB").tobytes()), dtype=torch.uint8).view(64, 64, 3)

    with torch.no_grad():
        stack = torch.stack([read(entry) for entry in chosen]).permute(0, 3, 1, 2).float() / 255
        out = clip.get_image_features((stack - mean) / std)
    out = getattr(out, "pooler_output", out)
    return out / out.norm(dim=-1, keepdim=True)


def texts(captions):
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=32, return_tensors="pt").input_ids
    with torch.no_grad():
        out = clip.get_text_features(ids)
    out = getattr(out, "pooler_output", out)
    return out / out.norm(dim=-1, keepdim=True)


labels = json.loads((models / "emoji-dit" / "model_index.json").read_text())["id2label"]
classes = [labels[str(number)] for number in range(len(labels))]
train = [e for e in entries if e["split"] == "train"]
of_picture = torch.tensor([classes.index(f"{e['category']}/{e['style']}") for e in train])
captions = [sorted({f"{e['name']}, {e['style']} style emoji" for e in train if f"{e['category']}/{e['style']}" == name})
            for name in classes]
images = torch.cat([pictures(train[i:i + 256]) for i in range(0, len(train), 256)])
fits = [texts(some) @ images.T for some in captions]


# Each class counts the same, however many pictures it has.
weight = 1 / (torch.bincount(of_picture)[of_picture] * len(classes))
chosen = [int(fit[:, of_picture == number].mean(1).argmax()) for number, fit in enumerate(fits)]
table = torch.stack([fit[place] for fit, place in zip(fits, chosen)])
for _ in range(5):
    for number, fit in enumerate(fits):
        table[number] = -2
        best, right = table.max(0).values, table.argmax(0) == of_picture
        own = of_picture == number
        score = ((fit > best) & own).double() @ weight.double() + ((fit <= best) & ~own & right).double() @ weight.double()
        chosen[number] = int(score.argmax())
        table[number] = fit[chosen[number]]
    print(f"agreement over {len(train)} training pictures, each class counting the same: {score.max():.3f}", flush=True)
lines = [some[place] for some, place in zip(captions, chosen)]
(models / "emoji-dit" / "prompts" / "captions.txt").write_text("\n".join(lines) + "\n")
