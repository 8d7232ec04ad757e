# shellcheck shell=sh
# What the role asks of a host, each answer a line that begins with what it is about. Changes nothing.

# ours MARK DIRECTORY: the units that this role has made
ours() {
    for path in "$2"/agentmem-backup*.timer "$2"/agentmem-backup*.service; do
        if grep -sqF -- "$1" "$path"; then echo "ours $path"; fi
    done
}

# named DIRECTORY...: the timers of these names, whoever has made them
named() {
    for directory in "$@"; do
        for path in "$directory"/agentmem-backup*.timer; do
            if [ -f "$path" ] && [ ! -L "$path" ]; then echo "named $path"; fi
        done
    done
}

# second PATTERN PLACE...: files with a line by which backups may be scheduled a second time; some places may not be there
second() {
    grep -rslE -- "$@" | while IFS= read -r path; do echo "second $path"; done
}

# knows JOB COMMAND...: the job, where the engine takes these words
knows() {
    job=$1
    shift
    "$@" --help >/dev/null
    case $? in 0) echo "job $job" ;; 2) ;; *) exit 1 ;; esac
}

# settings INSTANCE COMMAND...: the instance's settings, as one line of JSON
settings() {
    instance=$1
    shift
    told=$("$@") || return 1
    printf 'settings %s %s\n' "$instance" "$(printf '%s' "$told" | tr '\n' ' ')"
}

# calendar UNIT EXPRESSION: whether systemd does not know it, or it never comes
calendar() {
    if told=$(LC_ALL=C.UTF-8 systemd-analyze calendar -- "$2" 2>&1); then
        case $told in *'Next elapse: never'*) echo "never $1" ;; esac
    else
        echo "unknown $1"
    fi
}

# state TIMER: whether it runs, and is started by a boot
state() { echo "state $1 $(systemctl is-active -- "$1") $(systemctl is-enabled -- "$1" 2>/dev/null)"; }
