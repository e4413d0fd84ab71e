#!/bin/bash
# Runs netpress in a job, after its set-up; sweep.sh and command.sh end in this.
# The set-up is NETPRESS_SETUP (lines of bash); without it, `netpress` that is on PATH, else env/run.

cd "${SLURM_SUBMIT_DIR:-.}" || exit 1
if [ ! -x env/bin/netpress ]; then
    echo "netpress: $PWD is no checkout of netpress: call sbatch from there" >&2
    exit 2
fi
if [ -n "${NETPRESS_SETUP:-}" ]; then
    eval "$NETPRESS_SETUP" || { echo "netpress: set-up failed: $NETPRESS_SETUP" >&2; exit 66; }
    exec python env/bin/netpress "$@"
fi
if command -v netpress >/dev/null; then exec netpress "$@"; fi
exec env/run netpress "$@"
