#!/usr/bin/env bash
# Trains all bundled models on one GPU into OUT (default run/out), with a log beside each.
# VAE, GENERATOR, DIT and CLIP are minutes.
set -euo pipefail
cd "$(dirname "$0")"
OUT=${OUT:-run/out}
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 TORCHINDUCTOR_COMPILE_THREADS=5

generator() { # kind, minutes, batch
    python3 train_generator.py --kind "$1" --minutes "$2" --batch "$3" --out "$OUT" > "$OUT/$1.log" 2>&1
    python3 sample.py --kind "$1" --out "$OUT" >> "$OUT/$1.log" 2>&1
}

jobs=()
python3 train_clip.py --minutes "${CLIP:-4}" --out "$OUT" > "$OUT/clip.log" 2>&1 & jobs+=($!)
python3 train_vae.py --minutes "${VAE:-2.6}" --out "$OUT"
python3 encode.py --out "$OUT"
generator dit "${DIT:-6}" 256 & jobs+=($!)
generator mmdit "${GENERATOR:-11}" 512 & jobs+=($!)
generator unet "${GENERATOR:-11}" 512 & jobs+=($!)
for job in "${jobs[@]}"; do wait "$job"; done

# The plain files too, for readers that know no tokenizer.json.
for folder in "$OUT"/{mmdit,unet}/tokenizer*; do
    cp tokenizer/{vocab.json,merges.txt,special_tokens_map.json} "$folder/"
done
cp tokenizer/{vocab.json,merges.txt} "$OUT/clip/"
