#!/usr/bin/env bash
# Tells the state of the TPU, and of the runs on every worker: alive, exit code, or died.
#
# usage: status.sh [flag...]
#
#   --run=NAME                   only this run
#   --project --zone --tpu_name  which TPU; needed, here or in config.env
#   --remote_dir --internal_ip   as for setup.sh
#   --config=FILE                settings; default: tpu_scripts/config.env
#   --dry_run                    print the commands, run none
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run=
while (($#)); do
  case $1 in
    --run=*)
      run=${1#*=}
      need_run_name "$run"
      ;;
    *) common_flag "$1" || unknown_argument "$1" ;;
  esac
  shift
done
need_tpu

state=$(tpu_state)
if [[ $DRY_RUN == true ]]; then
  printf '%s\n' "$state"
else
  echo "queued resource '$TPU_NAME': $state"
  [[ $state == ACTIVE ]] || exit 0
fi
on_workers all "$(worker_command status ${run:+"--run=$run"})" ||
  die "a worker of '$TPU_NAME' did not answer (see above); is it set up? tpu_scripts/setup.sh"
