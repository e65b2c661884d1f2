# Sourced by the other scripts: makes ./.venv, once, and installs the project into it in editable form.
# PYTHON names another interpreter to make it with.

root=$(cd "$(dirname "$0")/.." && pwd)
venv=$root/.venv

fail() {
    echo "error: $*" >&2
    exit 1
}

# Print the names of the trainers, the folders with a trainer/task.py, on one line.
trainers() {
    (cd "$root" && for task in */trainer/task.py; do
        [ ! -f "$task" ] || printf '%s ' "${task%%/*}"
    done)
}

# An interpreter on PATH may be a stand-in that does not run, so each is tried. TensorFlow has no packages for 3.14.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "PYTHON=$PYTHON is not a Python 3.10 or newer."
        echo "$PYTHON"
        return
    fi
    for python in python3 python3.11 python3.12 python3.13 python3.10; do
        if "$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    found=$(python3 --version 2>&1) || found="no python3"
    fail "needs Python 3.10 to 3.13 with its venv module (Debian: apt-get install python3-venv); found $found." \
        "Install one, or name it: PYTHON=/path/to/python3.11 $0"
}

has_pip() {
    "$venv/bin/python" -m pip --version >/dev/null 2>&1
}

# Run a command with its output in a log, a dot every two seconds; show the log's end if it fails.
run_quietly() {
    log=$1
    shift
    "$@" >>"$log" 2>&1 &
    child=$!
    while sleep 2 >&- 2>&-; do printf . >&2; done &
    dots=$!
    trap 'kill $child $dots 2>/dev/null; exit 130' INT TERM
    ended=0
    wait $child || ended=$?
    kill $dots
    trap - INT TERM
    echo >&2
    if [ $ended != 0 ]; then
        tail -n 15 "$log" >&2
        fail "could not install; all of pip's output is in $log. Starting again goes on from here."
    fi
}

# ensure_environment EXTRAS [PIP-ARGUMENT...]: see that ./.venv has the project, every trainer in it, with these extras.
ensure_environment() {
    extras=$1
    shift
    wanted="$root $(cat "$root/setup.py" "$root/requirements-dev.txt" | cksum) $(trainers)$extras"
    case "$(cat "$venv/installed" 2>/dev/null)" in
        "$wanted"*) if "$venv/bin/python" -c '' 2>/dev/null; then return; fi ;;
    esac
    if ! has_pip; then
        python=$(find_python)
        "$python" -m venv "$venv" && has_pip || fail "$venv cannot be used; move it away and start again."
    fi
    echo "Installing the project with $extras into $venv (a minute or two the first time)" >&2
    (cd "$root" && run_quietly "$venv/install.log" "$venv/bin/python" -m pip install --no-input -e ".[$extras]" "$@")
    echo "$wanted" >"$venv/installed"
}

# run_module MODULE [ARGUMENT...]: run a module of the project with the active environment's python3 if that has what the
# extra `cloud` brings, else with that of ./.venv.
run_module() {
    export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
    for python in python3 "$venv/bin/python"; do
        if "$python" -c 'import sys; from importlib.util import find_spec as find
sys.exit(not all(map(find, ("google.cloud.aiplatform", "google.cloud.storage", "yaml", "setuptools", "tqdm"))))' 2>/dev/null; then
            exec "$python" -m "$@"
        fi
    done
    ensure_environment tf,cloud setuptools
    exec "$venv/bin/python" -m "$@"
}
