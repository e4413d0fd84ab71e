#!/bin/bash
# Any netpress command as a job, for those who want no Python on the login node:
#
#     sbatch sbatch/command.sh status SWEEP
#     sbatch sbatch/command.sh resume SWEEP
#     sbatch --time=60 sbatch/command.sh report SWEEP
#
# What it prints is in netpress-JOB.log. See sweep.sh for NETPRESS_SETUP.

#SBATCH --job-name=netpress-command
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=10
#SBATCH --output=netpress-%j.log
#SBATCH --open-mode=append

[ $# -gt 0 ] || { echo "netpress: usage: sbatch sbatch/command.sh COMMAND [WORD ...]" >&2; exit 2; }

exec bash "${SLURM_SUBMIT_DIR:-.}/sbatch/netpress.sh" "$@"
