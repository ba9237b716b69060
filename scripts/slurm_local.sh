#!/usr/bin/env bash
# Slurm on this one machine, to try what `sala-bench … --emit slurm` writes: Debian's packages, one node that is
# the controller too. As root:
#
#     scripts/slurm_local.sh start     install what is missing, configure, start munged, slurmctld and slurmd
#     scripts/slurm_local.sh stop      end the three
#
# State, logs and configuration are in $SLURM_LOCAL (default /tmp/slurm-local); nothing of an existing Slurm is
# touched: the configuration is found through SLURM_CONF, which has to be set for sbatch and its like, too.
set -euo pipefail

here=${SLURM_LOCAL:-/tmp/slurm-local}
export SLURM_CONF=$here/slurm.conf

start() {
    if ! command -v slurmctld >/dev/null || ! command -v slurmd >/dev/null || ! command -v munged >/dev/null; then
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge >/dev/null
    fi
    mkdir -p "$here"/{state,spool,logs,munge}
    key
    configure
    munged --key-file="$here/munge/key" --socket="$here/munge/socket" --pid-file="$here/munge/pid" \
        --log-file="$here/munge/log" --seed-file="$here/munge/seed" --force
    slurmctld
    slurmd -N localhost
    for _ in $(seq 30); do
        if sinfo --noheader --states=idle,mixed,allocated --format=%D 2>/dev/null | grep -q 1; then
            echo "Slurm runs; for sbatch, squeue and their like: export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 1
    done
    echo "Slurm did not get ready within 30 s; see $here/logs" >&2
    return 1
}

# Munge wants its folder and its key to be nobody else's.
key() {
    chmod 700 "$here/munge"
    [ -e "$here/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$here/munge/key")
}

configure() {
    local processors memory
    processors=$(nproc)
    memory=$(awk '/MemTotal/ { print int($2 / 1024 * 0.8) }' /proc/meminfo)
    cat >"$SLURM_CONF" <<CONF
ClusterName=local
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$here/munge/socket
CredType=cred/munge
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool
SlurmctldPidFile=$here/slurmctld.pid
SlurmdPidFile=$here/slurmd.pid
SlurmctldLogFile=$here/logs/slurmctld.log
SlurmdLogFile=$here/logs/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_min_interval=100000
NodeName=localhost CPUs=$processors RealMemory=$memory State=UNKNOWN
PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
}

stop() {
    local pid
    for pid in "$here"/slurmd.pid "$here"/slurmctld.pid "$here"/munge/pid; do
        if [ -s "$pid" ]; then
            kill "$(cat "$pid")" 2>/dev/null || true
        fi
    done
}

case ${1:-} in
    start) start ;;
    stop) stop ;;
    *)
        echo "usage: $0 start|stop" >&2
        exit 2
        ;;
esac
