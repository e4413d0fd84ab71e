#!/bin/bash
# A sweep on SLURM without Python on the login node: this job makes the others.
#
#     sbatch sbatch/sweep.sh SWEEP [more words for `netpress submit`, such as --profile sol]
#
# It asks for one core and no GPU for ten minutes, sets up the environment (NETPRESS_SETUP, lines of
# bash; on Sol: NETPRESS_SETUP='source env/sol.sh'), and runs `netpress submit SWEEP` there, which
# returns when everything is in the queue, or as much as a limit on jobs leaves room for: a small
# follow-up job submits the rest. Called again, it submits only what is missing. Other
# commands go the same way: `sbatch sbatch/command.sh status SWEEP`.
#
# Submit it from the checkout: it is where the job starts, and where reports/ will be. Its own
# output is in netpress-JOB.log there.

#SBATCH --job-name=netpress-submit
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=2G
#SBATCH --time=10
#SBATCH --output=netpress-%j.log
#SBATCH --open-mode=append

[ $# -gt 0 ] || { echo "netpress: usage: sbatch sbatch/sweep.sh SWEEP [OPTION ...]" >&2; exit 2; }

exec bash "${SLURM_SUBMIT_DIR:-.}/sbatch/netpress.sh" submit "$@"
