#!/usr/bin/env bash
# Sets up and runs on one GPU machine: this one, or another over ssh.
#
# usage: gpu_node.sh setup  [--host=HOST]
#        gpu_node.sh run    [--host=HOST] --run=NAME [--resume] -- COMMAND [ARGUMENT...]
#        gpu_node.sh logs   [--host=HOST] --run=NAME [--lines=20] [--nofollow]
#        gpu_node.sh status [--host=HOST] [--run=NAME]
#        gpu_node.sh stop   [--host=HOST] --run=NAME
#
#   --host=HOST             where: what ssh understands, such as user@address; default: this machine, in this clone
#   --run=NAME              name of the run; its log and exit code are in out/runs/NAME of the repository there
#   --resume                start a run again, with its own command unless another is given; the log goes on
#   --remote_dir=caspo_jax  the copy's folder on HOST, relative to the home folder
#   --config=FILE           settings (REMOTE_DIR); default: tpu_scripts/config.env
#   --dry_run               print the commands, run none
#
# The command is detached and runs in the repository with its virtual environment first on PATH, for example
#   gpu_node.sh run --host=me@gpu1 --run=first -- python -m experiments.quickstart --out_dir=out/first
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

task=
host=
run=
resume=false
lines=20
follow=true
COMMAND=()
case ${1:-} in
  setup | run | logs | status | stop)
    task=$1
    shift
    ;;
esac
while (($#)); do
  case $1 in
    --host=*) host=${1#*=} ;;
    --run=*)
      run=${1#*=}
      need_run_name "$run"
      ;;
    --resume) resume=true ;;
    --lines=*) lines=${1#*=} ;;
    --nofollow) follow=false ;;
    --)
      shift
      COMMAND=("$@")
      break
      ;;
    *) common_flag "$1" || unknown_argument "$1" ;;
  esac
  shift
done
[[ -n $task ]] || die "no task: write setup, run, logs, status or stop first (see gpu_node.sh --help)"
load_settings
need_count --lines "$lines"
case $host in
  -*) die "--host=$host: not a host" ;;
  '') ;;
  *) need_program ssh "install an OpenSSH client" ;;
esac

there() { # there ARGUMENT...: worker.sh with these, on the machine
  if [[ -z $host ]]; then
    call bash "$SCRIPTS/worker.sh" "$@"
  else
    call ssh "$host" "$(worker_command "$@")"
  fi
}

case $task in
  setup)
    if [[ -z $host ]]; then
      revision=$(git -C "$REPOSITORY" rev-parse --short HEAD 2>/dev/null || echo unknown)
      there setup --extra=gpu "--revision=$revision"
    else
      need_program scp "install an OpenSSH client"
      scratch=$(mktemp -d)
      trap 'rm -rf "$scratch"' EXIT
      make_archive "$scratch/$ARCHIVE" >&2
      call scp "$scratch/$ARCHIVE" "$host:$ARCHIVE" || die "copying to $host failed (scp's message is above)"
      call ssh "$host" "$(unpack_command gpu)" || die "set-up failed on $host (see above); run it again"
    fi
    ;;
  run)
    need_run_name "$run"
    record=$(remembered "${host:-local}" "$run")
    if ((${#COMMAND[@]} == 0)); then
      [[ $resume == true ]] || die "no command: write it after --"
      recall "$record"
    fi
    flags=("--run=$run")
    [[ $resume == true ]] && flags+=(--resume)
    there start "${flags[@]}" -- "${COMMAND[@]}" || die "run '$run' was not started (the reason is above)"
    remember "$record" "${COMMAND[@]}"
    ;;
  logs)
    need_run_name "$run"
    flags=("--run=$run" "--lines=$lines")
    [[ $follow == true ]] && flags+=(--follow)
    there log "${flags[@]}"
    ;;
  status) there status ${run:+"--run=$run"} ;;
  stop)
    need_run_name "$run"
    there stop "--run=$run"
    ;;
esac
