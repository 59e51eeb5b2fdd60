#!/usr/bin/env bash
# Gateways on a Proxmox VE host, from the template that `nix build .#lxc-template` makes.
#
#   deploy.sh create   --containers 101,102 --template FILE.tar.zst [--storage local-lvm] [--bridge vmbr0] [--secrets DIR]
#   deploy.sh secrets  --containers 101,102 --secrets DIR
#   deploy.sh upgrade  --containers 101,102 --system STORE_PATH
#   deploy.sh rollback --containers 101,102
#   deploy.sh status   --containers 101,102
#
# --dry-run prints each step and does none. Every command may be repeated: what is done already is left alone, also where
# it was cut in the middle. Only rollback goes one generation further back each time.
# DIR holds one file per secret, named as the gateway knows it (SYSTEMMANAGER_SHARED_SECRET, tailscale-auth-key ...).
# STORE_PATH is a system that `nix copy` has brought to every container: nixosConfigurations.<name>'s toplevel.
set -euo pipefail

fail() { printf 'deploy.sh: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2; }

[[ $# -gt 0 ]] || usage
action=$1
shift
containers='' template='' storage=local-lvm bridge=vmbr0 secrets='' system='' dry=''
while [[ $# -gt 0 ]]; do
  case $1 in
    --dry-run) dry=1; shift; continue ;;
    --containers | --template | --storage | --bridge | --secrets | --system) [[ $# -gt 1 ]] || fail "$1 needs a value" ;;
    *) fail "unknown option $1" ;;
  esac
  case $1 in
    --containers) containers=$2 ;;
    --template) template=$2 ;;
    --storage) storage=$2 ;;
    --bridge) bridge=$2 ;;
    --secrets) secrets=$2 ;;
    --system) system=$2 ;;
  esac
  shift 2
done

IFS=, read -r -a ids <<<"$containers"
[[ ${#ids[@]} -gt 0 ]] || fail "name the containers: --containers 101,102"
for id in "${ids[@]}"; do
  [[ $id =~ ^[1-9][0-9]{2,8}$ ]] || fail "$id is no container id (100 to 999999999)"
done
[[ $storage =~ ^[A-Za-z][A-Za-z0-9._-]*$ ]] || fail "$storage is no storage id"
[[ $bridge =~ ^[A-Za-z][A-Za-z0-9._-]*$ ]] || fail "$bridge is no bridge"

step() { # print a command, then do it
  printf '+ %s\n' "${*@Q}"
  [[ -n $dry ]] || "$@"
}

exists() { pct config "$1" >/dev/null 2>&1; }
configured() { pct config "$1" 2>/dev/null | grep -qx "hostname: gateway-$1"; }
running() { [[ $(pct status "$1" 2>/dev/null) == 'status: running' ]]; }
inside() { local id=$1; shift; step pct exec "$id" -- "$@"; }

start() { # and wait until its programs are there
  if running "$1"; then echo "# $1 runs already"; else step pct start "$1"; fi
  [[ -z $dry ]] || return 0
  for _ in $(seq 60); do
    pct exec "$1" -- /run/current-system/sw/bin/true >/dev/null 2>&1 && return
    sleep 1
  done
  fail "$1 has not booted within a minute: pct enter $1"
}

create() {
  if exists "$1"; then
    echo "# $1 exists already"
  else
    step pct restore "$1" "$template" --storage "$storage" --unprivileged 1 --unique 1
  fi
  if ! configured "$1"; then
    step pct set "$1" --net0 "name=eth0,bridge=$bridge,firewall=1,ip=dhcp,type=veth" --hostname "gateway-$1" --onboot 1
  fi
  start "$1"
}

push() { # every secret, readable by root alone
  local id=$1 file name
  inside "$id" /run/current-system/sw/bin/install -d -m 0700 /etc/credstore
  for file in "$secrets"/*; do
    name=${file##*/}
    step pct push "$id" "$file" "/etc/credstore/systemmanager.$name" --perms 0600 --user 0 --group 0
  done
}

systemctl() { local id=$1; shift; inside "$id" /run/current-system/sw/bin/systemctl "$@"; }

healthy() { # the service is up, or the step fails
  systemctl "$1" is-active --quiet systemmanager-mcp.service
}

upgrade() { # the system becomes the newest generation, and runs; or the one before comes back
  local id=$1
  running "$id" || { [[ -n $dry ]] || fail "$id does not run; nothing was changed"; }
  if [[ -z $dry && $(pct exec "$id" -- /run/current-system/sw/bin/readlink -f /run/current-system) == "$system" ]]; then
    echo "# $id runs $system already"
    return
  fi
  inside "$id" /run/current-system/sw/bin/nix-env -p /nix/var/nix/profiles/system --set "$system" ||
    fail "$id has not got $system: nix copy it there first; nothing was changed"
  # A unit that does not come up fails the switch itself.
  if ! { inside "$id" "$system/bin/switch-to-configuration" switch && healthy "$id"; }; then
    rollback "$id" || fail "$id is not healthy with $system, and its roll-back failed, too: pct enter $id"
    fail "$id is not healthy with $system: it was rolled back, the others were not touched"
  fi
}

rollback() {
  inside "$1" /run/current-system/sw/bin/nix-env -p /nix/var/nix/profiles/system --rollback &&
    inside "$1" /nix/var/nix/profiles/system/bin/switch-to-configuration switch
}

case $action in
  create)
    [[ $template =~ ^[^-].*\.tar\.zst$ ]] || fail "--template must name the .tar.zst"
    [[ -n $dry || -r $template || $template == *:vztmpl/* ]] || fail "$template can't be read"
    ;;
  upgrade) [[ $system =~ ^/nix/store/[a-z0-9]{32}-[A-Za-z0-9.+_-]+$ ]] || fail "--system must be a path of the Nix store" ;;
  secrets) [[ -n $secrets ]] || fail "--secrets must name a folder" ;;
  rollback | status) ;;
  *) usage ;;
esac
secret_name='^([A-Za-z_][A-Za-z0-9_-]*|git\.[A-Za-z0-9.-]+\.(token|key|ca))$'
if [[ -n $secrets ]]; then
  [[ -d $secrets ]] || fail "$secrets is no folder"
  compgen -G "$secrets/*" >/dev/null || fail "$secrets is empty"
  for file in "$secrets"/*; do
    [[ -f $file && ${file##*/} =~ $secret_name ]] || fail "${file##*/} is no name of a secret"
  done
fi
[[ -n $dry ]] || command -v pct >/dev/null || fail "there is no pct: run this on the Proxmox VE host"

for id in "${ids[@]}"; do
  echo "== $id"
  case $action in
    create) create "$id"; [[ -z $secrets ]] || push "$id" ;;
    secrets) push "$id"; systemctl "$id" restart --no-block systemmanager-mcp.service ;;
    upgrade) upgrade "$id" ;;
    rollback) rollback "$id"; healthy "$id" ;;
    status) step pct status "$id"; healthy "$id" ;;
  esac
done
