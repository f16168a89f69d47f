#!/bin/busybox sh
# Process 1 of a guest. /t/plan says what to do; what counts goes to the second serial port, each line of ours
# with the run's own number before it, so that nothing a test prints can be taken for a verdict.
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /root /usr
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o mode=1777 tmp /tmp
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tracefs tracing /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
ip link set lo up
. /t/plan
cd /t || poweroff -f

say() {
    echo "$NUMBER $*" >"$REPORT"
}

case $MODE in
shell)
    echo "leakprobe's files are in /t: ./leakprobe, ./live (its live tests), victims/; 'exit' ends the guest."
    setsid cttyhack sh
    ;;
hello)
    say "verdict 0"
    ;;
panic)
    echo c >/proc/sysrq-trigger
    ;;
hang)
    sleep 100000
    ;;
test | complain)
    [ "$MODE" = complain ] && echo "WARNING: made for the harness's own test" >/dev/kmsg
    stty -F "$REPORT" raw
    say "kernel $(uname -r)"
    ./leakprobe doctor --format json >/tmp/doctor.json 2>/tmp/doctor.err
    status=$?
    say "doctor $status"
    sed "s/^/$NUMBER facts /" /tmp/doctor.json >"$REPORT"
    sed "s/^/$NUMBER words /" /tmp/doctor.err >"$REPORT"
    export LEAKPROBE_BIN=/t/leakprobe LEAKPROBE_VICTIMS=/t/victims LEAKPROBE_SKIPS=/tmp/skips
    # Everything takes ten to twenty times as long here: longer waits, fewer rounds, fewer blocks.
    export LEAKPROBE_PATIENCE=10 LEAKPROBE_ROUNDS=2 LEAKPROBE_SHARE=20
    [ -e /t/leaky.ko ] && export LEAKPROBE_MODULE=/t/leaky.ko
    touch /tmp/skips
    if [ "$status" = 0 ]; then
        # shellcheck disable=SC2086
        ./live --test-threads=1 $FILTER >"$REPORT" 2>&1
        status=$?
    fi
    sed "s/^/$NUMBER skip /" /tmp/skips >"$REPORT"
    # A kernel that complains while it is probed has failed, whatever the tests say. It says so in its log, in many
    # words, and in one number, which no full log can lose.
    complaints='BUG:|kernel BUG at|WARNING:|Oops|\[#[0-9]+\]|general protection|soft lockup|UBSAN:|Unable to handle kernel|blocked for more than'
    dmesg | grep -E "$complaints" | sed "s/^/$NUMBER kernel-said /" >"$REPORT"
    say "tainted $(cat /proc/sys/kernel/tainted)"
    say "verdict $status"
    ;;
esac
poweroff -f
