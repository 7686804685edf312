#!/bin/bash
# Streaming a book (paper: figure 8): a small base trained on other books, adapters for it, and the book that none has seen.
#   measure/books.sh TRAIN.txt.xz OUT BOOK.txt.xz...        all settings below can be given as variables; BASE, a model there is
set -euo pipefail
train=$1 out=$2
shift 2
PYTHON=${PYTHON:-python3} STEPS=${STEPS:-1200} ADAPTER_STEPS=${ADAPTER_STEPS:-600} BATCH=${BATCH:-128} ADAPTER_BATCH=${ADAPTER_BATCH:-64}
SHAPE=${SHAPE:---dim 512 --ffn 1408 --layers 8 --heads 8 --vocab 8000} TOKENS=${TOKENS:-101000} WINDOWS=${WINDOWS:-160 64}
mkdir -p "$out"
began=$SECONDS
base=${BASE:-$out/base}
if [ ! -f "$base/config.json" ]; then
    $PYTHON train.py --pretrain --data "text:$train" $SHAPE --lr 1.5e-3 --grow 0 --batch "$BATCH" --steps "$STEPS" \
        --save-every 100000 --eval-samples 0 --out "$base"
    tail -n 1 "$base/log.jsonl"
fi
echo "base: $((SECONDS - began)) s"
for method in ccm-concat:2 ccm-merge:8; do  # side by side
    $PYTHON train.py --model "$base" --data "text:$train" --method "${method%:*}" --n "${method#*:}" --sink \
        --lr 2e-3 --grow 0.2 --batch "$ADAPTER_BATCH" --steps "$ADAPTER_STEPS" --save-every 100000 --eval-samples 0 --out "$out/${method%:*}" &
done
wait
tail -n 1 "$out"/ccm-*/log.jsonl
echo "adapters: $((SECONDS - began)) s"
for book in "$@"; do  # windows and adapters side by side
    name=$out/$(basename "${book%%.*}")
    for window in $WINDOWS; do
        for adapter in ccm-concat ccm-merge; do
            $PYTHON eval.py --model "$base" --adapter "$out/$adapter" --stream "$book" --window "$window" --tokens "$TOKENS" \
                --token-by-token "${SLOW:-500}" --json "$name-$window-$adapter.json" --picture "$name-$window-$adapter.png" \
                >"$name-$window-$adapter.txt" &
        done
    done
    wait
    cat "$name"-*.txt
    echo "$book: $((SECONDS - began)) s"
done
