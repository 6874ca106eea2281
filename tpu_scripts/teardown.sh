#!/usr/bin/env bash
# Deletes the queued resource, its TPU VMs and all that is on their disks. Asks first.
#
# usage: teardown.sh [flag...]
#
#   --yes                        do not ask
#   --project --zone --tpu_name  which TPU; needed, here or in config.env
#   --config=FILE                settings; default: tpu_scripts/config.env
#   --dry_run                    print the commands, run none
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

yes=false
while (($#)); do
  case $1 in
    --yes) yes=true ;;
    *) common_flag "$1" || unknown_argument "$1" ;;
  esac
  shift
done
need_tpu

delete() {
  # --force: the VMs too. --quiet: it was asked here.
  call gcloud compute tpus queued-resources delete "$TPU_NAME" "${WHERE[@]}" --force --quiet ||
    die "gcloud did not delete queued resource '$TPU_NAME' (its message is above)"
}

if [[ $DRY_RUN == true ]]; then
  tpu_state_and_type
  delete
  exit 0
fi
found=$(tpu_state_and_type)
IFS=, read -r state type <<<"$found"
if [[ $state == ABSENT ]]; then
  echo "there is no queued resource '$TPU_NAME' in $PROJECT, $ZONE: nothing to delete"
  exit 0
fi
echo "This deletes queued resource '$TPU_NAME' (${type:-TPU}, $state) in project $PROJECT, zone $ZONE, with its VMs and"
echo "everything on their disks: checkpoints, logs and outputs that were not copied away."
if [[ $yes == false ]]; then
  [[ -t 0 ]] || die "nobody to ask: stdin is no terminal; give --yes to delete without being asked"
  read -r -p "Delete? [y/N] " answer || answer=
  case $answer in
    y | Y | yes | Yes) ;;
    *)
      echo "nothing is deleted"
      exit 1
      ;;
  esac
fi
delete
echo "'$TPU_NAME' is deleted"
