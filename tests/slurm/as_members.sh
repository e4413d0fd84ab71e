#!/usr/bin/env bash
# A real SLURM on which ann and bob, members of one group, run jobs: a slurmbox in a mount namespace
# of its own, where they are in /etc/passwd, and where they can read Python wherever it lies.
#
#   as_members.sh start BOX SLURMBOX READABLE...   a cluster in BOX; the folders READABLE are for all
#   as_members.sh run BOX USER COMMAND...          as one of them, in the current folder
#
# Nothing outside of the namespace is changed. Needs root.
set -euo pipefail
umask 022
GROUP=61000
declare -A UIDS=([ann]=61001 [bob]=61002) opened=()
count=0

closed() { # closed FOLDER   whether only its owner can pass it
  (($(stat -c %a "$1") % 10 == 0))
}
aside() { # aside FOLDER   give it the mode 755, empty; what is in it shows at $hidden
  hidden=$BOX/hidden/$((++count))
  mkdir -p "$hidden"
  mount --bind "$1" "$hidden"
  mount -t tmpfs -o mode=755 tmpfs "$1"
}
open_up() { # open_up FOLDER   for all, though it is, or lies in, one that only its owner can pass
  local top=$1 entry
  while [[ $(dirname "$top") != / ]]; do top=$(dirname "$top"); done
  if closed "$top"; then
    aside "$top"
    opened[$top]=$hidden
  fi
  if [[ ${opened[$top]-} ]]; then
    mkdir -p "$1"
    mount --bind "${opened[$top]}/${1#"$top"/}" "$1"
  fi
  if closed "$1"; then
    aside "$1"
    for entry in "$hidden"/*; do
      if [[ -L $entry ]]; then cp -P "$entry" "$1"; continue; fi
      if [[ -d $entry ]]; then mkdir "$1/${entry##*/}"; else touch "$1/${entry##*/}"; fi
      mount --bind "$entry" "$1/${entry##*/}"
    done
  fi
}

start() {
  local user
  mount --make-rprivate /
  mkdir -p "$BOX/etc"
  chmod 755 "$BOX"
  cp /etc/passwd /etc/group "$BOX/etc"
  echo "lab:x:$GROUP:" >>"$BOX/etc/group"
  for user in "${!UIDS[@]}"; do
    echo "$user:x:${UIDS[$user]}:$GROUP::/:/bin/bash" >>"$BOX/etc/passwd"
  done
  mount --bind "$BOX/etc/passwd" /etc/passwd
  mount --bind "$BOX/etc/group" /etc/group
  for folder in "$@"; do open_up "$folder"; done
  "$SLURMBOX" start "$BOX/slurm"
  eval "$("$SLURMBOX" env "$BOX/slurm")"
  for user in "${!UIDS[@]}"; do
    sacctmgr -iQ add user "$user" account=public cluster=box qos=normal,public defaultqos=public
  done
}

command=$1 BOX=$2
shift 2
case $command in
  start)
    SLURMBOX=$1
    if [[ ${IN_NAMESPACE-} ]]; then shift; start "$@"
    else IN_NAMESPACE=1 exec unshare --mount "$0" start "$BOX" "$@"; fi ;;
  run)
    uid=${UIDS[$1]}
    shift
    read -r pid _ <"$BOX/slurm/run/slurmctld.pid"
    here=$PWD
    exec nsenter --mount="/proc/$pid/ns/mnt" setpriv --reuid "$uid" --regid $GROUP --clear-groups \
      env --chdir="$here" "$@" ;;
  *) echo "as_members.sh: unknown command $command" >&2; exit 2 ;;
esac
