#!/bin/sh
# Three seeds of a GRU, and of an LSTM and a tanh RNN with its hidden size and with its number of parameters.
# What stands behind the command goes to each training; JOBS=2 OMP_NUM_THREADS=1 before it: two at once, a core each.
set -e
for seed in 1 2 3; do
    for model in gru-128 lstm-128 lstm-111 rnn-128 rnn-215; do
        echo "$model $seed${*:+ $*}"  # xargs joins a line that ends in a space to the next
    done
done | xargs -P "${JOBS:-1}" -L 1 sh -c '
    model=$1 seed=$2; shift 2
    asr train recipes/cells/cells.yaml "model.encoder.cell=${model%-*}" "model.encoder.hidden_size=${model#*-}" \
        "trainer.seed=$seed" "output_dir=runs/cells/$model-$seed" "$@"' sh
