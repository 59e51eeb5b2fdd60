"""What a command that outlasts its connection leaves on the target, and the shell scripts that read and write it.

A folder `<base>/<call id>.<step>` holds: `run` (the program that runs the command), `begun` (a link whose text says who
runs it: pid, start time and boot id; `void` when it must never begin), `out` and `err` (the first 16 MiB of each) with
`out.end` and `err.end` (the last 64 KiB of what came after that), and `status` (exit status, and the signal where the
shell knows it; or a word that says why there is none).

`begun` decides: symlink(2) makes it whole or not at all, and only once. So `LAUNCH` may be repeated at any time, by
anybody, and whatever was killed where: as many runners as there are, one of them runs the command. The scripts are
constants for a POSIX sh with the tools that coreutils and busybox have; values are arguments and standard input.
"""

import shlex
from collections.abc import Sequence

KEPT_BYTES = 16 * 1024 * 1024
LAST_BYTES = 64 * 1024

_BASE = (
    'if [ "$(id -u)" = 0 ]; then b=/var/lib/systemmanager/jobs; '
    "else b=${XDG_STATE_HOME:-${HOME:?}/.local/state}/systemmanager/jobs; fi\n"
    's=$b/$1 u=systemmanager-$(printf %s "$1" | tr . -).service\n'
)

_BORN = """
born() {
  { read -r x <"/proc/$1/stat"; } 2>/dev/null || return 1
  x=${x##*) }
  set -- $x
  [ "$1" != Z ] || return 1
  shift 19
  y=; { read -r y </proc/sys/kernel/random/boot_id; } 2>/dev/null
  echo "$1.$y"
}
"""
"""Field 22 of /proc/PID/stat (proc(5)) tells two processes with one number apart; a zombie counts as ended."""

_ALIVE = _BORN + 'alive() { [ "$(born "${1%%.*}")" = "${1#*.}" ]; }\n'

LAUNCH = (
    "m=$(umask); umask 077\n"
    + _BASE
    + """
no() { echo "no $1"; exit 0; }
mkdir -p "$b" 2>/dev/null || no "can't make $b"
{ [ -d "$b" ] && [ ! -L "$b" ] && [ -O "$b" ] && chmod 700 "$b"; } || no "$b is not the gateway's own"
find "$b" -maxdepth 1 -type d -name '????????????????.*' -mtime +7 -exec rm -rf {} + 2>/dev/null
mkdir "$s" 2>/dev/null || { [ -d "$s" ] && [ ! -L "$s" ] && [ -O "$s" ]; } || no "can't make $s"
begun() { n=0; until [ -L "$s/begun" ]; do [ $n -lt "$1" ] || return 1; n=$((n+1)); sleep 0.05 || sleep 1; done; }
begun 0 && echo begun && exit 0
{ cat >"$s/run.$$" && mv "$s/run.$$" "$s/run"; } 2>/dev/null || no "can't write below $b"
if [ "$(id -u)" = 0 ] && [ -d /run/systemd/system ] && command -v systemd-run >/dev/null; then
  { pwd >"$s/cwd" && export -p | sed '/^export \\(SHELLOPTS\\|BASHOPTS\\|_\\)=/d' >"$s/env.$$" &&
    mv "$s/env.$$" "$s/env"; } 2>/dev/null || no "can't write below $b"
  systemd-run --collect --quiet --unit="$u" -- /usr/bin/env -i /bin/sh "$s/run" "$s" "$m" </dev/null >/dev/null 2>&1 &&
    begun 40
fi
if ! [ -L "$s/begun" ]; then
  command -v setsid >/dev/null || no setsid
  setsid /bin/sh "$s/run" "$s" "$m" </dev/null >/dev/null 2>&1 &
  begun 40
fi
begun 0 && echo begun || echo new
"""
)
"""Arguments: the spool's name. Input: what `runner` makes. Says `begun`, `new` (try again) or `no` and why."""

_RUN = (
    _BORN
    + """
end() { echo "$1" >"$s/status.new" && { sync "$s/status.new"; mv "$s/status.new" "$s/status"; }; }
keep() {
  exec 2>/dev/null
  trap "" HUP XFSZ
  (ulimit -c 0; ulimit -f %d; exec cat) >"$s/$1"
  tail -c %d >"$s/$1.end"
  : >"$s/$1.done"
}
main() {
if [ -f "$1/env" ]; then . "$1/env"; read -r d <"$1/cwd" && cd -- "$d"; unset OLDPWD; fi
s=$1 m=$2
me=$(born $$) || me=.
ln -s "$$.$me" "$s/begun" 2>/dev/null || exit 0
umask 077
exec </dev/null 2>"$s/said"
mkfifo "$s/o" "$s/e" || { end unwritable; exit; }
keep out <"$s/o" &
keep err <"$s/e" &
: >"$s/said"
(umask "$m"; exec %s) </dev/null >"$s/o" 2>"$s/e"
c=$?
n=0
until [ -e "$s/out.done" ] && [ -e "$s/err.done" ] || [ $n -ge 10 ]; do n=$((n+1)); sleep 0.05 || sleep 1; done
g=
if [ $c -gt 128 ] && [ -s "$s/said" ]; then g=$(kill -l $c); fi
end "$c $g"
}
main "$@"
"""
)


def runner(argv: Sequence[str]) -> str:
    """The program that runs a command and keeps what it says. Half of it does nothing: its last line starts it.

    `exec` in a shell of its own takes programs only, never a word of the shell's; a pipe that is drained whatever
    becomes of the file neither blocks the program nor ends it. Quoted, an argument arrives byte by byte.
    """
    return _RUN % (KEPT_BYTES // 512, LAST_BYTES, " ".join(map(shlex.quote, argv)))


LOOK = (
    _BASE
    + _ALIVE
    + """
cd -- "$s" 2>/dev/null || { echo "none 0 0 0 0"; exit 0; }
status() { { read -r r <status; } 2>/dev/null; }
r=
if ! status; then
  i=$(readlink begun)
  case $i in
    '') r=new ;;
    void) r=void ;;
    *) if alive "$i"; then r=running; else status || r=gone; fi ;;
  esac
fi
size() { if [ -f "$1" ]; then echo $(($(wc -c <"$1"))); else echo 0; fi; }
piece() {
  f=$1 k=$2 z=$(size "$1")
  if [ "$k" -ge "$z" ]; then f=$1.end k=$((k-z)); fi
  if [ -f "$f" ]; then tail -c "+$((k+1))" "$f" | head -c "$3" | base64 | tr -d '\\n'; fi
  echo
}
echo "$(size out) $(size out.end) $(size err) $(size err.end) $r"
piece out "$2" "$4"
piece err "$3" "$4"
"""
)
"""Arguments: the spool's name, how much of out and of err is known, how much is wanted of each at most (bytes).

Says the sizes and the state, then the next bytes of each in base64. The state is read before the sizes: what has
ended says no more.
"""

END = (
    _BASE
    + _ALIVE
    + """
k=$2
mkdir -p "$b" "$s" && ln -s void "$s/begun" && exit 0
i=$(readlink "$s/begun") p=${i%%.*}
[ "$i" != void ] && [ ! -e "$s/status" ] && alive "$i" || exit 0
signal() {
  [ "$(id -u)" != 0 ] || ! command -v systemctl || systemctl kill --signal="$1" "$u"
  [ -z "$k" ] || sudo -n kill -s "$1" -- "-$p"
  kill -s "$1" -- "-$p"
}
signal TERM
n=0
while kill -s 0 -- "-$p" && [ $n -lt 20 ]; do n=$((n+1)); sleep 0.1 || sleep 1; done
signal KILL
[ -e "$s/status" ] || { echo cancelled >"$s/status.end" && mv "$s/status.end" "$s/status"; }
"""
)
"""Arguments: the spool's name, and `sudo` where the command runs behind it. What has not begun never will."""

FORGET = _BASE.replace("$b/$1", "$b") + 'rm -rf -- "$b/${1:?}".*\n'
"""Arguments: the call's id."""
