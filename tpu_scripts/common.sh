# shellcheck shell=bash
# Shared by the scripts beside it: settings, errors, quoting, the gcloud calls. Works in the bash 3.2 of macOS.

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(dirname "$SCRIPTS")
VARIABLES="PROJECT ZONE TPU_NAME ACCELERATOR_TYPE RUNTIME_VERSION SPOT INTERNAL_IP REMOTE_DIR"
ARCHIVE=caspo_jax.tar.gz
DRY_RUN=false
CONFIG=

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# The arguments as one line that a POSIX shell reads back unchanged. Not printf %q: it writes $'...' for a newline,
# which dash and fish do not know.
quote() {
  local arg mark="'" escaped="'\\''" line=
  for arg in "$@"; do
    case $arg in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) line+=" '${arg//$mark/$escaped}'" ;;
      *) line+=" $arg" ;;
    esac
  done
  printf '%s' "${line# }"
}

# Runs a command, or prints it with --dry_run.
call() {
  if [[ $DRY_RUN == true ]]; then
    printf '%s\n' "$(quote "$@")"
  else
    "$@"
  fi
}

# The comment block at the head of a script is its --help.
usage_and_exit() {
  sed -n -e '1d' -e '/^#/!q' -e 's/^# \{0,1\}//p' "$SCRIPTS/$(basename "$0")"
  exit 0
}

unknown_argument() {
  case $1 in
    -*) die "unknown flag $1: see $(basename "$0") --help" ;;
    *) die "unexpected argument '$1': flags are written --name=value (see $(basename "$0") --help)" ;;
  esac
}

set_flag() { # set_flag VARIABLE VALUE: load_settings looks at it
  printf -v "FLAG_$1" '%s' "$2"
}

# Takes a flag that every script has; false if it is none of them.
common_flag() {
  local name=${1%%=*}
  case $1 in
    --help | -h) usage_and_exit ;;
    --dry_run) DRY_RUN=true ;;
    --config=*) CONFIG=${1#*=} ;;
    --spot) set_flag SPOT true ;;
    --nospot) set_flag SPOT false ;;
    --internal_ip) set_flag INTERNAL_IP true ;;
    --project=* | --zone=* | --tpu_name=* | --accelerator_type=* | --runtime_version=* | --remote_dir=*)
      set_flag "$(printf '%s' "${name#--}" | tr '[:lower:]' '[:upper:]')" "${1#*=}"
      ;;
    *) return 1 ;;
  esac
}

# Settles the settings: flag, else environment, else config file, else default.
load_settings() {
  local name flag from
  for name in $VARIABLES; do
    printf -v "ENVIRONMENT_$name" '%s' "${!name:-}"
  done
  if [[ -n $CONFIG ]]; then
    [[ -f $CONFIG ]] || die "--config=$CONFIG: no such file; copy $SCRIPTS/config.env.example to it"
  elif [[ -f $SCRIPTS/config.env ]]; then
    CONFIG=$SCRIPTS/config.env
  fi
  if [[ -n $CONFIG ]]; then
    # shellcheck disable=SC1090
    source "$CONFIG"
  fi
  for name in $VARIABLES; do
    flag=FLAG_$name
    from=ENVIRONMENT_$name
    if [[ -n ${!flag:-} ]]; then
      printf -v "$name" '%s' "${!flag}"
    elif [[ -n ${!from} ]]; then
      printf -v "$name" '%s' "${!from}"
    fi
  done
  SPOT=${SPOT:-false}
  INTERNAL_IP=${INTERNAL_IP:-false}
  REMOTE_DIR=${REMOTE_DIR:-caspo_jax}
  REMOTE_DIR=${REMOTE_DIR#\~/} # it is quoted on its way, so that a tilde would stay a tilde
  for name in SPOT INTERNAL_IP; do
    [[ ${!name} == true || ${!name} == false ]] || die "$name=${!name}: write true or false"
  done
}

# need VARIABLE...: each must have a value.
need() {
  local name flag
  for name in "$@"; do
    flag=$(printf '%s' "$name" | tr '[:upper:]' '[:lower:]')
    [[ -n ${!name:-} ]] || die "--$flag is missing: give the flag, or set $name in tpu_scripts/config.env"
  done
}

need_program() { # need_program NAME WHAT_TO_DO
  [[ $DRY_RUN == true ]] || command -v "$1" >/dev/null || die "$1 is not on PATH: $2"
}

# What every TPU script asks for before its first call.
need_tpu() {
  load_settings
  need PROJECT ZONE TPU_NAME
  need_program gcloud "install the Google Cloud CLI, then: gcloud auth login"
  WHERE=("--project=$PROJECT" "--zone=$ZONE")
}

need_count() { # need_count FLAG VALUE: a whole number, not negative
  case $2 in
    '' | *[!0-9]*) die "$1=$2: write a whole number" ;;
  esac
}

need_run_name() { # names a folder and stands in remote commands
  [[ -n ${1:-} ]] || die "--run is missing: name the run, such as --run=first"
  case $1 in
    .* | -* | *[!A-Za-z0-9_.-]*) die "--run=$1: use letters, digits, dot, dash and underscore" ;;
  esac
}

# queued_resource FORMAT: what gcloud says of it; ABSENT if there is none.
queued_resource() {
  local out errors
  errors=$(mktemp)
  if out=$(call gcloud compute tpus queued-resources describe "$TPU_NAME" "${WHERE[@]}" "$1" 2>"$errors"); then
    rm -f "$errors"
    printf '%s\n' "$out"
  elif grep -q NOT_FOUND "$errors"; then
    rm -f "$errors"
    echo ABSENT
  else
    out=$(grep -m1 ERROR "$errors" || tail -n 1 "$errors")
    rm -f "$errors"
    die "cannot look up queued resource '$TPU_NAME': ${out:-gcloud failed without a message}"
  fi
}

on_workers() { # on_workers WORKER COMMAND: WORKER is all, or a number
  local address=()
  [[ $INTERNAL_IP == true ]] && address=(--internal-ip)
  call gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${WHERE[@]}" "--worker=$1" ${address[@]+"${address[@]}"} "--command=$2"
}

copy_to_workers() { # copy_to_workers FILE: into the home folder of each
  local address=()
  [[ $INTERNAL_IP == true ]] && address=(--internal-ip)
  call gcloud compute tpus tpu-vm scp "$1" "$TPU_NAME:$ARCHIVE" "${WHERE[@]}" --worker=all ${address[@]+"${address[@]}"}
}

tpu_state() {
  queued_resource '--format=value(state.state)'
}

tpu_state_and_type() { # separated by a comma
  queued_resource '--format=csv[no-heading](state.state,tpu.nodeSpec[0].node.acceleratorType)'
}

# Says what is shipped, and writes it: the tracked files as they are in the working tree, edits included.
make_archive() { # make_archive FILE; sets REVISION
  local tree edited=
  command -v git >/dev/null || die "git is not on PATH: it tells which files to ship"
  REVISION=$(git -C "$REPOSITORY" rev-parse --short HEAD 2>/dev/null) ||
    die "$REPOSITORY is not a git clone with a commit: it is git that tells which files to ship"
  # A stash commit that no ref points to: the working tree's tracked files, and nothing moves. Refreshed first, because
  # stash takes a file that was only touched for an edited one, and then fails.
  git -C "$REPOSITORY" update-index -q --refresh >/dev/null || true
  tree=$(git -C "$REPOSITORY" -c user.name=caspo_jax -c user.email=caspo_jax@localhost stash create) ||
    die "git cannot tell the tracked files of $REPOSITORY (see above; an unfinished merge?)"
  [[ -z $tree ]] || { REVISION+=-edited && edited=" with your edits"; }
  echo "shipping the tracked files of $(git -C "$REPOSITORY" rev-parse --short HEAD)$edited (files that git does not track stay here)"
  [[ $DRY_RUN == true ]] || git -C "$REPOSITORY" archive --format=tar.gz --output="$1" "${tree:-HEAD}"
}

# What a worker does with the archive in its home folder. Files that the last archive had and this one lacks go away,
# outputs and the virtual environment stay.
unpack_command() { # unpack_command EXTRA
  local dir script
  dir=$(quote "$REMOTE_DIR")
  script="set -e; mkdir -p $dir"
  script+="; if [ -f $dir/tpu_scripts/worker.sh ]; then bash $dir/tpu_scripts/worker.sh idle; fi"
  script+="; if [ -f $dir/.shipped ]; then (cd $dir && tr '\\n' '\\0' <.shipped | xargs -0 rm -f --); fi"
  script+="; tar -xzf $ARCHIVE -C $dir; tar -tzf $ARCHIVE | grep -v '/\$' >$dir/.shipped; rm -f $ARCHIVE"
  script+="; bash $dir/tpu_scripts/worker.sh setup --extra=$1 --revision=$REVISION"
  quote bash -c "$script"
}

worker_command() { # worker_command ARGUMENT...: a call of worker.sh on a worker
  quote bash "$REMOTE_DIR/tpu_scripts/worker.sh" "$@"
}

# Remembers a run's command on this machine, because a preempted slice takes its own record with it.
remembered() { # remembered WHERE RUN: the file
  printf '%s/out/tpu_runs/%s/%s.command' "$REPOSITORY" "${1//\//_}" "$2"
}

remember() { # remember FILE COMMAND...
  local file=$1
  shift
  [[ $DRY_RUN == true ]] && return
  mkdir -p "$(dirname "$file")"
  printf '%s\0' "$@" >"$file"
}

recall() { # recall FILE: into COMMAND
  local arg
  [[ -f $1 ]] || die "--resume: no command of this run is recorded in $1; give it again, after --"
  COMMAND=()
  while IFS= read -r -d '' arg; do
    COMMAND+=("$arg")
  done <"$1"
}
