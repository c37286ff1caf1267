#!/usr/bin/env bash
# Fuzzes the HEVC core under AddressSanitizer and UndefinedBehaviorSanitizer. Needs clang with its runtime (Debian: clang, libclang-rt-14-dev)
# and the tests' Python environment, which writes the corpus of tiny streams.
#
#   tests/codec/hevc/fuzz/run.sh FOLDER [RUNS]
#
# builds into FOLDER, keeps the corpus and crashes there, and makes RUNS (100000) executions with seed SEED (1). To try one input:
# FOLDER/fuzz FILE.
set -euo pipefail
folder=$(realpath -m "${1:?usage: run.sh FOLDER [RUNS]}")
runs=${2:-100000}
cd "$(dirname "$0")/../../../.."
mkdir -p "$folder/corpus" "$folder/crashes"
sources=$(find codec/hevc/src -name '*.cpp' ! -name bindings.cpp)
if [ ! -x "$folder/fuzz" ]; then
    # shellcheck disable=SC2086
    clang++ -std=c++17 -O2 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Icodec/hevc/src \
        tests/codec/hevc/fuzz/target.cpp $sources -o "$folder/fuzz"
fi
if [ -z "$(ls -A "$folder/corpus")" ]; then
    python -m tests.codec.hevc.fuzz.corpus "$folder/corpus"
fi
"$folder/fuzz" -runs="$runs" -seed="${SEED:-1}" -max_len=3000 -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=1024 -print_final_stats=1 \
    -artifact_prefix="$folder/crashes/" "$folder/corpus"
