#!/usr/bin/env bash
# Starts a command on all workers, detached: a lost connection does not end it.
#
# usage: run.sh --run=NAME [flag...] -- COMMAND [ARGUMENT...]
#        run.sh --run=NAME --resume
#        run.sh --run=NAME --stop
#
#   --run=NAME                   name of the run; its log and exit code are in REMOTE_DIR/out/runs/NAME of each worker
#   --resume                     start a run again, with its own command unless another is given; the log goes on
#   --stop                       end a run on all workers (TERM, and KILL a minute later)
#   --project --zone --tpu_name  which TPU; needed, here or in config.env
#   --remote_dir --internal_ip   as for setup.sh
#   --config=FILE                settings; default: tpu_scripts/config.env
#   --dry_run                    print the commands, run none
#
# The command runs in the copied repository with its virtual environment first on PATH, for example
#   run.sh --run=first -- python -m experiments.caspo --model=M --input=Q.jsonl --out_dir=out/first
# A name that is alive on any worker, or that was used before, is refused (--resume takes the latter). After a
# preemption: teardown.sh, create.sh, setup.sh, run.sh --resume; programs go on from what is in their --out_dir.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run=
resume=false
stop=false
COMMAND=()
while (($#)); do
  case $1 in
    --run=*) run=${1#*=} ;;
    --resume) resume=true ;;
    --stop) stop=true ;;
    --)
      shift
      COMMAND=("$@")
      break
      ;;
    *) common_flag "$1" || unknown_argument "$1" ;;
  esac
  shift
done
need_run_name "$run"
need_tpu

if [[ $stop == true ]]; then
  on_workers all "$(worker_command stop "--run=$run")" || die "run '$run' did not end on every worker (see above)"
  exit 0
fi
record=$(remembered "$TPU_NAME" "$run")
if ((${#COMMAND[@]} == 0)); then
  [[ $resume == true ]] || die "no command: write it after --, as in run.sh --run=$run -- python -m experiments.caspo --help"
  recall "$record"
fi
flags=("--run=$run")
[[ $resume == true ]] && flags+=(--resume)

# All workers are asked before the first is started: half a slice that runs waits for the other half for ever.
on_workers all "$(worker_command check "${flags[@]}")" || die "run '$run' was not started (a worker's reason is above)"
remember "$record" "${COMMAND[@]}"
on_workers all "$(worker_command start "${flags[@]}" -- "${COMMAND[@]}")" ||
  die "run '$run' did not start on every worker (see above); run.sh --run=$run --stop ends the others"
[[ $DRY_RUN == true ]] || echo "run '$run' is started; next: tpu_scripts/logs.sh --run=$run"
