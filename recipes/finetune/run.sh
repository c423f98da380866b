#!/bin/sh
# The curve of docs/custom-data.md: 5 to 60 minutes of speechocean762's adults, on a model that had not heard them:
#     git show 8bb9477:asr/models/base.safetensors > before.safetensors
#     sh recipes/finetune/run.sh data/speechocean762-adults data/manifests/dev-clean-half.jsonl.gz before.safetensors
# The packaged model has learned from these speakers since (recipes/base).
# A third of the valid set chooses the best epoch, the other two thirds and LibriSpeech are only compared.
set -e
data=${1:-data/speechocean762-adults} libri=${2:-data/manifests/dev-clean-half.jsonl.gz} start=${3:-packaged}
awk 'NR % 3 == 0' $data/valid.jsonl > $data/choose.jsonl
awk 'NR % 3 != 0' $data/valid.jsonl > $data/compare.jsonl
for minutes in 5 15 30 60; do
    python recipes/finetune/take_minutes.py $data/train.jsonl $minutes $data/train-$minutes.jsonl
    asr finetune $start --train $data/train-$minutes.jsonl --valid $data/choose.jsonl \
        --also-valid $data/compare.jsonl --also-valid $libri output_dir=runs/accent-$minutes
done
new=runs/accent-60/model.safetensors
asr average $start $new -o runs/accent-60/average.safetensors
asr average $start $new $new -o runs/accent-60/average-twice.safetensors
for model in average average-twice; do
    for valid in $data/compare.jsonl $libri; do
        asr evaluate runs/accent-60/$model.safetensors $valid
    done
done
asr finetune $start --train $data/train-60.jsonl --mix data/manifests/train-clean-5.jsonl.gz \
    --valid $data/choose.jsonl --also-valid $data/compare.jsonl --also-valid $libri output_dir=runs/accent-60-mix
