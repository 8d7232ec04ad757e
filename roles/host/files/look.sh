# shellcheck shell=sh
# Shared by the collection's roles, in front of what each asks of a host besides.
# look PATH...: what is there of them, a line each: a directory or file with its owner and mode, a file with its SHA-256 too, a
# link with its target. A task then does only what is not so yet. What is in a log is nobody's matter, and not read.
look() {
    for path in "$@"; do
        if [ -L "$path" ]; then
            printf 'link %s -> %s\n' "$path" "$(readlink "$path")"
        elif [ -d "$path" ]; then
            stat -c 'directory %U:%G %a %n' -- "$path"
        elif [ -f "$path" ]; then
            case $path in
            *.log) sum=- ;;
            *) sum=$(sha256sum <"$path") && sum=${sum%% *} ;;
            esac
            printf 'file %s %s %s\n' "$(stat -c '%U:%G %a' -- "$path")" "$sum" "$path"
        fi
    done
}
