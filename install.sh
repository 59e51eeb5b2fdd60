#!/usr/bin/env bash
# The gateway on plain Linux with systemd: the same unit as the appliance's, with this machine's paths.
#
#   install.sh install [PREFIX]      a release in PREFIX (/opt/systemmanager), the user, the unit; an upgrade, too
#   install.sh rollback [PREFIX]     back to the release before
#   install.sh uninstall [PREFIX]    takes all of that away but /etc/systemmanager, /etc/credstore and /var/lib/systemmanager
#   install.sh unit [PREFIX]         prints the unit
#   install.sh firewall              prints the way out, for nft
#
# Secrets: one file each, /etc/credstore/systemmanager.NAME, mode 0600. Networks that targets and the name server are in:
# /etc/systemmanager/networks, one address or CIDR block per line. Settings: /etc/systemmanager/settings, NAME=value.
# Install again when one was added; `make install` does all that, and is an upgrade, too.
set -euo pipefail

fail() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }
[[ $# -gt 0 ]] || set -- help
here=$(cd "$(dirname "$0")" && pwd)
prefix=${2:-/opt/systemmanager}
[[ $prefix == /* && $prefix != *[[:space:]%\"]* ]] || fail "PREFIX must be an absolute path without blanks"
lib=$prefix/lib/systemmanager
unit=/etc/systemd/system/systemmanager-mcp.service
egress=/etc/systemd/system/systemmanager-egress.service
credstore=${CREDSTORE:-/etc/credstore}
secret_name='^([A-Za-z_][A-Za-z0-9_]*|git\.[A-Za-z0-9.-]+\.(token|key|ca))$'
configuration=${CONFIGURATION:-/etc/systemmanager}
systemd=${SYSTEMD_VERSION:-$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')}

networks() { # as they stand in the file, without comments
  local line
  [[ -f $configuration/networks ]] || return 0
  while IFS= read -r line || [[ -n $line ]]; do
    line=${line%%#*}
    line=${line//[[:space:]]/}
    [[ -n $line ]] || continue
    [[ $line =~ ^[0-9a-fA-F.:]+(/[0-9]{1,3})?$ ]] || 
      fail "$configuration/networks: $line is no address or CIDR block"
    printf '%s\n' "$line"
  done <"$configuration/networks"
}

audit_folders() { # of the audit log and its witness, where they are not in the state folder
  local path
  [[ -f $configuration/settings ]] || return 0
  while IFS= read -r path; do
    path=${path//[\"\']/}
    [[ $path == /*/* && $path != *[[:space:]%]* ]] || fail "$configuration/settings: $path is no path in a folder of its own"
    [[ $path == /var/lib/systemmanager/* ]] || dirname "$path"
  done < <(sed -nE 's/^SYSTEMMANAGER_AUDIT_(LOG|WITNESS)=//p' "$configuration/settings")
}

firewall_text() { # nix/egress.nft, as the module fills it in
  local allowed
  allowed=$(networks | sed -E '/:/s/.*/  ip6 daddr & accept/;t;s/.*/  ip daddr & accept/')
  printf 'table inet systemmanager\ndelete table inet systemmanager\ntable inet systemmanager {\n'
  while IFS= read -r line; do
    case $line in
      *@allow@) [[ -z $allowed ]] || printf '%s\n' "$allowed" ;;
      *) line=${line//@user@/systemmanager}; printf '%s\n' "${line//@interfaces@/\"lo\"}" ;;
    esac
  done <"$here/nix/egress.nft"
  printf '}\n'
}

firewall_unit() {
  cat <<UNIT
[Unit]
Before=systemmanager-mcp.service network-pre.target
Description=The way out of SystemManager's user, by nftables
Wants=network-pre.target

[Service]
ExecReload=$1 -f $configuration/egress.nft
ExecStart=$1 -f $configuration/egress.nft
ExecStop=$1 delete table inet systemmanager
RemainAfterExit=true
Type=oneshot

[Install]
RequiredBy=systemmanager-mcp.service
UNIT
}

unit_text() {
  local promises file name allowed folders
  allowed=$(networks)
  folders=$(audit_folders)
  promises=$(sed -n 's/^ *"\([a-z_]*\)"$/\1/p' "$here/nix/module/promises.nix" | paste -sd,)
  while IFS= read -r line; do
    # What an older systemd does not know it would complain of.
    [[ $line != RefreshOnReload=* || $systemd -ge 260 ]] || continue
    [[ $line != Restart@(Steps|MaxDelaySec)=* || $systemd -ge 254 ]] || continue
    if [[ $line == Type=notify-reload && $systemd -lt 253 ]]; then
      printf '%s\n' Type=notify "ExecReload=/bin/kill -HUP \$MAINPID"  # Debian 12 knows no notify-reload
      continue
    fi
    printf '%s\n' "$line"
    [[ $line != IPAddressAllow=* || -z $allowed ]] || printf '%s\n' "IPAddressAllow=${allowed//$'\n'/$'\n'IPAddressAllow=}"
    if [[ $line == '[Service]' ]]; then
      printf 'ExecStart=%s/bin/systemmanager serve\n' "$prefix"
      printf 'Environment="%s"\n' "SYSTEMMANAGER_TARGETS_CONFIG=/etc/systemmanager/targets.yaml" \
        "SYSTEMMANAGER_POLICY_CONFIG=/etc/systemmanager/policy.yaml" "SYSTEMMANAGER_HARDENING=$promises" \
        "SYSTEMMANAGER_REQUIRE_HARDENING=true"
      printf 'EnvironmentFile=-%s/settings\n' "$configuration"
      for file in $folders; do printf '%s=%s\n' ReadWritePaths "$file" NoExecPaths "$file"; done
      for file in "$credstore"/systemmanager.*; do
        name=${file##*/systemmanager.}
        [[ ! -f $file || ! $name =~ $secret_name ]] || printf 'LoadCredential=%s:%s\n' "$name" "$file"
      done
    fi
  done <"$here/nix/systemmanager-mcp.service"
}

runtime_lock() { # the lock without what the project's own tests need
  awk 'function out() { if (block !~ /# for the tests alone/ || block ~ /^setuptools==/) printf "%s", block }
    /^[a-z0-9]/ { out(); block = "" } { block = block $0 "\n" } END { out() }' "$here/requirements.lock"
}

build() { # a release of its own, beside the one that runs
  "${PYTHON:-python3}" -m venv "$1"
  local pip=("$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps) copy
  runtime_lock >"$1/requirements.lock"
  "${pip[@]}" --require-hashes -r "$1/requirements.lock"
  copy=$(mktemp -d)  # setuptools writes beside what it builds
  cp -r "$here/src" "$here/pyproject.toml" "$here/README.md" "$here/LICENSE" "$copy"
  "${pip[@]}" --no-build-isolation "$copy"
  rm -rf "$copy"
}

check() { # the new release reads configuration and secrets
  local credentials file settings=()
  credentials=$(mktemp -d)
  for file in "$credstore"/systemmanager.*; do
    [[ ! -f $file ]] || ln -s "$file" "$credentials/${file##*/systemmanager.}"
  done
  [[ ! -f $configuration/settings ]] || mapfile -t settings < <(grep -E '^[A-Z_]+=' "$configuration/settings")
  env -i PATH="$PATH" HOME=/nonexistent CREDENTIALS_DIRECTORY="$credentials" "${settings[@]}" \
    SYSTEMMANAGER_TARGETS_CONFIG="$configuration/targets.yaml" SYSTEMMANAGER_POLICY_CONFIG="$configuration/policy.yaml" \
    "$1/bin/systemmanager" check || { rm -rf "$credentials"; return 1; }
  rm -rf "$credentials"
}

switch_to() { # at once, and for good when it comes up
  ln -sfn "$1" "$lib/current.new"
  mv -T "$lib/current.new" "$lib/current"
  systemctl restart systemmanager-mcp.service
}

firewall() {
  local nft
  nft=$(command -v nft) || {
    echo "no nft here: the way out is limited by IPAddressAllow alone, which does nothing in an unprivileged container"
    return 0
  }
  firewall_text >"$configuration/egress.nft"
  firewall_unit "$nft" >"$egress"
  systemctl daemon-reload
  systemctl enable --quiet systemmanager-egress.service
  systemctl reload-or-restart systemmanager-egress.service
}

install_all() {
  local before='' folder
  [[ $EUID -eq 0 ]] || fail "only root installs a system service"
  networks >/dev/null
  audit_folders >/dev/null
  release=$lib/$(date -u +%Y%m%dT%H%M%SZ)
  before=$(readlink "$lib/current" || true)
  install -d -m 0755 "$configuration" "$lib" "$prefix/bin"
  install -d -m 0700 "$credstore"
  [[ -e $configuration/targets.yaml ]] || printf 'version: "1.0"\ntargets: {}\n' >"$configuration/targets.yaml"
  [[ -e $configuration/policy.yaml ]] || printf 'version: "1.0"\n' >"$configuration/policy.yaml"
  trap 'rm -rf "$release"; echo "install.sh: nothing was changed" >&2' EXIT
  build "$release"
  check "$release"
  trap - EXIT
  getent passwd systemmanager >/dev/null ||
    useradd --system --user-group --home-dir /var/lib/systemmanager --shell /usr/sbin/nologin systemmanager
  audit_folders | while IFS= read -r folder; do
    [[ -d $folder ]] || install -d -m 0700 -o systemmanager -g systemmanager "$folder"
  done
  unit_text >"$unit"
  firewall
  systemctl daemon-reload
  systemctl enable --quiet systemmanager-mcp.service
  ln -sfn "$lib/current/bin/systemmanager" "$prefix/bin/systemmanager"
  if ! switch_to "$release"; then
    [[ -n $before ]] || fail "it does not come up: journalctl -u systemmanager-mcp"
    switch_to "$before" || true
    rm -rf "$release"
    fail "the new release did not come up and was taken back: journalctl -u systemmanager-mcp"
  fi
  tidy "$release" "$before"
  echo "runs: $release${before:+, before: $before (install.sh rollback)}"
}

tidy() { # keep these releases
  local folder
  for folder in "$lib"/*Z; do
    [[ $folder == "$1" || $folder == "${2:-}" ]] || rm -rf "$folder"
  done
}

rollback() {
  local folder now before=''
  now=$(readlink "$lib/current") || fail "nothing is installed in $prefix"
  for folder in "$lib"/*Z; do [[ $folder == "$now" ]] || before=$folder; done
  [[ -n $before ]] || fail "there is no release before $now"
  switch_to "$before"
  echo "runs: $before"
}

uninstall_all() {
  [[ $EUID -eq 0 ]] || fail "only root removes a system service"
  local name
  for name in systemmanager-mcp systemmanager-egress; do
    [[ ! -e /etc/systemd/system/$name.service ]] || systemctl disable --quiet --now "$name.service"
  done
  rm -rf "$unit" "$egress" "$unit.d" "$configuration/egress.nft" "$lib"
  rm -f "$prefix/bin/systemmanager"
  systemctl daemon-reload
  rmdir "$prefix/lib" "$prefix/bin" "$prefix" 2>/dev/null || true
  # Nobody inherits the state with the number of the user that goes.
  [[ ! -d /var/lib/systemmanager ]] || chown -R root:root /var/lib/systemmanager
  ! getent passwd systemmanager >/dev/null || userdel systemmanager
  echo "left: $configuration, $credstore/systemmanager.*, /var/lib/systemmanager (the audit log)"
}

case $1 in
  install) install_all ;;
  rollback) rollback ;;
  uninstall) uninstall_all ;;
  unit) unit_text ;;
  firewall) firewall_text ;;
  *) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
