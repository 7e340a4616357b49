#!/usr/bin/env bash
# Packs the tests that compute on every device, with what they read, for a machine with a GPU and
# without Rust:
#     tools/cuda/tests.sh
# makes target/cuda/gpu-tests.tar.xz. On that machine:
#     tar xf gpu-tests.tar.xz && gpu-tests/run.sh [PART OF A TEST'S NAME]
set -euo pipefail
cd "$(dirname "$0")/../.."
target=$PWD/target/cuda
pack=$target/gpu-tests
rm -rf "$pack"
mkdir -p "$pack/crates/secateur-models"
for test in secateur-nn:gradients secateur-nn:replay secateur-nn:row_sums \
    secateur-nn:stream secateur-nn:solver secateur-prune:obs secateur-models:goldens; do
    program=$(tools/cuda/build.sh -p "${test%:*}" --test "${test#*:}" --message-format json \
        | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)
    strip -o "$pack/${test#*:}" "$program"
done
cp -r models "$pack/"
mkdir "$pack/tests"
cp -r tests/goldens "$pack/tests/"
cat >"$pack/run.sh" <<'RUN'
#!/usr/bin/env bash
# The tests of this folder, on the CPU and the first GPU.
set -euo pipefail
cd "$(dirname "$0")"
export CARGO_MANIFEST_DIR=$PWD/crates/secateur-models SECATEUR_GOLDENS=$PWD/tests/goldens
# CUDA's libraries as PyTorch brings them along.
for site in $(python3 -c 'import site; print(*site.getsitepackages())' 2>/dev/null); do
    for folder in "$site"/nvidia/*/lib; do
        LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    done
done
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}
failed=0
for tests in gradients replay row_sums stream solver obs goldens; do
    "./$tests" --test-threads 4 "$@" || failed=1
done
exit $failed
RUN
chmod +x "$pack/run.sh"
XZ_OPT="-3 -T0" tar -C "$target" -cJf "$target/gpu-tests.tar.xz" gpu-tests
ls -l "$target/gpu-tests.tar.xz"
