#!/usr/bin/env bash
# Runs on a worker, from the copy of the repository there; the other scripts call it.
#
# usage: worker.sh setup --extra=tpu|gpu [--revision=R]    virtual environment, and this package in it
#        worker.sh idle                                    fails if a run is alive
#        worker.sh check --run=NAME [--resume]             fails if the run cannot be started
#        worker.sh start --run=NAME [--resume] -- COMMAND [ARGUMENT...]
#        worker.sh status [--run=NAME]
#        worker.sh log --run=NAME [--lines=20] [--follow]
#        worker.sh stop --run=NAME
#
# A run's folder is out/runs/NAME: command, revision, log, exit_code, pid, and lock, which its processes hold while they
# live.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

cd "$REPOSITORY"
host=$(hostname)
task=${1:-}
(($#)) && shift
name=
extra=
revision=unknown
lines=20
resume=false
follow=false
COMMAND=()
while (($#)); do
  case $1 in
    --run=*)
      name=${1#*=}
      need_run_name "$name"
      ;;
    --extra=*) extra=${1#*=} ;;
    --revision=*) revision=${1#*=} ;;
    --lines=*) lines=${1#*=} ;;
    --resume) resume=true ;;
    --follow) follow=true ;;
    --)
      shift
      COMMAND=("$@")
      break
      ;;
    *) unknown_argument "$1" ;;
  esac
  shift
done
folder=out/runs/$name

alive() { # alive FOLDER
  [[ -f $1/lock ]] && ! flock --shared --nonblock "$1/lock" true
}

state() { # state FOLDER
  if alive "$1"; then
    echo alive
  elif [[ -f $1/exit_code ]]; then
    echo "exit code $(cat "$1/exit_code")"
  else
    echo "died without an exit code (machine restarted, or killed)"
  fi
}

all_runs() {
  local lock
  for lock in out/runs/*/lock; do
    [[ -f $lock ]] && dirname "$lock"
  done
  return 0
}

# Of a copy: what was shipped. Of a clone: what it is now.
revision() {
  if [[ -e .git ]]; then
    git describe --always --dirty=-edited 2>/dev/null || echo unknown
  else
    cat .venv/revision 2>/dev/null || echo unknown
  fi
}

check() {
  alive "$folder" && die "$host: run '$name' is alive; follow it with logs.sh, end it with --stop, or choose another --run"
  [[ $resume == true || ! -f $folder/log ]] ||
    die "$host: run '$name' was used before ($(state "$folder")): --resume starts it again, or choose another --run"
}

# A Python that pyproject.toml accepts and that can make virtual environments.
find_python() {
  local python
  for python in python3.13 python3.12 python3.11 python3; do
    if command -v "$python" >/dev/null &&
      "$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  return 1
}

make_environment() {
  local python
  if python=$(find_python); then
    "$python" -m venv .venv
    return
  fi
  # The Python 3.10 of the Ubuntu 22.04 TPU images is too old; uv brings one along without root.
  echo "$host: no Python 3.11 to 3.13 that can make virtual environments; getting 3.12 through uv"
  if ! python3 -m pip install --quiet --user uv || ! python3 -m uv venv --quiet --seed --python=3.12 .venv; then
    die "$host: no Python 3.11 to 3.13; install one (Ubuntu 24.04: sudo apt-get install python3.12-venv), then set up again"
  fi
}

# What `start` leaves behind: the command's parent, which outlives the connection and writes down the exit code.
supervise() {
  local code=0 told=false
  trap 'told=true' TERM # to live on until the command, which gets the same signal, has ended
  export PATH="$REPOSITORY/.venv/bin:$PATH" VIRTUAL_ENV="$REPOSITORY/.venv" PYTHONUNBUFFERED=1
  echo "== $(date -u +%FT%TZ) $host, revision $(cat "$folder/revision"): $(quote "${COMMAND[@]}")"
  # From here on the group is signalled: no process but the command is begun, and not even that if it is told too early.
  echo $$ >"$folder/pid"
  if [[ $told == true ]]; then
    code=143
  else
    "${COMMAND[@]}" || code=$?
  fi
  trap '' TERM # inherited, so that the exit code is written down
  # The log first: whoever sees the exit code finds the log complete.
  echo "== $(date -u +%FT%TZ) $host, exit code $code"
  echo "$code" >"$folder/exit_code.new"
  mv "$folder/exit_code.new" "$folder/exit_code"
}

case $task in
  --help | -h) usage_and_exit ;;
  setup | idle | status) ;;
  check | start | log | stop | supervise) need_run_name "$name" ;;
  '') die "worker.sh: a task is missing; see worker.sh --help" ;;
  *) die "worker.sh: unknown task '$task'; see worker.sh --help" ;;
esac

case $task in
  setup)
    [[ $extra == tpu || $extra == gpu ]] || die "--extra=$extra: write tpu or gpu"
    [[ -x .venv/bin/python ]] || make_environment
    .venv/bin/python -m pip install --quiet --upgrade pip
    .venv/bin/python -m pip install --quiet --upgrade -e ".[$extra]" ||
      die "$host: pip could not install .[$extra] (see above)"
    echo "$revision" >.venv/revision
    .venv/bin/python -c 'import caspo_jax, jax; print("jax", jax.__version__)' ||
      die "$host: the installed package cannot be imported (see above)"
    echo "$host: $REPOSITORY is set up at revision $revision"
    ;;
  idle)
    for run in $(all_runs); do
      ! alive "$run" || die "$host: run '$(basename "$run")' is alive; wait for its end, or end it with --stop"
    done
    ;;
  check) check ;;
  start)
    ((${#COMMAND[@]})) || die "no command after --"
    [[ -x .venv/bin/python ]] || die "$host: $REPOSITORY/.venv is not there; run the set-up first"
    check
    mkdir -p "$folder"
    exec 9>"$folder/lock"
    flock --nonblock 9 || die "$host: run '$name' is alive"
    rm -f "$folder/exit_code" "$folder/pid"
    quote "${COMMAND[@]}" >"$folder/command"
    : >>"$folder/log"
    revision >"$folder/revision"
    # The lock on descriptor 9 is inherited: the run is alive as long as one of its processes is.
    nohup setsid bash "$SCRIPTS/worker.sh" supervise "--run=$name" -- "${COMMAND[@]}" >>"$folder/log" 2>&1 </dev/null &
    # Told only when the run has its own process group and its trap: from then on a lost connection does not end it, and
    # stop reaches it.
    while [[ ! -s $folder/pid ]]; do
      kill -0 $! 2>/dev/null || [[ -s $folder/pid ]] || die "$host: run '$name' did not start; see $REPOSITORY/$folder/log"
      sleep 0.02
    done
    echo "$host: run '$name' is started, log in $REPOSITORY/$folder/log"
    ;;
  supervise) supervise ;;
  status)
    echo "$host: $REPOSITORY, revision $(revision)"
    for run in $(if [[ -n $name ]]; then echo "$folder"; else all_runs; fi); do
      [[ -f $run/log ]] || die "$host: there is no run '$(basename "$run")'"
      echo "$host: run '$(basename "$run")': $(state "$run"), $(wc -l <"$run/log") lines in $REPOSITORY/$run/log"
    done
    ;;
  log)
    [[ -f $folder/log ]] || die "$host: there is no run '$name'; status.sh lists the runs"
    need_count --lines "$lines"
    if [[ $follow == true ]] && alive "$folder"; then
      tail -n "$lines" --follow --pid="$(cat "$folder/pid")" "$folder/log"
    else
      tail -n "$lines" "$folder/log"
    fi
    ;;
  stop)
    [[ -f $folder/log ]] || die "$host: there is no run '$name'"
    if alive "$folder"; then
      group=
      told=false
      for ((waited = 0; waited < 600; waited++)); do
        alive "$folder" || break
        # A run that is being started has no pid yet.
        if [[ $told == false && -s $folder/pid ]]; then
          group=$(cat "$folder/pid")
          kill -TERM -- "-$group" 2>/dev/null && told=true
        fi
        sleep 0.1
      done
      if alive "$folder"; then
        kill -KILL -- "-$group" || true
        sleep 1
      fi
      ! alive "$folder" || die "$host: run '$name' does not end (process group $group)"
    fi
    echo "$host: run '$name': $(state "$folder")"
    ;;
esac
