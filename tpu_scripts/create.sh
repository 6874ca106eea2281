#!/usr/bin/env bash
# Creates a TPU slice through a queued resource, and waits until it is ACTIVE.
#
# usage: create.sh [flag...] [-- FLAG_OF_GCLOUD...]
#
#   --project --zone --tpu_name          which TPU; needed, here or in config.env
#   --accelerator_type --runtime_version what TPU; needed, here or in config.env
#   --spot, --nospot      a spot slice: cheaper, taken away at any moment
#   --internal_ip         VMs without an external address
#   --timeout_s=3600      longest wait; 0 does not wait. The request stays in the queue when the time is over
#   --poll_s=15           seconds between two looks
#   --config=FILE         settings; default: tpu_scripts/config.env
#   --dry_run             print the commands, run none
#
# What follows -- goes to `gcloud compute tpus queued-resources create`, for example --network=NET or --reserved.
# If there is a queued resource of this name, none is created: the script waits for that one. A request that FAILED or
# was SUSPENDED (preempted) is an error; delete it with teardown.sh and create it again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

timeout=3600
poll=15
extra=()
while (($#)); do
  case $1 in
    --timeout_s=*) timeout=${1#*=} ;;
    --poll_s=*) poll=${1#*=} ;;
    --)
      shift
      extra=("$@")
      break
      ;;
    *) common_flag "$1" || unknown_argument "$1" ;;
  esac
  shift
done
need_count --timeout_s "$timeout"
need_count --poll_s "$poll"
need_tpu
need ACCELERATOR_TYPE RUNTIME_VERSION

create() {
  local flags=()
  [[ $SPOT == true ]] && flags+=(--spot)
  [[ $INTERNAL_IP == true ]] && flags+=(--internal-ips)
  call gcloud compute tpus queued-resources create "$TPU_NAME" "--node-id=$TPU_NAME" "${WHERE[@]}" \
    "--accelerator-type=$ACCELERATOR_TYPE" "--runtime-version=$RUNTIME_VERSION" \
    ${flags[@]+"${flags[@]}"} ${extra[@]+"${extra[@]}"} ||
    die "gcloud refused to create queued resource '$TPU_NAME' (its message is above)"
}

if [[ $DRY_RUN == true ]]; then
  tpu_state_and_type
  create
  ((timeout == 0)) || tpu_state
  exit 0
fi

found=$(tpu_state_and_type)
IFS=, read -r state type <<<"$found"
if [[ $state == ABSENT ]]; then
  create
  echo "queued resource '$TPU_NAME' ($ACCELERATOR_TYPE) is requested"
else
  echo "queued resource '$TPU_NAME' exists already, state $state"
  [[ -z $type || $type == "$ACCELERATOR_TYPE" ]] ||
    die "it is a $type, not --accelerator_type=$ACCELERATOR_TYPE: choose another --tpu_name, or delete it with teardown.sh"
fi
if ((timeout == 0)); then
  exit 0
fi

last=none
while true; do
  state=$(tpu_state)
  [[ $state == "$last" ]] || echo "state ${state:-not known yet} after $SECONDS s"
  last=$state
  case $state in
    ACTIVE)
      echo "'$TPU_NAME' is ready; next: tpu_scripts/setup.sh"
      exit 0
      ;;
    FAILED)
      reason=$(queued_resource '--format=value(state.failedData.error.message)')
      die "queued resource '$TPU_NAME' FAILED: ${reason:-no reason given}; delete it with teardown.sh, then create it again"
      ;;
    SUSPENDING | SUSPENDED | DELETING)
      die "queued resource '$TPU_NAME' is $state (preempted or deleted): delete it with teardown.sh, then create it again"
      ;;
    ABSENT) die "queued resource '$TPU_NAME' is gone: somebody deleted it" ;;
  esac
  ((SECONDS < timeout)) ||
    die "'$TPU_NAME' is still ${state:-without a state} after $timeout s (--timeout_s) and stays in the queue:" \
      "run create.sh again to go on waiting, or teardown.sh to give up"
  sleep "$poll"
done
