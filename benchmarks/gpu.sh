#!/usr/bin/env bash
# Measures everything that waits for a GPU, the most valuable first. Each part ends within nine minutes and writes
# OUTPUT/PART.log; the same command goes on with what is not done yet, and says so with its status.
#
#   benchmarks/gpu.sh OUTPUT DATA      DATA as of `timm-lc cifar --data`: cifar10, or a folder of images
#
# ONLY='bench.*' runs the parts whose name matches, LIST=1 prints their commands, DRY=1 makes them tiny, for a CPU.
set -uo pipefail
output=${1:?give a folder for the results} data=${2:?give cifar10, or a folder of images}
here=$(dirname "${BASH_SOURCE[0]}") failed=0

if [[ -n ${DRY-} ]]; then
  device=cpu images=2 rounds=1 epochs=1 runs=1 limits=(--limit 64) compile=() graphs=() expansions=(1 2)
  wide=lc_resnet20_16x1 narrow=lc_resnet20_16x1 sizes=(--image-size 16 --batch-size) side=32 values=1
  networks=(lc_test_resnet) largest=lc_test_resnet small=2 large=2 rows='freezing, (one|impl)' few=implicit
else
  device=cuda small=64 large=1024 images=256 rounds=50 epochs=75 runs=4 limits=() compile=(--compile default)
  graphs=(--compile) expansions=(1 4 16 64 256 1024 4096) wide=lc_resnet20_16x128 narrow=lc_resnet20_16x8
  sizes=(--batch-size) side=224 values=1,2,4,8,16,32,64,128
  networks=(lc_resnet18 lc_resnet50 lc_resnet50d lc_resnext50_32x4d lc_wide_resnet50_2 lc_mobilenetv2_100
    lc_mobilenetv3_large_100) largest=lc_resnet50 rows='' few='one|implicit|folded'
fi

# part NAME COMMAND...: runs it unless it is done; done is what ends well and has no more to do
part() {
  local name=$1 log="$output/$1.log"
  shift
  [[ $name =~ ^(${ONLY-.*})$ && ! -e $output/$name.done ]] || return 0
  if [[ -n ${LIST-} ]]; then
    printf '%s\t' "$name" && printf '%q ' "$@" && echo
    return 0
  fi
  mkdir -p "$output"
  echo "$(date +%T) $name"
  if timeout 9m "$@" > "$log" 2>&1 && ! grep -q 'the same command goes on' "$log"; then
    touch "$output/$name.done"
  else
    echo "  not done: see $log"
    failed=1
  fi
}

# bench NAME ARGUMENTS...: `timm-lc bench` with its results in OUTPUT/NAME
bench() {
  part "$1" timm-lc bench --device $device --rounds $rounds --output "$output/$1" "${@:2}"
}

training=(--device $device --data "$data" --epochs $epochs ${limits[@]+"${limits[@]}"})

bench bench-graphs --models $wide "${sizes[@]}" $small --only "$rows" ${graphs[@]+"${graphs[@]}"} --amp --expansions
bench bench-eager --models $wide "${sizes[@]}" $small --only "$rows" --max-memory 40 --expansions "${expansions[@]}"
part cifar timm-lc cifar --model $wide "${training[@]}" --runs 1 --output "$output/cifar"
bench bench-compiled --models $wide "${sizes[@]}" $small --only "$rows" ${compile[@]+"${compile[@]}"} --amp --expansions
bench bench-large --models $wide "${sizes[@]}" $large --only "$few" --amp --expansions
bench bench-large-graphs --models $wide "${sizes[@]}" $large --only "$few" --amp \
  ${graphs[@]+"${graphs[@]}"} --expansions
for network in "${networks[@]}"; do
  bench "imagenet-$network" --models "$network" --batch-size $images --image-size $side --channels-last \
    --only 'baseline|freezing|sharing' --amp float16 --expansions
done
bench resnet50-compiled --models $largest --batch-size $images --image-size $side --channels-last \
  --only 'baseline|freezing|sharing' --amp float16 ${compile[@]+"${compile[@]}"} --expansions
part fig1 timm-lc reproduce fig1 "${training[@]}" --runs 1 --values $values --max-minutes 8 \
  --output "$output/results" --runs-dir "$output/runs"
part sync-bn python "$here/gpu_checks.py" sync-bn --device $device
part scaler python "$here/gpu_checks.py" scaler --device $device
part seeds-in-turn timm-lc cifar --model $narrow "${training[@]}" --runs $runs --output "$output/in-turn"
part seeds-at-once timm-lc cifar --model $narrow "${training[@]}" --runs $runs --jobs $runs \
  --output "$output/at-once"
exit $failed
