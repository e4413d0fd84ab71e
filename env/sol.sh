# shellcheck shell=bash
# netpress on ASU's Sol, in a shell of its login nodes or in a job: source it, from any folder.
#
#     source env/sol.sh
#
# Makes the mamba environment `netpress` at first use, then activates it, with the code of the
# checkout that this file lies in. Compute nodes have no internet: source it on a login node first.

module load mamba/latest

netpress_checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
if ! source activate netpress 2>/dev/null; then
    mamba env create --yes --file "$netpress_checkout/env/environment.yml" &&
        source activate netpress
fi

export PYTHONPATH="$netpress_checkout${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
export PATH="$netpress_checkout/env/bin:$PATH"
