#!/usr/bin/env bash
# Copies this repository to every worker and installs it there, in a virtual environment with the TPU extra.
#
# usage: setup.sh [flag...]
#
#   --project --zone --tpu_name  which TPU; needed, here or in config.env
#   --remote_dir=caspo_jax       the copy's folder on the workers, relative to the home folder
#   --internal_ip                reach the workers by their internal addresses
#   --config=FILE                settings; default: tpu_scripts/config.env
#   --dry_run                    print the commands, run none
#
# The files that git tracks are copied as they are now, edits included. Run it again after a change: outputs and the
# virtual environment stay, and packages are upgraded where pyproject.toml asks for it. Refused while a run is alive.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

while (($#)); do
  common_flag "$1" || unknown_argument "$1"
  shift
done
need_tpu

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
make_archive "$scratch/$ARCHIVE" >&2
copy_to_workers "$scratch/$ARCHIVE" ||
  die "copying to the workers of '$TPU_NAME' failed (see above);" \
    "a slice of several workers needs the key in the agent: ssh-add ~/.ssh/google_compute_engine"
on_workers all "$(unpack_command tpu)" || die "set-up failed on a worker of '$TPU_NAME' (see above); run setup.sh again"
[[ $DRY_RUN == true ]] || echo "every worker of '$TPU_NAME' is set up; next: tpu_scripts/run.sh"
