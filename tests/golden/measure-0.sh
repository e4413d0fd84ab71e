#!/bin/bash

# Parameters
#SBATCH --array=0%1
#SBATCH --chdir=/CHECKOUT
#SBATCH --comment=netpress-INTENT2-test-measure-0
#SBATCH --cpus-per-task=8
#SBATCH --dependency=afterany:@netpress-INTENT0-test-base-0@_0:@netpress-INTENT1-test-cells-1@_0
#SBATCH --error='/scratch/sparky/it'"'"'s here/sweeps/test/jobs/INTENT2/%A_%a_0_log.err'
#SBATCH --export=NONE
#SBATCH --job-name=netpress-INTENT2-test-measure-0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mail-type=FAIL
#SBATCH --mail-user=a@asu.edu
#SBATCH --mem=16G
#SBATCH --nodes=1
#SBATCH --open-mode=append
#SBATCH --output='/scratch/sparky/it'"'"'s here/sweeps/test/jobs/INTENT2/%A_%a_0_log.out'
#SBATCH --partition=public
#SBATCH --qos=public
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=16

# setup
umask 077
folder='/scratch/sparky/it'"'"'s here/sweeps/test/jobs/INTENT2'
task="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
trap 'exit_code=$?; if [ ${#BASH_SOURCE[@]} -le 1 ]; then line="set-up failed with exit code $exit_code: $BASH_COMMAND"; echo "netpress: $line" >&2; echo "$line" >"$folder/$task.setup"; exit 66; fi' ERR
cd /CHECKOUT
export PYTHONPATH=/CHECKOUT PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
export NETPRESS_CHARGE=12
module load mamba/latest
source activate netpress
rm -f "$folder/$task"_*.save_tmp "$folder/$task.setup"
ln -sfn submitted.pkl "$folder/${task}_submitted.pkl"
trap - ERR

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/scratch/sparky/it'"'"'s here/sweeps/test/jobs/INTENT2/%A_%a_%t_log.out' --error '/scratch/sparky/it'"'"'s here/sweeps/test/jobs/INTENT2/%A_%a_%t_log.err' --export=ALL --cpus-per-task=8 --cpu-bind=cores /env/bin/python -u -m submitit.core._submit '/scratch/sparky/it'"'"'s here/sweeps/test/jobs/INTENT2'
