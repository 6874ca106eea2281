#!/usr/bin/env bash
# Shows and follows the logs of a run, each line behind its worker's number. Ends when the run ends.
#
# usage: logs.sh --run=NAME [flag...]
#
#   --run=NAME                   name of the run
#   --worker=all                 a worker's number, or all
#   --lines=20                   lines of the past to begin with
#   --nofollow                   show these lines and end
#   --project --zone --tpu_name  which TPU; needed, here or in config.env
#   --remote_dir --internal_ip   as for setup.sh
#   --config=FILE                settings; default: tpu_scripts/config.env
#   --dry_run                    print the commands, run none
#
# Ctrl-C ends the watching, not the run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run=
worker=all
lines=20
follow=true
while (($#)); do
  case $1 in
    --run=*) run=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --lines=*) lines=${1#*=} ;;
    --nofollow) follow=false ;;
    *) common_flag "$1" || unknown_argument "$1" ;;
  esac
  shift
done
need_run_name "$run"
need_count --lines "$lines"
[[ $worker == all ]] || need_count --worker "$worker"
need_tpu

arguments=(log "--run=$run" "--lines=$lines")
[[ $follow == true ]] && arguments+=(--follow)
command=$(worker_command "${arguments[@]}")

count_workers() {
  call gcloud compute tpus tpu-vm describe "$TPU_NAME" "${WHERE[@]}" '--format=value(networkEndpoints.len())' ||
    die "cannot look up the workers of '$TPU_NAME' (gcloud's message is above); status.sh tells its state"
}

if [[ $DRY_RUN == true ]]; then
  [[ $worker == all ]] && count_workers
  on_workers "$worker" "$command"
  exit 0
fi
workers=$worker
if [[ $worker == all ]]; then
  count=$(count_workers)
  need_count "the number of workers of '$TPU_NAME'" "$count"
  workers=$(seq 0 $((count - 1)))
fi

show() { # show WORKER
  local line
  on_workers "$1" "$command" 2>&1 </dev/null | while IFS= read -r line || [[ -n $line ]]; do
    printf '[worker %s] %s\n' "$1" "$line"
  done
}

# Every connection in a process group of its own, so that an interrupt can end gcloud's ssh too.
set -m
pids=()
end_all() {
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do
    kill -TERM -- "-$pid" 2>/dev/null || true
  done
  exit 130
}
trap end_all INT TERM
for number in $workers; do
  show "$number" &
  pids+=($!)
done
failed=
for index in "${!pids[@]}"; do
  wait "${pids[index]}" || failed=yes
done
[[ -z $failed ]] || die "the log of run '$run' could not be read from every worker (see above)"
